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

import numpy as np

from device.audit.base import Say
from device.audit.public import PublicText, without_overlap
from device.audit.suite import Case, Outcome, Size, run_suite
from device.audit.victim import Victim
from device.data.encode import EncodedDataset, IntArray, encode_causal_lm, encode_classification, encode_texts
from device.data.source import DataSource
from device.fitted import OwnRecords, importance_for
from device.noise.public import PublicTexts, read_texts
from device.noise.randomness import noise_source
from device.noise.registry import build
from device.parts import noise_context
from shared import __version__
from shared.config import MechanismSpec, Task
from shared.errors import DataInvalid, InvalidInput, StorageFull
from shared.modeling.load import load_task_model
from shared.modeling.package import BottomPackage, bottom_from_model
from shared.modeling.partition import Partition

LEAST_RECORDS = 60
# The bar of docs/attacks.md: at most so much of content words and of all words for the best verdict.
LITTLE_CONTENT, LITTLE_ALL = 0.10, 0.20
MOST = 0.50


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What is audited. public_text: a file of texts that anyone may know, one a line."""

    model: str
    source: DataSource
    task: Task = "classification"
    labelled: bool = True
    cut: int = 1
    mechanism: MechanismSpec
    max_length: int = 128
    public_text: Path | None = None
    size: Size
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result: facts and figures without any text of the owner's, and the examples, which are such text."""

    document: dict[str, Any]
    examples: list[tuple[list[str], list[str]]]


def run_audit(request: AuditRequest, home: Path, say: Say, keep: Path | None = None) -> Audit:
    """Load, split, attack, judge. Raises DataInvalid when there are too few records."""
    began = time.monotonic()
    parts, data = _parts_and_data(request)
    say("model and data", 1.0)
    attacked, rest = _split(data, request)
    with tempfile.TemporaryDirectory() as scratch:
        # What a mechanism learns from the records is learned for this audit only: nothing of it leaves or is kept.
        own = OwnRecords(home=Path(scratch), fingerprint=data.fingerprint, job=Path(scratch) / "job", data=data)
        source = noise_source()
        context = noise_context(parts, request.cut, home, own, source=source, progress=say)
        mechanism = build(request.mechanism, context)
        importance = importance_for(mechanism.importance_from, context, own) if mechanism.uses_importance else None
        special = context.special_ids
        public_ids = _public_ids(request, home, parts, attacked)
        classes = len(data.label_names)
        partition = Partition(load_task_model(request.model, request.task, num_labels=max(classes, 2)))
        top = partition.top(request.cut)
        case = Case(
            victim=Victim(parts.bottom, mechanism, special, importance),
            attacked=attacked,
            public=PublicText([*public_ids, *rest.ids], special, candidates=context.usable_ids),
            labelled=PublicText(rest.ids, special, labels=rest.labels) if rest.labels is not None else None,
            top=top,
            encoder=top if partition.readout == "first" else None,
            head=partition.head() if rest.labels is not None else None,
            readout=partition.readout,
        )
        outcome = run_suite(case, request.size, say=say, keep=keep)
        statement = mechanism.statement(source)
    document = {
        "privtune": __version__,
        "model": request.model,
        "cut": request.cut,
        "injection": mechanism.injection,
        "mechanism": request.mechanism.model_dump(),
        "size": request.size.name,
        "records": {"attacked": len(attacked), "own_as_public": len(rest), "public": len(public_ids)},
        "seconds": round(time.monotonic() - began, 1),
        "verdict": asdict(judge(outcome)),
        "statement": statement.to_dict(),
        **outcome.to_dict(),
        "not_tested": [*outcome.untested, *NOT_TESTED],
    }
    del document["untested"]
    words = context.tokens
    examples = [(_words(e.truth, words), _words(e.guess, words)) for e in outcome.examples]
    return Audit(document=document, examples=examples)


