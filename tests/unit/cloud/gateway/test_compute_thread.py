"""The compute thread tells how long it has been at its present work."""

import threading
import time

import pytest

from privtune.cloud.gateway.compute_thread import ComputeThread


def test_it_is_busy_while_it_works_and_not_after_a_failure():
    begun, let_go = threading.Event(), threading.Event()

    def work(number, *, more):
        begun.set()
        let_go.wait(10)
        return number + more

    with ComputeThread() as compute:
        assert compute.busy_s == 0
        done = compute.submit(work, 1, more=2)
        begun.wait(10)
        time.sleep(0.01)
        assert compute.busy_s >= 0.01
        let_go.set()
        assert done.result(10) == 3
        with pytest.raises(ZeroDivisionError):
            compute.submit(lambda: 1 // 0).result(10)
        assert compute.busy_s == 0
