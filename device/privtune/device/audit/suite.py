"""One run of the attacks against one mechanism: which ones apply, and in which order.

The attacked records and the attacker's text are disjoint; this is checked. Each seed attacks a fresh draw of the
releases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.audit.attacks import channels, gradients
from privtune.device.audit.attacks.attack import Attack, Lab, Say, silent
from privtune.device.audit.attacks.attribute import AttributeSettings, PooledAttribute, SequenceAttribute, TextAttribute
from privtune.device.audit.attacks.beam import Beam
from privtune.device.audit.attacks.codebook import Codebook, CodebookSettings
from privtune.device.audit.attacks.learned import LearnedInversion, SequenceInversion, Tokenwise
from privtune.device.audit.attacks.optimise import Optimise
from privtune.device.audit.case import Case
from privtune.device.audit.metrics import AttributeScore, Figure, InversionScore
from privtune.device.audit.observed import Observed, Seen
from privtune.device.audit.outcome import AttackRow, Outcome, RecoveredText
from privtune.device.audit.probe import use_for_training
from privtune.device.audit.sizes import Size
from privtune.device.audit.victim import Knowledge
from privtune.device.runtime.memory import fast_memory

KNOWLEDGE: tuple[Knowledge, Knowledge] = ("oblivious", "adaptive")
STATES = "mean of final states"
_EXAMPLES = 8  # records that the page shows


def run_suite(case: Case, lab: Lab, size: Size, *, say: Say = silent, keep: Path | None = None) -> Outcome:
    """Run every attack that applies. keep: a folder for the built attacks. Raises InvalidInput when texts overlap."""
    draws = [case.victim.observe(case.attacked.ids) for _ in range(size.seeds)]
    say("attacked releases", 1.0)
    outcome = attack_releases(case, lab, size, draws, say=say, keep=keep)
    if case.gradients:
        attack_simulated_gradients(case, draws[0], outcome)
    _side_channels(case, lab, outcome, say)
    return outcome


@fast_memory()
def attack_releases(
    case: Case,
    lab: Lab,
    size: Size,
    draws: Sequence[Observed],
    *,
    seed: int = 0,
    say: Say = silent,
    keep: Path | None = None,
) -> Outcome:
    """Inversion and attribute attacks on releases of `case.attacked`, simulated or really sent.

    draws: one for each of the size's seeds, which count from `seed`.
    Raises InvalidInput when the attacker's text and the attacked one overlap.
    """
    case.public.check_disjoint(case.attacked.ids)
    run = _SuiteRun(case=case, lab=lab, size=size, draws=draws, first_seed=seed, say=say, keep=keep)
    if case.labelled is not None:
        case.labelled.check_disjoint(case.attacked.ids)
    inverters = run.invert()
    if case.top is None:
        run.outcome.untested.append("Attribute inference and utility: this device has no blocks above the cut.")
    elif case.labelled is not None and case.attacked.labels is not None:
        built = run.infer_attributes(inverters)
        run.estimate_utility(built)
    else:
        run.outcome.untested.append("Attribute inference and utility: the records carry no label or attribute.")
    return run.outcome


@fast_memory()
def attack_attributes(
    case: Case,
    lab: Lab,
    size: Size,
    draws: Sequence[Observed],
    inverters: Mapping[Knowledge, LearnedInversion],
    *,
    seed: int = 0,
) -> Outcome:
    """The attribute attacks alone. inverters: of each attacker, for AIA-3; see `attack_releases` for the rest."""
    run = _SuiteRun(case=case, lab=lab, size=size, draws=draws, first_seed=seed)
    run.infer_attributes(inverters)
    return run.outcome


def attack_simulated_gradients(case: Case, observed: Observed, outcome: Outcome) -> None:
    """Text of a language model's records from the gradients of a simulated first step; nothing for other tasks."""
    if case.attacked.loss_masks is not None and case.top is not None:
        sent_back = gradients.simulated(case.attacked, observed, case.top, case.head)
        attack_gradients(case, observed, sent_back, outcome)


