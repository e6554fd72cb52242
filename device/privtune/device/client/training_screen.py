"""What the owner sees of a training run: a live bar on a terminal, plain lines in a log, JSON lines for programs.

Texts that come from elsewhere are printed without markup and control characters.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rich.console import Console
from rich.progress import MofNCompleteColumn, TaskID, TextColumn

from privtune.device.client.consoles import console_of
from privtune.device.client.progress_bars import bars
from privtune.shared.printable import printable_json
from privtune.shared.wording import counted

if TYPE_CHECKING:
    from privtune.device.training.job import RunResult
    from privtune.device.training.progress import EvalInfo, StartInfo, StepInfo

NO_GRADIENT = (
    "No gradient leaves: the cloud computes states of the released vectors, once per record. From this training it "
    "learns those vectors, their number, order and timing, and the number of steps."
)
PLAIN_EVERY_S = 5.0  # between two lines of progress in a log


class Screen(Protocol):
    """Shows a run, and what comes before and after it."""

    def __enter__(self) -> Screen: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...
    def started(self, info: StartInfo) -> None:
        """See privtune.device.training.progress."""

    def step(self, info: StepInfo) -> None:
        """See privtune.device.training.progress."""

    def evaluated(self, info: EvalInfo) -> None:
        """See privtune.device.training.progress."""

    def message(self, text: str) -> None:
        """See privtune.device.training.progress."""

    def finished(self, result: RunResult) -> None:
        """The job succeeded."""


def make_screen(*, as_json: bool, out: TextIO | None = None) -> Screen:
    """The screen for a stream: JSON if asked for, a live bar on a terminal, else plain lines."""
    stream = out or sys.stdout
    if as_json:
        return JsonScreen(stream)
    console = console_of(stream)
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


def megabytes(count: float) -> str:
    """`12.3 MB`, decimal."""
    return f"{count / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """`2:05:09`, `5:09`; `-` for an unknown duration."""
    if not 0 <= seconds < 1e8:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figures(metrics: dict[str, float]) -> str:
    """`accuracy 0.871, loss 0.31`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


class PlainScreen:
    """One line per event; steps at most every few seconds, and always the last one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._announced = False
        self._last = 0.0

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def started(self, info: StartInfo) -> None:
        """The statement in full the first time; after a reconnect one line."""
        if self._announced:
            self._say(f"reconnected; resuming at step {info.start_step} of {info.total_steps}")
            return
        self._announced = True
        self._say(
            f"Job {info.job_id}: {counted(info.total_steps, 'step')}, {counted(info.records, 'record')}" + _asides(info)
        )
        self._say(
            f"Trainable: {counted(info.device_parameters, 'parameter')} on this device, "
            + (f"about {info.cloud_parameters:,} in the cloud." if info.cloud_parameters else "none in the cloud.")
        )
        for line in info.replacement.lines() if info.replacement is not None else ():
            self._say(line)
        self._say(f"Privacy: {info.statement.text}")
        for caveat in info.statement.caveats:
            self._say(f"  - {caveat}")
        if info.tail:
            self._say(NO_GRADIENT)
        for statement in (info.label_statement, info.slopes):
            if statement is None:
                continue
            claim, *caveats = statement.lines()
            self._say(claim)
            for caveat in caveats:
                self._say(f"  {caveat}")
        if info.start_step:
            self._say(f"Resuming at step {info.start_step}.")

    def step(self, info: StepInfo) -> None:
        """Loss, speed, bytes and time left."""
        now = time.monotonic()
        if now - self._last < PLAIN_EVERY_S and info.step < info.total_steps:
            return
        self._last = now
        self._say(f"step {info.step}/{info.total_steps}  {_speed(info)}")

    def evaluated(self, info: EvalInfo) -> None:
        """Metrics on held-out records."""
        self._say(f"held-out records after step {info.step}: {figures(info.metrics)}")

    def message(self, text: str) -> None:
        """A line."""
        self._say(printable_json(text))

    def finished(self, result: RunResult) -> None:
        """What was done, and what to do next."""
        self._say(
            f"Done: {counted(result.steps, 'step')} in {duration(result.seconds)}, "
            f"{counted(result.tokens, 'token')}, {megabytes(result.bytes_up)} up, {megabytes(result.bytes_down)} down."
        )
        if result.metrics:
            self._say(f"Held-out: {figures(result.metrics)}")
        if result.spot_checks is not None:
            self._say(result.spot_checks.line())
        self._say(f"Report and head (they stay on this device): {result.folder}")
        if result.label_names:
            self._say(f"Predict: privtune predict {result.job_id} --text '...'")
        else:
            self._say(f"Generate: privtune generate {result.job_id} --prompt '...'")
        if result.exportable:
            self._say(f"Export: privtune export {result.job_id} DIR")

    def _say(self, line: str) -> None:
        self._console.print(line)


class LiveScreen(PlainScreen):
    """A bar with the latest figures; everything else scrolls above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bar = bars(console, MofNCompleteColumn(), TextColumn("{task.fields[figures]}", markup=False))
        self._task: TaskID | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def started(self, info: StartInfo) -> None:
        """The plain lines, then the bar."""
        super().started(info)
        if self._task is None:
            self._task = self._bar.add_task("training", total=info.total_steps, figures="")
            self._bar.start()
        self._bar.update(self._task, completed=info.start_step)

    def step(self, info: StepInfo) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=info.step, description=f"epoch {info.epoch}", figures=_speed(info))

    def finished(self, result: RunResult) -> None:
        """Stop the bar where it is."""
        self._bar.stop()
        super().finished(result)


class JsonScreen:
    """One JSON object per line, each with `event`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __enter__(self) -> JsonScreen:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def started(self, info: StartInfo) -> None:
        """event: started."""
        self._write("started", asdict(info))

    def step(self, info: StepInfo) -> None:
        """event: step."""
        self._write("step", asdict(info))

    def evaluated(self, info: EvalInfo) -> None:
        """event: evaluated."""
        self._write("evaluated", asdict(info))

    def message(self, text: str) -> None:
        """event: message."""
        self._write("message", {"text": text})

    def finished(self, result: RunResult) -> None:
        """event: finished."""
        self._write("finished", asdict(result))

    def _write(self, event: str, facts: dict[str, Any]) -> None:
        print(json.dumps({"event": event} | facts, default=str), file=self._out, flush=True)


def _asides(info: StartInfo) -> str:
    parts = []
    if info.validation_records:
        parts.append(f"{info.validation_records:,} held out")
    if info.truncated:
        parts.append(f"{info.truncated:,} longer than the limit and truncated")
    if info.dropped:
        parts.append(f"{info.dropped:,} left out: nothing to predict within the limit")
    return f" ({'; '.join(parts)})" if parts else ""


def _speed(info: StepInfo) -> str:
    return (
        f"loss {info.loss:.4f}  {info.tokens_per_second:,.0f} tokens/s  "
        f"{megabytes(info.bytes_up)} up  {megabytes(info.bytes_down)} down  {duration(info.seconds_left)} left"
    )
