"""An audit as a document: facts and figures without any text of the owner's, and the examples, which are such text.

What is written of an audit is written for the owner's eyes only (mode 0600).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privtune.device.audit.case import Case
from privtune.device.audit.outcome import Outcome
from privtune.device.audit.report.verdict import judge
from privtune.shared import __version__
from privtune.shared.errors import StorageFull

NOT_TESTED = (
    "An attacker with more computing power, a larger language model or far more text of your kind than the audit had.",
    "An attacker who already knows a part of a record (its template, a name, a quotation).",
    "Whether a given record was in the training data (membership), through the tuned model or otherwise.",
    "What lengths of records, times and the order of messages tell: these are visible to the cloud in any case.",
    "A malicious cloud that changes weights or gradients to learn more; the audit's attacker only looks.",
)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result: facts and figures without any text of the owner's, and the examples, which are such text."""

    document: dict[str, Any]
    examples: list[tuple[list[str], list[str]]]


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


def _words(ids: Sequence[int], tokens: Sequence[str]) -> list[str]:
    return [tokens[index] if 0 <= index < len(tokens) else "?" for index in ids]