def attack_gradients(case: Case, observed: Observed, sent_back: Iterable[gradients.SentBack], outcome: Outcome) -> None:
    """Text of a language model's records from the gradients that training sends back, simulated or recorded."""
    guesses = gradients.read_back(case.head, sent_back, observed)
    score = InversionScore(case.public, case.hidden)
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
class _SuiteRun:
    """The attacks of one run. Oblivious ones are built once for all runs that share `lab.clean`."""

    case: Case
    lab: Lab
    size: Size
    draws: Sequence[Observed]
    first_seed: int = 0
    say: Say = silent
    keep: Path | None = None
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.size.seeds)

    def build(self, attack: Attack, lab: Lab, seed: int, variant: str) -> Attack:
        attack = self.lab.clean.known(attack, variant, seed)
        if not attack.fitted:
            attack.fit(lab, seed=seed, say=self.say)
        if self.keep is not None:
            name = "-".join([attack.name, *variant.split(), attack.knowledge, str(seed)]).lower()
            attack.save(self.keep / name)
        return attack

    def invert(self) -> dict[Knowledge, LearnedInversion]:
        """Every inversion attack. Returns the sequence inverter of each attacker."""
        shortens = self.case.victim.mechanism.shortens
        best: tuple[float, Tensor | None] = (-1.0, None)
        draws = [draw.first(self.size.inverted) for draw in self.draws]
        inverters: dict[Knowledge, LearnedInversion] = {}
        for knowledge in KNOWLEDGE:
            for variant, make in _inversion_attacks(knowledge, self.size):
                built = [self.build(make(), self.lab, seed, variant) for seed in self.seeds]
                guesses = self._score(built, variant, draws)
                if isinstance(built[0], SequenceInversion):
                    inverters[knowledge] = built[0]
                content = self.outcome.rows[-1].figures["content_top1"].value
                if content > best[0]:
                    best = content, guesses
            if shortens:
                continue
            for variant, attack, records in self._slow(knowledge, inverters[knowledge]):
                few = [draw.first(records) for draw in draws]
                self._score([self.build(attack, self.lab, self.first_seed, variant)] * len(few), variant, few)
        if shortens:
            self.outcome.untested.append(
                "EIA-3 (optimisation): it needs one row per token, and this mechanism shortens records."
            )
        if best[1] is not None:
            self.outcome.examples.extend(_examples(best[1], draws[0]))
        return inverters

    def _slow(self, knowledge: Knowledge, inverter: LearnedInversion) -> Iterator[tuple[str, Attack, int]]:
        """The attacks that only part of the records can afford, and how many that is."""
        size, reader = self.size, self.case.reader
        if size.optimise_records:
            yield "warm-started", Optimise(knowledge, inverter, size.optimise), size.optimise_records
        if reader is not None and size.beam_records:
            yield "language model", Beam(knowledge, reader, size.beam), size.beam_records

    def _score(self, built: Sequence[Attack], variant: str, draws: Sequence[Observed]) -> Tensor:
        """Add one row over all seeds. Returns the guesses of the first one."""
        score = InversionScore(self.case.public, self.case.hidden)
        guesses = []
        for attack, draw in zip(built, draws, strict=True):
            guesses.append(attack.attack(draw.seen, say=self.say))
            score.add(guesses[-1], draw)
        self._add(built[0], variant, "inversion", len(draws[0].seen), score.figures())
        return guesses[0]

    def infer_attributes(self, inverters: Mapping[Knowledge, LearnedInversion]) -> dict[tuple[str, Knowledge], Attack]:
        """Every attribute attack. Returns those of the first seed, by variant and attacker."""
        case, labels_B = self.case, self.case.attacked.labels
        first: dict[tuple[str, Knowledge], Attack] = {}
        if case.labelled is None or labels_B is None:
            return first
        lab, states = (Lab(case.labelled, case.victim, encoder) for encoder in (case.encoder, case.top))
        for knowledge in KNOWLEDGE:
            made = _attribute_attacks(knowledge, self.size.pooled, self.size.attribute, inverters[knowledge])
            for variant, make in made:
                score = AttributeScore(labels_B)
                for seed, draw in zip(self.seeds, self.draws, strict=True):
                    attack = self.build(make(), states if variant == STATES else lab, seed, variant)
                    first.setdefault((variant, knowledge), attack)
                    score.add(attack.attack(draw.seen))
                self._add(attack, variant, "attribute", len(case.attacked), score.figures())
        return first

    def estimate_utility(self, built: Mapping[tuple[str, Knowledge], Attack]) -> None:
        """What the noise costs the task: AIA-1's classifier on clean vectors, and on what training has."""
        case, labels_B, draw = self.case, self.case.attacked.labels, self.draws[0].seen
        if case.labelled is None or labels_B is None:
            return
        clean = case.victim.clean(case.attacked.ids).seen
        self.outcome.utility["clean"] = _accuracy(built[STATES, "oblivious"], clean, labels_B)
        if case.skip:
            states = Lab(case.labelled, case.victim, case.top)
            released = use_for_training(states, self.size.pooled, case.attacked.ids, draw, labels_B, skip=True)
        else:
            released = _accuracy(built[STATES, "adaptive"], draw, labels_B)
        self.outcome.utility["released"] = released

    def _add(self, attack: Attack, variant: str, kind: str, records: int, figures: dict[str, Figure]) -> None:
        self.outcome.rows.append(
            AttackRow(
                name=attack.name,
                variant=variant,
                knowledge=attack.knowledge,
                kind=kind,
                records=records,
                figures=figures,
            )
        )


def _inversion_attacks(knowledge: Knowledge, size: Size) -> Iterator[tuple[str, Callable[[], Attack]]]:
    for metric in size.metrics:
        settings = CodebookSettings(metric=metric)
        yield metric, lambda settings=settings: Codebook(knowledge, settings)  # type: ignore[misc]
    yield "token-wise MLP", lambda: Tokenwise(knowledge, size.tokenwise)
    yield "sequence inverter", lambda: SequenceInversion(knowledge, size.sequence)


def _attribute_attacks(
    knowledge: Knowledge, pooled: AttributeSettings, sequence: AttributeSettings, inverter: LearnedInversion
) -> Iterator[tuple[str, Callable[[], Attack]]]:
    """AIA-1 to AIA-3, each with what it looks at. inverter: recovers the text for AIA-3."""
    on_states = replace(pooled, view="states")
    yield "mean of rows", lambda: PooledAttribute(knowledge, pooled)
    yield STATES, lambda: PooledAttribute(knowledge, on_states)
    yield "sequence of rows", lambda: SequenceAttribute(knowledge, sequence)
    yield "recovered text", lambda: TextAttribute(knowledge, inverter, pooled)


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


def _examples(ids_NK: Tensor, observed: Observed) -> Iterator[RecoveredText]:
    """Records spread evenly over the attacked ones."""
    total = len(observed.seen)
    for record in np.unique(np.linspace(0, total - 1, min(_EXAMPLES, total)).round().astype(int)).tolist():
        mine = observed.seen.record_N == record
        yield RecoveredText(truth=observed.ids_N[mine].tolist(), guess=ids_NK[mine, 0].tolist())
