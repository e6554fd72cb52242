"""The one retry policy: waits double up to a bound, and an event can cut each one short."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, stop_never, wait_exponential
from tenacity.stop import stop_base

T = TypeVar("T")

FIRST_S = 1.0
LONGEST_S = 30.0


def retrying(
    call: Callable[[], T],
    *,
    again: Callable[[BaseException], bool],
    stop: stop_base = stop_never,
    first_s: float = FIRST_S,
    longest_s: float = LONGEST_S,
    progress: Callable[[], int] = lambda: 0,
    before_wait: Callable[[BaseException, float], None] = lambda error, wait_s: None,
    interrupt: threading.Event | None = None,
) -> T:
    """Call until it succeeds. Raises the last error when `again` or `stop` ends the attempts.

    Args:
        call: what to try.
        again: whether an error is worth another attempt.
        stop: when to give up, one of tenacity's conditions; by default never.
        first_s: first wait, in seconds; each wait is twice the one before.
        longest_s: longest wait, in seconds.
        progress: what has been achieved so far; when a failed attempt achieved something, waits and `stop` start over.
        before_wait: gets the error and the seconds until the next attempt.
        interrupt: ends a wait when set; the next attempt follows at once.
    """
    achieved = progress()

    def worth_it(state: RetryCallState) -> bool:
        nonlocal achieved
        error = state.outcome.exception() if state.outcome else None
        if error is None or not again(error):
            return False
        if progress() != achieved:
            achieved, state.attempt_number, state.start_time = progress(), 1, time.monotonic()
        return True

    def waiting(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None:
            before_wait(error, state.upcoming_sleep)

    pause = threading.Event() if interrupt is None else interrupt

    def sleep(seconds: float) -> None:
        pause.wait(seconds)

    policy = Retrying(
        retry=worth_it,
        stop=stop,
        wait=wait_exponential(multiplier=first_s, max=longest_s),
        sleep=sleep,
        before_sleep=waiting,
        reraise=True,
    )
    return policy(call)
