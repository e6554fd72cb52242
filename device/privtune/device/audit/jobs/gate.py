"""The gate before a job: the audit's inversion attacks on the job's own records, against the policy's thresholds.

home/audits/KEY.json keeps each verdict: the same data, noise, size, thresholds and public texts are attacked once.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.audit.attacks import gradients
from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.case import build_case, choose_attacked, public_texts, whole_model
from privtune.device.audit.identifying import FIGURE, hidden_words
from privtune.device.audit.metrics import Figure
from privtune.device.audit.outcome import AttackRow
from privtune.device.audit.sizes import FULL, QUICK, Size
from privtune.device.audit.suite import attack_releases, attack_simulated_gradients
from privtune.device.data.encode import EncodedDataset
from privtune.device.home.policy import AuditRule
from privtune.device.release.noising import Noise
from privtune.device.surrogates.own_words import OwnWords, Words
from privtune.shared import __version__
from privtune.shared.at_rest import read_text
from privtune.shared.errors import AuditRefused, InvalidInput, JobPaused, StorageFull
from privtune.shared.files import make_folder, write_json
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.wording import counted

FOLDER = "audits"
SIZES: dict[str, Size] = {"quick": QUICK, "full": FULL}


@dataclass(frozen=True, kw_only=True)
class Gated:
    """The job to judge.

    scope: names its noise, model, cut and codec.
    fingerprint: of its data.
    own_words: of each record of the file, what surrogates did with its words; empty without surrogates.
    """

    spec: JobSpec
    data: EncodedDataset
    fingerprint: str
    parts: BottomPackage
    noise: Noise
    scope: str
    local_model: str | None
    own_words: Sequence[OwnWords] = ()

    @cached_property
    def longest(self) -> int:
        """Tokens of a record at most."""
        return self.spec.train.longest(self.parts.max_positions)

    @cached_property
    def hidden(self) -> list[Words]:
        """Of each record of `data`, the words that an attack must not name; empty without surrogates."""
        return hidden_words(self.own_words, self.data, self.longest, self.parts.tokenizer) if self.own_words else []

    @property
    def clear(self) -> bool:
        """Whether words that surrogates leave alone are in clear on purpose."""
        return self.spec.surrogates.on and self.spec.mechanism.name == "none"


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """One limit of the rule, and what the worst attack reaches. chance: counts beside the limit, not against it."""

    what: str
    limit: float
    worst: dict[str, Any]
    chance: bool = False

    @property
    def broken(self) -> bool:
        return bool(self.worst["high"] - (self.worst["floor"] if self.chance else 0.0) > self.limit)

    @property
    def allowed(self) -> str:
        beyond = f" beyond {100 * self.worst['floor']:.1f}% by chance" if self.chance else ""
        return f"allowed: {100 * self.limit:g}%{beyond}"


def hold(rule: AuditRule, job: Gated, home: Path, tell: Callable[[str], None], stop: threading.Event) -> str:
    """Return the verdict if the worst attack stays within the rule.

    Raises AuditRefused with the figures if it does not, JobPaused if `stop` is set meanwhile (an interrupted audit is
    not kept), DataInvalid for too few records, InvalidInput for a language model without the owner's own copy,
    StorageFull.
    """
    path = home / FOLDER / f"{_key(rule, job, home)}.json"
    found = _known(path)
    if found is None:
        tell(f"auditing this data and noise before anything is sent ({rule.size}; Ctrl-C pauses)")
        found = _attacked(rule, job, home, tell, stop)
        _keep(path, found)
    else:
        tell(f"reusing the audit of {found['day']}: same data, noise, size and thresholds")
    bars = _bars(rule, job, found)
    if found[FIGURE] is None and any(job.hidden):
        raise AuditRefused(
            "The audit refuses the job: words were replaced, and no attack was judged by them, so the bound "
            "max_replaced can't be met. Nothing of the data was sent. `audit: {size: full}` attacks more records"
        )
    over = [
        f"{100 * bar.worst['high']:.1f}% of {bar.what} ({bar.allowed}; {bar.worst['attack']} names "
        f"{100 * bar.worst['value']:.1f}%)"
        for bar in bars
        if bar.broken
    ]
    if over:
        raise AuditRefused(
            f"The audit refuses the job: an attacker may name up to {' and '.join(over)}. Nothing of the data was "
            f"sent. {_remedies(bars, found)}"
        )
    passed = [f"{100 * bar.worst['high']:.1f}% of {bar.what} ({bar.allowed})" for bar in bars]
    verdict = [f"audit passed: the attacks name at most {' and '.join(passed)}"] if passed else []
    if job.spec.surrogates.on and found[FIGURE] is None:
        verdict.append(
            f"{'' if passed else 'audit passed: '}surrogates replaced nothing in what leaves of "
            f"{counted(len(job.data), 'record')}, so max_replaced bounds nothing in this file; if something in it does "
            "identify, name it in your own terms (--own-terms)"
        )
    if job.clear:
        verdict.append(
            "the audit does not count other words that surrogates leave in clear: the cloud can read all of them"
        )
    for line in verdict:
        tell(line)
    return "; ".join(verdict)


def _remedies(bars: Sequence[_Bar], found: dict[str, Any]) -> str:
    """What to do about the bounds that are broken."""
    said = []
    if any(bar.broken and not bar.chance for bar in bars):
        said.append("`privtune audit` shows the sentences; use more noise, another mechanism or a deeper cut")
        if _by_gradients(found):
            said.append("a language model's gradients leave only without a tail (--tail)")
    if any(bar.broken and bar.chance for bar in bars):
        said.append(
            "words that are replaced in one place and in clear in another are listed by `privtune surrogates show`; "
            "your own terms (--own-terms) are replaced everywhere"
        )
    return "; ".join(said)


def _bars(rule: AuditRule, job: Gated, found: dict[str, Any]) -> list[_Bar]:
    bars = []
    if not job.clear:
        bars = [
            _Bar(what="content words", limit=rule.max_content_top1, worst=found["content_top1"]),
            _Bar(what="all words", limit=rule.max_top1, worst=found["top1"]),
        ]
    if found[FIGURE] is not None:
        bars.append(
            _Bar(what="the words that were replaced", limit=rule.max_replaced, worst=found[FIGURE], chance=True)
        )
    return bars


def _attacked(
    rule: AuditRule, job: Gated, home: Path, tell: Callable[[str], None], stop: threading.Event
) -> dict[str, Any]:
    """The worst attacks' figures. Only inversions run, since the rule is about them."""

    def say(what: str, share: float) -> None:
        if stop.is_set():
            raise JobPaused("stopped during the audit; nothing of the data was sent")
        if share >= 1:
            tell(f"audit: {what}")

    gradients_leak = job.spec.task == "causal-lm" and not job.spec.tail
    size = SIZES[rule.size]
    whole = None
    if job.local_model is not None:
        whole = whole_model(job.local_model, job.spec.task, len(job.data.label_names))
    case, _ = build_case(
        job.parts,
        job.noise,
        job.data,
        _attacked_records(job, size),
        size=size,
        seed=0,
        public=public_texts(None, home),
        max_length=job.longest,
        whole=whole,
        hidden=job.hidden,
    )
    lab = Lab(case.public, case.victim, case.encoder)
    draws = [case.victim.observe(case.attacked.ids) for _ in range(size.seeds)]
    outcome = attack_releases(replace(case, labelled=None), lab, size, draws, say=say)
    if gradients_leak:
        attack_simulated_gradients(case, draws[0], outcome)
    say("done", 1.0)
    replaced = outcome.worst_replaced()
    return {
        "day": time.strftime("%Y-%m-%d"),
        "records": len(case.attacked),
        **{figure: _facts(outcome.worst("adaptive", figure), figure) for figure in ("top1", "content_top1")},
        FIGURE: None if replaced is None else _facts(replaced, FIGURE),
    }


