"""What was measured of settings: recovery, loss of accuracy, cloud gain, bytes and time. Read from one file.

`python -m research.cloud_gain report` writes `measured.json` from docs/results; nothing in it is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict

from privtune.device.noise.registry import validate
from privtune.shared.job_spec import JobSpec, MechanismSpec, SurrogateSpec

NOT_MEASURED = "not measured"
NO_GAIN = "Cloud gain: not measured for this setting (`privtune audit --gain` measures it on your records)."
NO_TAUGHT_GAIN = "Cloud gain of what is sent: not measured on taught blocks."
NO_TEXT_GAIN = "Cloud gain: not measured for language models."
_HIDDEN = (0.2, 0.1)
Interval = tuple[float, float, float]  # value, lower and upper end of the 95% interval


class JobTraffic(BaseModel):
    """What a whole job took over the wire and on the clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    bytes_up: int
    bytes_down: int
    seconds: float


class MeasuredRow(BaseModel):
    """One setting on one model and data set. Shares are between 0 and 1; None: not measured.

    accuracy: of the split.
    drop: below the whole model trained on clean vectors.
    alone: accuracy of the same device without a cloud.
    gain: accuracy minus `alone`, on the same records.
    gain_small: accuracy minus that of a whole small model (MiniLM), which a device trains without a cloud.
    oblivious, informed, content: words named by the worst attack: by one that does not know the mechanism, by one that
        does, and by one that does of content words alone.
    strong, strong_content: the same of the worst attack, a pre-trained encoder that was tuned to read what is sent
        included. strong_texts: on how many public texts.
    clear: content words that leave as they are, since they are not replaced.
    replaced: what was replaced and is named all the same, by a language model that is tuned to guess it, and its floor:
        by whoever names the most frequent of the type. Of dialogues (DialogSum).
    traffic: of a job with this setting.
    surrogates: rank from which words are replaced, with what identifies; None: nothing is replaced.
    cell: its name in research/.
    seeds: of accuracy.
    sources: files of docs/results.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    data: str
    cut: int
    tail: int
    skip: str
    mechanism: str
    params: dict[str, Any]
    surrogates: int | None
    accuracy: Interval
    drop: Interval | None = None
    alone: Interval | None = None
    gain: Interval | None = None
    gain_small: Interval | None = None
    oblivious: Interval | None = None
    informed: Interval | None = None
    content: Interval | None = None
    strong: Interval | None = None
    strong_content: Interval | None = None
    strong_texts: int = 0
    clear: float | None = None
    replaced: tuple[float, float] | None = None
    traffic: JobTraffic | None = None
    cell: str
    seeds: int
    sources: tuple[str, ...]

    @property
    def where(self) -> str:
        """The model and data that it holds for."""
        return f"{self.model}, {self.data}"

    def gain_sentence(self) -> str:
        """The cloud gain with its interval; a gain that may be none says so first."""
        return NO_GAIN if self.gain is None else gain_sentence(self.gain, self.where)

    @property
    def named(self) -> tuple[float, float] | None:
        """The largest known shares of all words and of content words that attackers name."""
        everything, content = self.strong or self.informed, self.strong_content or self.content
        return None if everything is None or content is None else (everything[0], content[0])

    @property
    def hides_words(self) -> bool:
        """Whether attackers named at most 20% of all words and 10% of content words."""
        return self.named is not None and self.named[0] <= _HIDDEN[0] and self.named[1] <= _HIDDEN[1]

    @property
    def adds_nothing(self) -> bool:
        """Whether the cloud gain's interval reaches 0."""
        return self.gain is not None and self.gain[1] <= 0


class TaughtRow(BaseModel):
    """What a cloud's teaching gives a device that then trains alone, for one model and data set.

    cut: how many blocks the device has below the cut; it has the last one too.
    pieces: of the public text.
    adds: accuracy with the teacher, minus that with the same public text and labels and no teacher.
    over_untaught: the same, minus that of the blocks as they were.
    seeds: of both.
    sources: files of docs/results.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    data: str
    cut: int
    pieces: int
    adds: Interval
    over_untaught: Interval
    seeds: int
    sources: tuple[str, ...]

    def sentence(self) -> str:
        """What was gained, with its interval; a gain that may be none says so first."""
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        where = f"Measured on {self.model}, {self.data} (cut {self.cut}, {self.pieces:,} public pieces, {seeds})"
        figures = f"{points(self.adds)} points over the same public text without a teacher"
        if self.adds[1] <= 0:
            return f"{where}: the teacher added nothing measurable, {figures}."
        return f"{where}: the teacher added {figures}."


def gain_sentence(gain: Interval, where: str) -> str:
    """A cloud gain that was measured there; one that may be none says so first."""
    figures = f"{points(gain)} points over the same device alone"
    if gain[1] <= 0:
        return f"Measured on {where}: the cloud added nothing measurable, {figures}."
    return f"Measured on {where}: the cloud added {figures}."


def points(interval: Interval) -> str:
    """A difference of accuracies in points, with its interval."""
    value, low, high = (100 * one for one in interval)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


@cache
def rows() -> tuple[MeasuredRow, ...]:
    """Every measured setting."""
    return tuple(MeasuredRow.model_validate(row) for row in _document()["rows"])


@cache
def teachings() -> tuple[TaughtRow, ...]:
    """Every measured teaching."""
    return tuple(TaughtRow.model_validate(row) for row in _document()["teachings"])


@cache
def _document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(__package__).joinpath("measured.json").read_text(encoding="utf-8"))
    return found


def measured(settings: Mapping[str, Any]) -> MeasuredRow | None:
    """The row of these settings, one with a cloud gain and of most seeds; None: they were not measured.

    settings: fields of a `JobSpec`: cut, tail, skip, mechanism, surrogates.
    """
    wanted = _key(settings)
    found = [row for row in rows() if _key(_settings_of(row)) == wanted]
    return max(found, key=lambda row: (row.gain is not None, row.seeds), default=None)


def measured_job(spec: JobSpec) -> MeasuredRow | None:
    """The row of a job's settings; None: they were not measured, or not for this task."""
    return measured(spec.model_dump()) if spec.task == "classification" else None


def cloud_gain(spec: JobSpec) -> str:
    """What the cloud adds under a job's settings, in a sentence."""
    if spec.task != "classification":
        return NO_TEXT_GAIN
    if spec.taught is not None:
        best = max(teachings(), key=lambda row: (row.seeds, row.pieces), default=None)
        return NO_TAUGHT_GAIN if best is None else f"{NO_TAUGHT_GAIN} {best.sentence()}"
    # Gains were measured with gradients, on blocks as they were pre-trained.
    row = None if spec.zeroth_order.on else measured_job(spec)
    return NO_GAIN if row is None else row.gain_sentence()


def _settings_of(row: MeasuredRow) -> dict[str, Any]:
    return {
        "cut": row.cut,
        "tail": row.tail,
        "skip": row.skip,
        "mechanism": {"name": row.mechanism, "params": row.params},
        "surrogates": {"replace": "nothing"}
        if row.surrogates is None
        else {"replace": "identifying", "rank": row.surrogates},
    }


def _key(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two settings the same: a default that is spelt out is no difference."""
    mechanism = MechanismSpec.model_validate(settings["mechanism"])
    params = tuple(sorted(validate(mechanism).model_dump().items()))
    surrogates = SurrogateSpec.model_validate(settings["surrogates"])
    skip = settings.get("skip", "frozen") if settings["tail"] else None
    return settings["cut"], settings["tail"], skip, mechanism.name, params, surrogates if surrogates.on else None
