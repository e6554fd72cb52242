"""How a job and a client look in a notebook. Plain HTML, so that no extension of the notebook is needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from privtune.shared.errors import JobCancelled, JobPaused

if TYPE_CHECKING:
    from privtune.device.client.training_run import TrainingRun

EVERY_S = 0.2  # between two drawings of one job


def present() -> bool:
    """Whether this process serves a notebook. Nothing is imported that the notebook has not."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def shown(job: Any) -> Iterator[Callable[[], None]]:
    """Display a job; inside, call what this gives to draw it again, often as it likes."""
    from IPython.display import display

    handle, drawn = display(job, display_id=True), time.monotonic()

    def refresh() -> None:
        nonlocal drawn
        if time.monotonic() - drawn >= EVERY_S:
            drawn = time.monotonic()
            handle.update(job)

    try:
        yield refresh
    finally:
        handle.update(job)


def job_html(job_id: str, run: TrainingRun | None) -> str:
    """A job: its bar and figures while it trains here, then what came of it; the statement is folded away."""
    if run is None:
        return f"<p><b>{escape(job_id)}</b>: does not train in this process</p>"
    from privtune.device.client.training_screen import duration, figures, megabytes

    parts = [f"<b>{escape(job_id)}</b>: {_state(run)}"]
    if (event := run.latest("step")) is not None:
        info: Any = event.info
        parts.append(
            f'<progress value="{info.step}" max="{info.total_steps}"></progress> {info.step}/{info.total_steps}'
        )
        parts.append(
            f"epoch {info.epoch}, loss {info.loss:.4f}, {info.tokens_per_second:,.0f} tokens/s, "
            f"{megabytes(info.bytes_up)} up, {megabytes(info.bytes_down)} down, {duration(info.seconds_left)} left"
        )
    if (event := run.latest("evaluated")) is not None:
        held_out: Any = event.info
        parts.append(f"held out after step {held_out.step}: {figures(held_out.metrics)}")
    if run.active and (event := run.latest("message")) is not None:
        parts.append(escape(str(event.info)))
    html = "<br>".join(parts)
    if (event := run.latest("started")) is not None:
        start: Any = event.info
        lines = [start.statement.text, *start.statement.caveats]
        html += f"<details><summary>Privacy</summary>{'<br>'.join(map(escape, lines))}</details>"
    return f"<div>{html}</div>"


def client_html(cloud: str | None, home: str, jobs: list[str]) -> str:
    """A client: its cloud, its home, and the jobs that it has begun."""
    rows = {"cloud": cloud or "none", "home": home, "jobs begun here": ", ".join(jobs) or "none"}
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _state(run: TrainingRun) -> str:
    if run.active:
        return "training" if run.latest("started") is not None else "preparing"
    if run.failure is None:
        return "finished"
    words = ((JobPaused, "paused"), (JobCancelled, "cancelled"))
    word = next((word for kind, word in words if isinstance(run.failure, kind)), "failed")
    return f"{word}: {escape(str(run.failure))}"