def _attacked_records(job: Gated, size: Size) -> NDArray[np.int64]:
    """A random sample; records with replaced words first, or these may not be judged: half of it where all count."""
    chosen = choose_attacked(job.data, size, 0)
    first = choose_attacked(job.data, size, 0, np.flatnonzero([bool(words) for words in job.hidden]))
    first = first[: len(chosen) if job.clear else (len(chosen) + 1) // 2]
    return np.concatenate([first, chosen[~np.isin(chosen, first)]])[: len(chosen)]


def _by_gradients(found: dict[str, Any]) -> bool:
    """Whether the worst attack reads gradients, against which more noise does not help."""
    return any(found[figure]["attack"].startswith(gradients.NAME) for figure in ("top1", "content_top1"))


def _facts(row: AttackRow | None, figure: str) -> dict[str, Any]:
    if row is None:
        raise InvalidInput("no inversion attack was run, so there is nothing to judge")
    found: Figure = row.figures[figure]
    return {"attack": f"{row.name} {row.variant}, {row.knowledge}", **asdict(found)}


def _key(rule: AuditRule, job: Gated, home: Path) -> str:
    texts = hashlib.sha256("\0".join(public_texts(None, home)).encode()).hexdigest()
    attacker = [job.local_model is not None, job.spec.tail > 0]
    words = [sorted(mine) for mine in job.hidden]  # of texts that read the same once these are replaced
    facts = [__version__, job.fingerprint, job.scope, rule.model_dump_json(), *attacker, texts, words]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _known(path: Path) -> dict[str, Any] | None:
    """A kept verdict; None if there is none, or it can't be read (it is then replaced)."""
    try:
        found: dict[str, Any] = json.loads(read_text(path))
        return found if {"day", "top1", "content_top1", FIGURE} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _keep(path: Path, found: dict[str, Any]) -> None:
    """Write the verdict; only its owner can read it."""
    try:
        make_folder(path.parent, 0o700)
        write_json(path, found, private=True)
    except OSError as error:
        raise StorageFull(f"{path.parent} can't be written: {error.strerror or error}") from error
