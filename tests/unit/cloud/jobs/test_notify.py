import asyncio
import threading
import time
from contextlib import ExitStack

import pytest

from privtune.cloud.jobs.notify import Notifier
from privtune.shared.errors import PermissionDenied


def test_a_waiter_wakes_from_another_thread_and_once_for_many():
    async def body():
        notifier = Notifier()
        with notifier.subscribe("a") as news:
            thread = threading.Thread(target=lambda: [notifier.publish("a") for _ in range(50)])
            began = time.monotonic()
            thread.start()
            assert await news.wait(10)
            assert time.monotonic() - began < 5
            thread.join()
            await asyncio.sleep(0)
            await news.wait(0.01)
            assert not await news.wait(0.01)
            notifier.publish("b")
            assert not await news.wait(0.01)

    asyncio.run(body())


def test_waiters_are_bounded_and_leave_nothing_behind():
    async def body():
        notifier = Notifier(2)
        full = (notifier.subscribe("a"), notifier.subscribe("a"))
        with full[0], full[1], pytest.raises(PermissionDenied, match="at most 2"), notifier.subscribe("b"):
            pass
        with notifier.subscribe("a"):
            pass
        assert notifier._count == 0
        assert notifier._waiters == {}

    asyncio.run(body())


def test_closing_frees_everybody_also_late_ones():
    async def body():
        notifier = Notifier()
        with notifier.subscribe("a") as news:
            notifier.close()
            assert await news.wait(1)
            assert news.closed
        with notifier.subscribe("a") as late:
            assert late.closed

    asyncio.run(body())


def test_one_owner_can_not_take_all_streams():
    async def body():
        notifier = Notifier(4)
        with ExitStack() as stack:
            greedy = [stack.enter_context(notifier.subscribe("a", "alice")) for _ in range(4)]
            with pytest.raises(PermissionDenied), notifier.subscribe("a", "alice"):
                pass
            mine = [stack.enter_context(notifier.subscribe("b", "bob")) for _ in range(2)]
            assert [one.closed for one in greedy] == [True, True, False, False]
            assert await greedy[0].wait(1)
            assert not any(one.closed for one in mine)
            with pytest.raises(PermissionDenied), notifier.subscribe("b", "bob"):
                pass
        assert notifier._count == 0

    asyncio.run(body())
