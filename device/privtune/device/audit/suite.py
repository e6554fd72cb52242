"""Which attacks run, how large, on what: one run of the suite against one mechanism. Used by the audit and the paper.

The attacked records and the attacker's text are disjoint, by code. The attacked releases are drawn anew for each seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from privtune.device.audit.attacks import channels, gradients
from privtune.device.audit.attacks.attack import Attack, Clean, Lab, Say, silent
from privtune.device.audit.attacks.attribute import AttributeSettings, PooledAttribute, SequenceAttribute, TextAttribute
from privtune.device.audit.attacks.beam import Beam, BeamSettings
from privtune.device.audit.attacks.codebook import METRICS, Codebook, CodebookSettings
from privtune.device.audit.attacks.learned import LearnedInversion, LearnedSettings, Tokenwise
from privtune.device.audit.attacks.learned import Sequence as SequenceInversion
from privtune.device.audit.attacks.optimise import Optimise, OptimiseSettings
from privtune.device.audit.metrics import AttributeScore, Figure, InversionScore
from privtune.device.audit.probe import use_for_training
from privtune.device.audit.public_knowledge import PublicText
from privtune.device.audit.victim import Knowledge, Observed, Seen, Victim
from privtune.device.data.encode import EncodedDataset
from privtune.device.runtime.memory import fast_memory
from privtune.shared.modeling.partition import Head

KNOWLEDGE: tuple[Knowledge, Knowledge] = ("oblivious", "adaptive")
STATES = "mean of final states"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything. public: records that attacks are built on; attacked: records that attribute inference is
    run on; inverted: how many of these inversion is run on (EIA-3: optimise_records; with a language model:
    beam_records).
    """

    name: Literal["quick", "full"]
    public: int
    attacked: int
    inverted: int
    seeds: int
    metrics: tuple[str, ...]
    tokenwise: LearnedSettings
    sequence: LearnedSettings
    optimise: OptimiseSettings
    optimise_records: int
    beam: BeamSettings
    beam_records: int
    attribute: AttributeSettings
    pooled: AttributeSettings


QUICK = Size(
    name="quick",
    public=1200,
    attacked=150,
    inverted=150,
    seeds=1,
    metrics=("euclidean", "bayes", "language", "content"),
    tokenwise=LearnedSettings(epochs=1, hidden=1024),
    sequence=LearnedSettings(epochs=1, encoder_rate=2e-4),
    optimise=OptimiseSettings(iterations=40),
    optimise_records=24,
    beam=BeamSettings(beams=4, candidates=16, shown=128),
    beam_records=24,
    attribute=AttributeSettings(epochs=1, encoder_rate=2e-4),
    pooled=AttributeSettings(epochs=30),
)
FULL = Size(
    name="full",
    public=20_000,
    attacked=1000,
    inverted=1000,
    seeds=3,
    metrics=METRICS,
    tokenwise=LearnedSettings(epochs=10),
    sequence=LearnedSettings(epochs=10),
    optimise=OptimiseSettings(),
    optimise_records=100,
    beam=BeamSettings(),
    beam_records=100,
    attribute=AttributeSettings(epochs=10),
    pooled=AttributeSettings(epochs=30),
)


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """One attack's figures. variant: its metric or view; records: how many it was run on."""

    name: str
    variant: str
    knowledge: Knowledge
    kind: str
    records: int
    figures: dict[str, Figure]


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """One attacked record and what the best attack (in content words) made of it: token ids."""

    truth: list[int]
    guess: list[int]


