"""The retry policy: waits double, other errors and the last one come through, an event cuts a wait short."""

import threading
import time

import pytest
from tenacity import stop_after_attempt

from privtune.shared.errors import CloudUnreachable, InvalidInput
from privtune.shared.retry import retrying


def unreachable(error):
    return isinstance(error, CloudUnreachable)


def failing(times, error):
    left = [error] * times

    def call():
        if left:
            raise left.pop()
        return "answer"

    return call


def test_waits_double_up_to_the_longest():
    waits = []
    call = failing(4, CloudUnreachable("away"))
    answer = retrying(
        call, again=unreachable, first_s=0.01, longest_s=0.03, before_wait=lambda error, wait_s: waits.append(wait_s)
    )
    assert answer == "answer"
    assert waits == [0.01, 0.02, 0.03, 0.03]


def test_what_another_try_does_not_mend_comes_through_at_once():
    with pytest.raises(InvalidInput):
        retrying(failing(1, InvalidInput("no")), again=unreachable)


def test_the_last_error_is_raised_when_there_were_enough_tries():
    with pytest.raises(CloudUnreachable, match="away"):
        retrying(failing(9, CloudUnreachable("away")), again=unreachable, stop=stop_after_attempt(2), first_s=0.01)


def test_an_interrupt_cuts_the_wait_short():
    interrupt = threading.Event()
    began = time.monotonic()
    answer = retrying(
        failing(1, CloudUnreachable("away")),
        again=unreachable,
        first_s=60,
        longest_s=60,
        before_wait=lambda error, wait_s: interrupt.set(),
        interrupt=interrupt,
    )
    assert answer == "answer"
    assert time.monotonic() - began < 30


def test_waits_and_the_number_of_tries_start_over_where_a_failed_try_achieved_something():
    done, waits = [], []

    def call():
        if len(waits) == 2:
            done.append("a step")
        raise CloudUnreachable("away")

    with pytest.raises(CloudUnreachable):
        retrying(
            call,
            again=unreachable,
            stop=stop_after_attempt(3),
            first_s=0.01,
            progress=lambda: len(done),
            before_wait=lambda error, wait_s: waits.append(wait_s),
        )
    assert waits == [0.01, 0.02, 0.01, 0.02]