NOT_TESTED = (
    "An attacker with more computing power, a larger language model or far more text of your kind than the audit had.",
    "An attacker who already knows a part of a record (its template, a name, a quotation).",
    "Whether a given record was in the training data (membership), through the tuned model or otherwise.",
    "What lengths of records, times and the order of messages tell: these are visible to the cloud in any case.",
    "A malicious cloud that changes weights or gradients to learn more; the audit's attacker only looks.",
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """level: little, some or most; text: one paragraph for people."""

    level: str
    headline: str
    text: str


def judge(outcome: Outcome) -> Verdict:
    """A plain-language verdict from the worst inversion of all, never better than the figures."""
    worst, content = outcome.worst("adaptive"), outcome.worst("adaptive", "content_top1")
    weaker = outcome.worst("oblivious")
    if worst is None or content is None or weaker is None:
        raise InvalidInput("no inversion attack was run, so there is nothing to judge")
    words, meaning = worst.figures["top1"], content.figures["content_top1"]
    if meaning.value > MOST or words.value > MOST:
        level, headline = "most", "Most of your text can be read back"
    elif meaning.high > LITTLE_CONTENT or words.high > LITTLE_ALL:
        level, headline = "some", "A part of your text can be read back"
    else:
        level, headline = "little", "These attacks read little of your text back"
    text = (
        f"An attacker who knows the mechanism names {_per_cent(words.value)} of all words and "
        f"{_per_cent(meaning.value)} of the content words (best attacks: {worst.name} {worst.variant}; {content.name} "
        f"{content.variant}). One who does not know it names {_per_cent(weaker.figures['top1'].value)}. Guessing the "
        f"commonest word everywhere, without seeing anything, names {_per_cent(words.floor)}. "
    )
    text += {
        "most": "Use more noise, another mechanism or a deeper cut, or do not send this data.",
        "some": "Look at the examples below: decide whether what is recovered there may be known to the cloud.",
        "little": "These are measured attacks, not a proof; what is proved is in the privacy statement.",
    }[level]
    return Verdict(level=level, headline=headline, text=text)


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
    longest = min(request.max_length, parts.max_positions or request.max_length)
    if request.task == "causal-lm":
        data = encode_causal_lm(records, parts.tokenizer, longest)
        return parts, replace(data, loss_masks=None)
    if request.labelled:
        return parts, encode_classification(records, parts.tokenizer, longest)
    ids, truncated = encode_texts(records, parts.tokenizer, longest)
    return parts, EncodedDataset(ids=ids, truncated=truncated)


def _split(data: EncodedDataset, request: AuditRequest) -> tuple[EncodedDataset, EncodedDataset]:
    """Records to attack, and the others, which stand in for text of the same kind that the attacker has."""
    if len(data) < LEAST_RECORDS:
        raise DataInvalid(f"an audit needs at least {LEAST_RECORDS} records, and there are {len(data)}")
    order = np.random.default_rng(request.seed).permutation(len(data))
    count = min(request.size.attacked, len(data) // 3)
    attacked, rest = data.pick(order[:count]), data.pick(order[count : count + request.size.public])
    return attacked, rest.pick(np.array(without_overlap(rest.ids, attacked.ids), dtype=np.int64))


def _public_ids(
    request: AuditRequest, home: Path, parts: BottomPackage, attacked: EncodedDataset
) -> Sequence[IntArray]:
    texts = read_texts(request.public_text) if request.public_text else PublicTexts.load(home).texts
    if not texts:
        return []
    taken = list(texts[: request.size.public])
    encoded = parts.tokenizer(taken, truncation=True, max_length=request.max_length)["input_ids"]
    rows = [np.array(ids_T, dtype=np.int32) for ids_T in encoded if len(ids_T)]
    return [rows[index] for index in without_overlap(rows, attacked.ids)]


def _words(ids: Sequence[int], tokens: Sequence[str]) -> list[str]:
    return [tokens[index] if 0 <= index < len(tokens) else "?" for index in ids]


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} in 100" if share >= 0.01 or share == 0 else "fewer than 1 in 100"