@dataclass(kw_only=True)
class Outcome:
    """Everything that a run of the suite found."""

    rows: list[AttackRow] = field(default_factory=list)
    findings: list[channels.Finding] = field(default_factory=list)
    utility: dict[str, Figure] = field(default_factory=dict)
    examples: list[Recovered] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)

    def worst(self, knowledge: Knowledge, figure: str = "top1") -> AttackRow | None:
        """The inversion attack that serves this attacker best; who knows the mechanism may ignore it, too."""
        known = ("oblivious", "adaptive") if knowledge == "adaptive" else ("oblivious",)
        rows = [row for row in self.rows if row.kind == "inversion" and row.knowledge in known]
        return max(rows, key=lambda row: row.figures[figure].value, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the examples: they are text of the owner's."""
        return {
            "attacks": [asdict(row) for row in self.rows],
            "side_channels": [asdict(finding) for finding in self.findings],
            "utility": {name: asdict(figure) for name, figure in self.utility.items()},
            "untested": self.untested,
        }


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is attacked, and with what.

    public: the attacker's text; labelled: those records of it that have the attribute, None without one; top: the
    blocks above the cut, None where this device has none; encoder: the same where the learned attacks may build on it
    (not for decoders, whose blocks see only what comes before); reader: the whole language model, None for other tasks;
    head: for gradients; gradients: whether any leave (with a tail none does); skip: whether clean vectors go past the
    cloud into a tail, which makes more of the releases and is not seen by any attacker.
    """

    victim: Victim
    attacked: EncodedDataset
    public: PublicText
    labelled: PublicText | None
    top: nn.Module | None
    encoder: nn.Module | None
    reader: nn.Module | None
    head: Head
    readout: Literal["first", "last"]
    gradients: bool = True
    skip: bool = False


def run_suite(case: Case, lab: Lab, size: Size, *, say: Say = silent, keep: Path | None = None) -> Outcome:
    """Run every attack that applies. keep: a folder for the built attacks. Raises InvalidInput when texts overlap."""
    draws = [case.victim.observe(case.attacked.ids) for _ in range(size.seeds)]
    say("attacked releases", 1.0)
    outcome = attack_releases(case, lab, size, draws, say=say, keep=keep)
    if case.gradients and case.attacked.loss_masks is not None and case.top is not None:
        sent_back = gradients.simulated(case.attacked, draws[0], case.top, case.head)
        attack_gradients(case, draws[0], sent_back, outcome)
    _side_channels(case, lab, outcome, say)
    return outcome


@fast_memory()
def attack_releases(
    case: Case, lab: Lab, size: Size, draws: list[Observed], *, say: Say = silent, keep: Path | None = None
) -> Outcome:
    """Inversion and attribute attacks on releases of `case.attacked`: one draw a seed, simulated or really sent.

    Raises InvalidInput when the attacker's text and the attacked one overlap.
    """
    case.public.check_disjoint(case.attacked.ids)
    if case.labelled is not None:
        case.labelled.check_disjoint(case.attacked.ids)
    outcome = Outcome()
    builder = _Builder(clean=lab.clean, say=say, keep=keep)
    inverters = _inversions(case, lab, size, draws, outcome, builder)
    if case.top is None:
        outcome.untested.append("Attribute inference and utility: this device has no blocks above the cut.")
    elif case.labelled is not None and case.attacked.labels is not None:
        _attributes(case, size, draws, inverters, outcome, builder)
    else:
        outcome.untested.append("Attribute inference and utility: the records carry no label or attribute.")
    return outcome


def attack_gradients(case: Case, observed: Observed, sent_back: Iterable[gradients.SentBack], outcome: Outcome) -> None:
    """Text of a language model's records from the gradients that training sends back, simulated or recorded."""
    guesses = gradients.read_back(case.head, sent_back, observed)
    score = InversionScore(case.public)
    score.add(guesses, observed)
    best = outcome.worst("adaptive", "content_top1")
    outcome.rows.append(
        AttackRow(
            name=gradients.NAME,
            variant=gradients.VARIANT,
            knowledge="oblivious",
            kind="inversion",
            records=len(observed.seen),
            figures=score.figures(),
        )
    )
    if outcome.worst("adaptive", "content_top1") is not best:
        outcome.examples[:] = _examples(guesses, observed)


@dataclass(frozen=True, kw_only=True)
class _Builder:
    """Builds attacks, oblivious ones once for all that share `clean`. keep: a folder for them."""

    clean: Clean
    say: Say
    keep: Path | None

    def build(self, attack: Attack, lab: Lab, seed: int, variant: str) -> Attack:
        attack = self.clean.known(attack, variant, seed)
        if not attack.fitted:
            attack.fit(lab, seed=seed, say=self.say)
        if self.keep is not None:
            name = "-".join([attack.name, *variant.split(), attack.knowledge, str(seed)]).lower()
            attack.save(self.keep / name)
        return attack


def _inversions(
    case: Case, lab: Lab, size: Size, draws: list[Observed], outcome: Outcome, builder: _Builder
) -> dict[Knowledge, LearnedInversion]:
    best: tuple[float, Tensor | None] = (-1.0, None)
    draws = [draw.first(size.inverted) for draw in draws]
    inverters: dict[Knowledge, LearnedInversion] = {}
    for knowledge in KNOWLEDGE:
        for variant, make in _inversion_attacks(knowledge, size):
            built = [builder.build(make(), lab, seed, variant) for seed in range(size.seeds)]
            row, guesses = _scored(built, variant, case.public, draws, builder.say)
            outcome.rows.append(row)
            if isinstance(built[0], SequenceInversion):
                inverters[knowledge] = built[0]
            if row.figures["content_top1"].value > best[0]:
                best = row.figures["content_top1"].value, guesses
        if case.victim.mechanism.shortens:
            continue
        # The slow ones: a part of the records. EIA-3 is warm-started by the sequence inverter.
        slow: list[tuple[str, Attack, int]] = [
            ("warm-started", Optimise(knowledge, inverters[knowledge], size.optimise), size.optimise_records)
        ]
        if case.reader is not None:
            slow.append(("language model", Beam(knowledge, case.reader, size.beam), size.beam_records))
        for variant, attack, records in slow:
            few = [draw.first(records) for draw in draws]
            built = [builder.build(attack, lab, 0, variant)] * len(few)
            outcome.rows.append(_scored(built, variant, case.public, few, builder.say)[0])
    if case.victim.mechanism.shortens:
        outcome.untested.append("EIA-3 (optimisation): it needs a row a token, and this mechanism shortens records.")
    if best[1] is not None:
        outcome.examples.extend(_examples(best[1], draws[0]))
    return inverters


def _inversion_attacks(knowledge: Knowledge, size: Size) -> Iterator[tuple[str, Callable[[], Attack]]]:
    for metric in size.metrics:
        settings = CodebookSettings(metric=metric)  # type: ignore[arg-type]
        yield metric, lambda settings=settings: Codebook(knowledge, settings)  # type: ignore[misc]
    yield "token-wise MLP", lambda: Tokenwise(knowledge, size.tokenwise)
    yield "sequence inverter", lambda: SequenceInversion(knowledge, size.sequence)


def attribute_attacks(
    knowledge: Knowledge, pooled: AttributeSettings, sequence: AttributeSettings, inverter: LearnedInversion
) -> Iterator[tuple[str, Callable[[], Attack]]]:
    """AIA-1 to AIA-3, each with what it looks at; inverter: where AIA-3 has its text from."""
    on_states = replace(pooled, view="states")
    yield "mean of rows", lambda: PooledAttribute(knowledge, pooled)
    yield STATES, lambda: PooledAttribute(knowledge, on_states)
    yield "sequence of rows", lambda: SequenceAttribute(knowledge, sequence)
    yield "recovered text", lambda: TextAttribute(knowledge, inverter, pooled)


def _attributes(
    case: Case,
    size: Size,
    draws: list[Observed],
    inverters: dict[Knowledge, LearnedInversion],
    outcome: Outcome,
    builder: _Builder,
) -> None:
    if case.labelled is None or case.attacked.labels is None:
        return
    lab = Lab(case.labelled, case.victim, case.encoder)
    states = Lab(case.labelled, case.victim, case.top)
    first: dict[tuple[str, Knowledge], Attack] = {}
    for knowledge in KNOWLEDGE:
        for variant, make in attribute_attacks(knowledge, size.pooled, size.attribute, inverters[knowledge]):
            where = states if variant == STATES else lab
            score = AttributeScore(case.attacked.labels)
            for seed, draw in enumerate(draws):
                attack = builder.build(make(), where, seed, variant)
                first.setdefault((variant, knowledge), attack)
                score.add(attack.attack(draw.seen))
            outcome.rows.append(
                AttackRow(
                    name=attack.name,
                    variant=variant,
                    knowledge=knowledge,
                    kind="attribute",
                    records=len(case.attacked),
                    figures=score.figures(),
                )
            )
    # What the noise costs the task: the same classifier on clean vectors and on what training has.
    labels_B, clean = case.attacked.labels, case.victim.clean(case.attacked.ids).seen
    outcome.utility["clean"] = _accuracy(first[STATES, "oblivious"], clean, labels_B)
    outcome.utility["released"] = (
        use_for_training(states, size.pooled, case.attacked.ids, draws[0].seen, labels_B, skip=True)
        if case.skip
        else _accuracy(first[STATES, "adaptive"], draws[0].seen, labels_B)
    )


def _accuracy(probe: Attack, seen: Seen, labels_B: NDArray[np.int64]) -> Figure:
    score = AttributeScore(labels_B)
    score.add(probe.attack(seen))
    return score.figures()["accuracy"]


def _side_channels(case: Case, lab: Lab, outcome: Outcome, say: Say) -> None:
    records = case.attacked.ids[:100]
    outcome.findings.extend(channels.averaging(lab, records))
    outcome.findings.extend(channels.linkage(case.victim, records))
    if not case.gradients:
        outcome.untested.append("Gradients: with a tail none leaves this device, so there is nothing to attack.")
    elif case.top is not None and case.attacked.labels is not None:
        found = channels.label_from_gradients(case.victim, case.top, case.head, case.attacked, case.readout)
        outcome.findings.extend(found)
    elif case.attacked.loss_masks is None:
        outcome.untested.append("Labels from head gradients: the records carry no label.")
    if case.victim.importance is not None:
        outcome.findings.append(channels.importance_from_radius(case.victim.observe(records), case.victim.importance))
    say("side channels", 1.0)


def _scored(
    built: Sequence[Attack], variant: str, public: PublicText, draws: Sequence[Observed], say: Say
) -> tuple[AttackRow, Tensor]:
    """One row over all seeds, and the guesses of the first."""
    score = InversionScore(public)
    guesses = []
    for attack, draw in zip(built, draws, strict=True):
        guesses.append(attack.attack(draw.seen, say=say))
        score.add(guesses[-1], draw)
    row = AttackRow(
        name=built[0].name,
        variant=variant,
        knowledge=built[0].knowledge,
        kind="inversion",
        records=len(draws[0].seen),
        figures=score.figures(),
    )
    return row, guesses[0]


def _examples(ids_NK: Tensor, observed: Observed, count: int = 8) -> Iterator[Recovered]:
    """Records spread over the attacked ones."""
    total = len(observed.seen)
    for record in np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist():
        mine = observed.seen.record_N == record
        yield Recovered(truth=observed.ids_N[mine].tolist(), guess=ids_NK[mine, 0].tolist())
