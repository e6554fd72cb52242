"""The owner's audit: from data, model, cut and mechanism to a verdict, before anything is sent.

Nothing here talks to a cloud. The page holds the owner's text: it is written for the owner's eyes only (mode 0600).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from device.audit.attacks.base import Lab, Say
from device.audit.frontier import place, strengths
from device.audit.prepare import build_case, choose, public_texts, whole_model
from device.audit.suite import Case, Outcome, Size, run_suite
from device.audit.verdict import judge
from device.data.encode import EncodedDataset, encode_causal_lm, encode_classification, encode_texts
from device.data.records import Records
from device.data.source import DataSource
from device.fitted import OwnRecords
from device.parts import build_noise
from shared import __version__
from shared.config import MechanismSpec, Task
from shared.errors import InvalidInput, StorageFull
from shared.modeling.package import BottomPackage, bottom_from_model

NOT_TESTED = (
    "An attacker with more computing power, a larger language model or far more text of your kind than the audit had.",
    "An attacker who already knows a part of a record (its template, a name, a quotation).",
    "Whether a given record was in the training data (membership), through the tuned model or otherwise.",
    "What lengths of records, times and the order of messages tell: these are visible to the cloud in any case.",
    "A malicious cloud that changes weights or gradients to learn more; the audit's attacker only looks.",
)


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What is audited.

    public_text: a file of texts that anyone may know, one a line; frontier: other strengths are measured as well.
    """

    model: str
    source: DataSource
    task: Task = "classification"
    labelled: bool = True
    cut: int = 1
    tail: int = 0
    mechanism: MechanismSpec
    max_length: int = 128
    public_text: Path | None = None
    size: Size
    seed: int = 0
    frontier: bool = False


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result: facts and figures without any text of the owner's, and the examples, which are such text."""

    document: dict[str, Any]
    examples: list[tuple[list[str], list[str]]]


def run_audit(request: AuditRequest, home: Path, say: Say, keep: Path | None = None) -> Audit:
    """Load, split, attack, judge. Raises DataInvalid (too few records), InvalidInput (a frontier without labels)."""
    began = time.monotonic()
    if request.frontier and not request.labelled:
        raise InvalidInput("--frontier sets what is read against what training keeps, and needs labels for that")
    other = list(strengths(request.mechanism)) if request.frontier else []
    parts, data = _parts_and_data(request)
    whole = whole_model(request.model, request.task, len(data.label_names))
    say("model and data", 1.0)
    with tempfile.TemporaryDirectory() as scratch:
        # What a mechanism learns from the records is learned for this audit only: nothing of it leaves or is kept.
        own = OwnRecords(home=Path(scratch), fingerprint=data.fingerprint, job=Path(scratch) / "job", data=data)
        noise = build_noise(parts, request.mechanism, request.cut, home, own, progress=say)
        case, records = build_case(
            parts,
            noise,
            data,
            choose(data, request.size, request.seed),
            size=request.size,
            seed=request.seed,
            public=public_texts(request.public_text, home),
            max_length=request.max_length,
            whole=whole,
        )
        case = replace(case, gradients=request.tail == 0)
        lab = Lab(case.public, case.victim, case.encoder)
        outcome = run_suite(case, lab, request.size, say=say, keep=keep)
        points = place(case, lab, request.size, outcome, other, say)
        statement = noise.mechanism.statement(noise.source)
    facts = {
        "model": request.model,
        "cut": request.cut,
        "tail": request.tail,
        "mechanism": request.mechanism.model_dump(),
        "size": request.size.name,
        "records": records,
        "seconds": round(time.monotonic() - began, 1),
        "statement": statement.to_dict(),
        "frontier": points,
    }
    return audit_of(facts, case, outcome, NOT_TESTED)


def audit_of(facts: dict[str, Any], case: Case, outcome: Outcome, not_tested: Sequence[str]) -> Audit:
    """Facts about the audit, and what it found, as a document; the examples in words."""
    found = outcome.to_dict()
    untested = found.pop("untested")
    document = {
        "privtune": __version__,
        "injection": case.victim.mechanism.injection,
        **facts,
        "verdict": asdict(judge(outcome)),
        **found,
        "not_tested": [*untested, *not_tested],
    }
    words = case.victim.mechanism.context.tokens
    examples = [(_words(e.truth, words), _words(e.guess, words)) for e in outcome.examples]
    return Audit(document=document, examples=examples)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read (mode 0600), whatever was there. Raises StorageFull."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise StorageFull(f"{path} can't be written: {error.strerror or error}") from error


def to_json(audit: Audit) -> str:
    """Facts and figures without text of the owner's."""
    return json.dumps(audit.document, indent=1) + "\n"


def _parts_and_data(request: AuditRequest) -> tuple[BottomPackage, EncodedDataset]:
    records = request.source.load(request.task, labelled=request.labelled)
    classes = len({record.label for record in records}) if request.labelled else 2
    parts = bottom_from_model(request.model, request.task, request.cut, num_labels=max(classes, 2))
    data = _encoded(records, request, parts)
    parts.check_ids(data.ids)
    return parts, data


def _encoded(records: Records, request: AuditRequest, parts: BottomPackage) -> EncodedDataset:
    longest = min(request.max_length, parts.max_positions or request.max_length)
    if request.task == "causal-lm":
        return encode_causal_lm(records, parts.tokenizer, longest)
    if request.labelled:
        return encode_classification(records, parts.tokenizer, longest)
    ids, truncated = encode_texts(records, parts.tokenizer, longest)
    return EncodedDataset(ids=ids, truncated=truncated)


def _words(ids: Sequence[int], tokens: Sequence[str]) -> list[str]:
    return [tokens[index] if 0 <= index < len(tokens) else "?" for index in ids]
