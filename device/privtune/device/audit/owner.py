"""The owner's audit: from data, model, cut and mechanism to a verdict, before anything is sent. It needs no cloud."""

from __future__ import annotations

import secrets
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from privtune.device.audit.attacks.attack import Lab, Say
from privtune.device.audit.case import Case, build_case, choose_attacked, public_texts
from privtune.device.audit.engine import Depth, Engine, Labelled
from privtune.device.audit.identifying import hidden_words
from privtune.device.audit.linking import linked_records
from privtune.device.audit.membership import membership
from privtune.device.audit.report.document import NOT_TESTED, Audit, audit_of
from privtune.device.audit.sizes import Size
from privtune.device.audit.strengths import place, strengths
from privtune.device.audit.suite import run_suite
from privtune.device.audit.utility import UtilityTraining
from privtune.device.data.encode import EncodedDataset, encode_causal_lm, encode_classification, encode_texts
from privtune.device.data.records import Records
from privtune.device.data.source import DataSource, own_terms
from privtune.device.surrogates.own_words import OwnWords
from privtune.device.surrogates.replacement import TRAINED, Replacement
from privtune.device.surrogates.surrogates import SECRET_BYTES, Surrogates
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import MechanismSpec, Skip, SurrogateSpec, Task
from privtune.shared.modeling.bottom_package import BottomPackage


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What is audited.

    skip: the skip connection from clean vectors into a tail.
    public_text: a file of texts that anyone may know, one per line.
    frontier: whether to measure other strengths of the mechanism as well.
    gain: whether to measure what the cloud adds; epochs: of training for that.
    """

    model: str
    source: DataSource
    task: Task = "classification"
    labelled: bool = True
    cut: int = 1
    tail: int = 0
    skip: Skip = "frozen"
    mechanism: MechanismSpec
    surrogates: SurrogateSpec = field(default_factory=SurrogateSpec)
    max_length: int = 128
    public_text: Path | None = None
    size: Size
    seed: int = 0
    frontier: bool = False
    gain: bool = False
    epochs: int = 3


def run_audit(request: AuditRequest, home: Path, say: Say, keep: Path | None = None) -> Audit:
    """Load, split, attack, judge.

    Raises DataInvalid (too few records), InvalidInput (a frontier or a cloud gain without labels).
    """
    began = time.monotonic()
    for flag, asked in (("--frontier", request.frontier), ("--gain", request.gain)):
        if asked and not request.labelled:
            raise InvalidInput(f"{flag} compares accuracies, and needs labels for that")
    other = list(strengths(request.mechanism)) if request.frontier else []
    words: list[OwnWords] = []
    records_of, surrogates, replacement = _records(request, words)
    classes = len({record.label for record in records_of[0]}) if request.labelled else 2
    engine = Engine(request.model, request.task, classes, home)
    parts = engine.bottom(request.cut)
    data = _encoded(records_of[-1], request, parts)
    parts.check_ids(data.ids)
    engine.whole.check_tail(request.cut, request.tail)
    say("model and data", 1.0)
    with tempfile.TemporaryDirectory() as scratch:
        # What a mechanism learns from the records serves this audit only: none of it leaves or is kept.
        noise = engine.noise(request.mechanism, request.cut, data, Path(scratch), say)
        case, records = build_case(
            parts,
            noise,
            data,
            choose_attacked(data, request.size, request.seed),
            size=request.size,
            seed=request.seed,
            public=public_texts(request.public_text, home),
            max_length=request.max_length,
            whole=engine.whole,
            hidden=hidden_words(words, data, _longest(request, parts), parts.tokenizer),
        )
        case = replace(case, gradients=request.tail == 0, skip=request.tail > 0 and request.skip != "none")
        lab = Lab(case.public, case.victim, case.encoder)
        outcome = run_suite(case, lab, request.size, say=say, keep=keep)
        outcome.add_replaced(case.hidden)
        gain = (
            _gain(request, engine, case, (_encoded(records_of[0], request, parts), data), say) if request.gain else None
        )
        if surrogates is not None:
            again = surrogates.under(secrets.token_bytes(SECRET_BYTES))
            outcome.findings.extend(linked_records(*records_of, lambda own: again.records(own, TRAINED)[0]))
        outcome.findings.extend(membership(noise.mechanism, data, request.seed))
        points = place(case, lab, request.size, outcome, other, say)
        statement = noise.mechanism.statement(noise.source)
        statement = statement if replacement is None else replacement.claim(statement)
    facts = {
        "model": request.model,
        "cut": request.cut,
        "tail": request.tail,
        "skip": request.skip if request.tail else None,
        "mechanism": request.mechanism.model_dump(),
        "size": request.size.name,
        "records": records,
        "seconds": round(time.monotonic() - began, 1),
        "statement": statement.to_dict(),
        "surrogates": None if replacement is None else asdict(replacement),
        "frontier": points,
        "gain": gain,
    }
    return audit_of(facts, case, outcome, NOT_TESTED)


def _records(
    request: AuditRequest, words: list[OwnWords]
) -> tuple[tuple[Records, Records], Surrogates | None, Replacement | None]:
    """The owner's records, those that would be sent, and what replaced them; each audit has a secret of its own.

    words: gets what became of each record's words.
    """
    terms = own_terms(request.surrogates, request.source)
    own = request.source.load(request.task, labelled=request.labelled)
    if not request.surrogates.on:
        return (own, own), None, None
    surrogates = Surrogates(request.surrogates, secrets.token_bytes(SECRET_BYTES), terms)
    sent, coverage = surrogates.records(own, TRAINED, own_words=words)
    return (own, sent), surrogates, Replacement.of(surrogates, coverage)


def _gain(
    request: AuditRequest, engine: Engine, case: Case, forms: tuple[EncodedDataset, EncodedDataset], say: Say
) -> tuple[float, float, float]:
    """The cloud gain on a fifth of the records, which neither side trains on. forms: own records, and as sent."""
    order = np.random.default_rng(request.seed).permutation(len(forms[0]))
    held_out, train = np.split(order, [len(order) // 5])
    own, sent = (Labelled(train=form.pick(train), held_out=form.pick(held_out)) for form in forms)
    depth = Depth(cut=request.cut, tail=request.tail, skip=request.skip)
    training = UtilityTraining(epochs=request.epochs)
    return engine.gain(case.victim, depth, own, sent, training, seeds=request.size.seeds, say=say)


def _longest(request: AuditRequest, parts: BottomPackage) -> int:
    return min(request.max_length, parts.max_positions or request.max_length)


def _encoded(records: Records, request: AuditRequest, parts: BottomPackage) -> EncodedDataset:
    longest = _longest(request, parts)
    if request.task == "causal-lm":
        return encode_causal_lm(records, parts.tokenizer, longest)
    if request.labelled:
        return encode_classification(records, parts.tokenizer, longest)
    ids, truncated = encode_texts(records, parts.tokenizer, longest)
    return EncodedDataset(ids=ids, truncated=truncated, places=tuple(range(len(ids))))
