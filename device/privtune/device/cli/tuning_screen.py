"""What the owner sees of `privtune tune-noise`: progress and the time left, a table, a plot, and the choice."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.table import Table

from privtune.device.audit.tuning.choice import Estimate, Setting, Words, naming, short, shown, span
from privtune.device.audit.tuning.request import TuneRequest
from privtune.device.audit.tuning.tune import Tuned
from privtune.device.audit.tuning.tune_report import NOTES, gain_of, headline, wished
from privtune.device.client.consoles import console_of
from privtune.device.client.progress_bars import bars
from privtune.device.client.training_screen import duration
from privtune.shared.wording import counted

_BAR = 28
_MARKS = (("█", "▒"), ("#", ":"))  # the second for a terminal with ASCII only


class TuneScreen:
    """A bar on a terminal, a line for each setting in a log, nothing if quiet. The watcher of a tuning."""

    def __init__(self, words: Words, *, quiet: bool) -> None:
        self._words: Words = words
        self._console = console_of(sys.stderr)
        self._quiet = quiet
        self._bar = bars(self._console, disable=quiet, transient=True)
        self._task = self._bar.add_task("reading model and data", total=1.0)
        self._live = self._console.is_terminal and not quiet

    def __enter__(self) -> TuneScreen:
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._bar.stop()  # without a terminal this writes an empty line

    def begin(self, name: str, number: int, total: int, seconds_left: float | None) -> None:
        """Show the setting and the time left."""
        left = "" if seconds_left is None else f", about {duration(seconds_left)} left"
        self._at = f"{name} ({number} of {total}{left})"
        if not self._live and not self._quiet:
            self._console.print(self._at, soft_wrap=True)

    def say(self, what: str, share: float) -> None:
        """Move the bar."""
        if self._live:
            self._bar.update(self._task, description=f"{self._at}: {what}", completed=share)

    def end(self, name: str, facts: dict[str, Any], *, kept: bool) -> None:
        """One line of figures."""
        if self._quiet:
            return
        right = "".join(facts["right"])
        accuracy = right.count("1") / len(right)
        how = "measured before" if kept else duration(facts["seconds"])
        named = ""
        if "recovered" in facts:  # the device alone sends nothing
            named = f"{100 * facts['recovered'][self._words]['value']:.1f}% of {naming(self._words)} recovered, "
        self._console.print(f"  {name}, dev split: {named}accuracy {100 * accuracy:.1f}% ({how})", soft_wrap=True)


def show_choice(request: TuneRequest, tuned: Tuned, command: str | None, out: Path) -> None:
    """Print table, plot, choice and what to do next."""
    console = console_of(sys.stdout)
    records, words = tuned.records, request.wish.words
    if records["dev_left_out"]:
        console.print(
            f"Left out: {counted(records['dev_left_out'], 'dev record')} that training has as well.", soft_wrap=True
        )
    console.print(_table(request, tuned, words))
    plain = console.options.ascii_only
    console.print(_plot(request, tuned, words, plain=plain))
    full, hatched = _MARKS[plain]
    console.print(f"dev split; {full}{hatched} up to the ends of the interval, | your limit\n", soft_wrap=True)
    choice = tuned.choice
    lines = [f"Goal: {wished(request.wish)}.", f"{headline(request, tuned)}."]
    lines += [f"  {line}" for line in choice.remarks]
    recovered = choice.setting.recovered[words]
    lines.append(
        f"  {naming(words)} recovered {span(recovered)}, by {recovered.attack}; floor {100 * recovered.floor:.1f}%"
    )
    lines.append(f"  accuracy {span(choice.setting.accuracy)}, lost {span(choice.setting.drop, 'points')}")
    lines.append(f"  {gain_of(request, tuned, choice.setting.value)}")
    lines.append(f"  {tuned.facts[choice.setting.value]['statement']['text']}")
    if command:
        lines += ["", "Use it (NAME: the cloud's name of this model):", f"  {command}"]
    lines += ["", NOTES[0], f"Page: {out / 'tune.html'}  picture: {out / 'tune.svg'}  figures: {out / 'tune.json'}"]
    console.print("\n".join(lines), soft_wrap=True)


def _table(request: TuneRequest, tuned: Tuned, words: Words) -> Table:
    """Narrow enough for 80 columns."""
    attacked = counted(tuned.records["attacked"], "dev record")
    about = f"{attacked} attacked, {tuned.records['dev']:,} scored; 95% intervals"
    table = Table(title=about, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(request.param, no_wrap=True)
    for title in (f"{naming(words)}, %", "accuracy, %", "points lost"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    table.add_row("no noise", *_cells(tuned.clean, words), "")
    for setting in tuned.settings:
        chosen = setting == tuned.choice.setting
        verdict = _verdict(request.wish.misses(setting).keys(), chosen=chosen, met=tuned.choice.met)
        table.add_row(shown(setting.value), *_cells(setting, words), verdict, style="bold" if chosen else "")
    return table


def _cells(setting: Setting, words: Words) -> list[str]:
    return [short(estimate) for estimate in (setting.recovered[words], setting.accuracy, setting.drop)]


def _verdict(missed: Collection[str], *, chosen: bool, met: bool) -> str:
    if chosen:
        return "chosen" if met else "nearest"
    words = {"recovery": "hides too little", "drop": "loses too much"}
    return "meets it" if not missed else "neither" if len(missed) == len(words) else words[next(iter(missed))]


def _plot(request: TuneRequest, tuned: Tuned, words: Words, *, plain: bool) -> Table:
    """Two bars per setting: full up to the low end of the interval, hatched up to its high end; a mark at the limit."""
    wish, rows = request.wish, [("no noise", tuned.clean), *((shown(s.value), s) for s in tuned.settings)]
    most = max(0.05, *(s.drop.high for _, s in rows), 1.25 * (wish.max_drop or 0.0))
    plot = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for title in (request.param, f"{naming(words)}, 0 to 100%", f"points lost, 0 to {100 * most:.0f}"):
        plot.add_column(title, no_wrap=True)
    for label, setting in rows:
        recovered = _bar(setting.recovered[words], 1.0, wish.max_recovery, plain)
        plot.add_row(label, recovered, _bar(setting.drop, most, wish.max_drop, plain))
    return plot


def _bar(estimate: Estimate, most: float, limit: float | None, plain: bool) -> str:
    full, hatched = _MARKS[plain]
    ends = [round(_BAR * min(max(end, 0.0), most) / most) for end in (estimate.low, estimate.high)]
    cells = list(full * ends[0] + hatched * (ends[1] - ends[0]) + " " * (_BAR - ends[1]))
    if limit is not None and limit <= most:
        cells[min(round(_BAR * limit / most), _BAR - 1)] = "|"
    return "".join(cells)
