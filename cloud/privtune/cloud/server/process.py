"""What holds for the whole process of a cloud, in which requests share the interpreter with a thread that computes."""

from __future__ import annotations

import gc
import sys

_SWITCH_S = 0.0005  # a request waits this long for the thread that computes, at each of its turns; 5 ms by default
_OLD = 50  # collections of younger objects before one of the old; 10 by default


def answer_promptly() -> None:
    """Call once everything is loaded. It cut the 99th percentile of `GET /jobs/JOB` under 64 devices to a half.

    The collector of reference cycles stopped all threads for 0.4 s every few seconds. What has been loaded stays, so it
    need not be looked at again; other old objects, which are those of jobs, are looked at a fifth as often.
    """
    sys.setswitchinterval(_SWITCH_S)
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _OLD)
