"""Frames, twisted for as long as wanted: what reaches a new branch joins the corpus, what breaks a side is written out.

    python -m tests.fuzz --seconds 3600

Coverage-guided: a stream that makes either side take a step between two lines that no stream of the corpus takes is
kept, and twisted further. `tests/security/test_fuzzed_frames.py` replays the corpus in every run of the suite.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

from tests.support.frame_corpus import CORPUS, load, save
from tests.support.frame_fuzzing import SIDES, Sides, honest, packed, twisted

WATCHED = ("wire.py", "codec.py", "public_table.py", "step_machine.py", "release_cache.py", "text_cache.py", "rpc.py")
LONGEST = 16_384  # bytes of a stream that is kept
Edge = tuple[CodeType, int, int]


class Edges:
    """Which steps between two lines of the watched modules a call takes."""

    def __init__(self) -> None:
        self.known: set[Edge] = set()
        self._new: set[Edge] = set()

    def of(self, call: Callable[[], object]) -> int:
        """How many new steps `call` takes."""
        self._new = set()
        sys.settrace(self._enter)
        threading.settrace(self._enter)  # the device reads its stream in a thread
        try:
            call()
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            self.known |= self._new
        return len(self._new)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if "privtune" not in name or not name.endswith(WATCHED):
            return None
        before = 0

        def line(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal before
            edge = (frame.f_code, before, frame.f_lineno)
            before = frame.f_lineno
            if edge not in self.known:
                self._new.add(edge)
            return line

        return line


def main() -> int:
    """The number of streams that broke a side."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, edges, tried, broke = random.Random(options.seed), Edges(), 0, 0
    print(f"seed {options.seed}, {options.seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(Path(folder))
        corpus = [*load(), *((side, packed(honest(side))) for side in SIDES)]
        kept = [one for one in corpus if edges.of(lambda one=one: sides.feed(*one))]
        print(f"corpus: {len(corpus)} streams, {len(kept)} of them needed, {len(edges.known)} steps", flush=True)
        end = said = time.monotonic() + options.seconds
        said -= options.seconds
        while time.monotonic() < end:
            side, stream = rng.choice(kept)
            one, tried = (side, twisted(stream, rng)), tried + 1
            try:
                if edges.of(lambda one=one: sides.feed(*one)) and len(one[1]) <= LONGEST:
                    kept.append(one)
            except Exception:
                broke += 1
                options.out.mkdir(exist_ok=True)
                save([one], options.out / f"{side}-{options.seed}-{broke}.txt")
                traceback.print_exc()
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"{tried} streams, {len(kept)} kept, {len(edges.known)} steps, {broke} broke", flush=True)
    save(kept, CORPUS)
    print(f"done: {tried} streams, {len(kept)} kept, {len(edges.known)} steps, {broke} broke a side", flush=True)
    return min(broke, 1)


if __name__ == "__main__":
    sys.exit(main())
