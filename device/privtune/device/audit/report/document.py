"""An audit as a document: facts and figures without any of the owner's text, and the examples, which are such text.

Only the owner can read the files of an audit (mode 0600).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privtune.device.audit.case import Case
from privtune.device.audit.outcome import Outcome
from privtune.device.audit.report.verdict import judge
from privtune.shared import __version__
from privtune.shared.errors import StorageFull
from privtune.shared.files import make_folder, write_text

NOT_TESTED = (
    "An attacker with more computing power, a larger language model or far more text of your kind than the audit had.",
    "An attacker who already knows part of a record (its template, a name, a quotation).",
    "Whether a given record was in the training data (membership), by the tuned model or what training sends.",
    "What the lengths of records, times and the order of messages reveal: the cloud sees these in any case.",
    "A malicious cloud that changes weights or gradients to learn more: the audit's attacker is passive.",
)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of an audit.

    document: JSON-ready.
    examples: words of records and of the guesses: the owner's text.
    """

    document: dict[str, Any]
    examples: list[tuple[list[str], list[str]]]


def audit_of(facts: dict[str, Any], case: Case, outcome: Outcome, not_tested: Sequence[str]) -> Audit:
    """The audit from its facts and what it found; the examples become words."""
    found = outcome.to_dict()
    untested = found.pop("untested")
    clear = facts["surrogates"] is not None and facts["mechanism"]["name"] == "none"
    document = {
        "privtune": __version__,
        "injection": case.victim.mechanism.injection,
        **facts,
        "verdict": asdict(judge(outcome, clear=clear)),
        **found,
        "not_tested": [*untested, *not_tested],
    }
    words = case.victim.mechanism.context.tokens
    examples = [(_words(e.truth, words), _words(e.guess, words)) for e in outcome.examples]
    return Audit(document=document, examples=examples)


def write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner can read (mode 0600). Raises StorageFull."""
    try:
        make_folder(path.parent)
        write_text(path, text, private=True)
    except OSError as error:
        raise StorageFull(f"{path} can't be written: {error.strerror or error}") from error


def to_json(audit: Audit) -> str:
    """Facts and figures, without any of the owner's text."""
    return json.dumps(audit.document, indent=1) + "\n"


def _words(ids: Sequence[int], tokens: Sequence[str]) -> list[str]:
    return [tokens[index] if 0 <= index < len(tokens) else "?" for index in ids]
