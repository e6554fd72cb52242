"""One setting measured: attacks on it and training on it, each kept as soon as it is done.

A setting is attacked as `privtune audit` attacks it (inversions only). Its utility is measured by training
(`privtune.device.audit.utility`). The attacked records are neither in the training data nor in the attacker's text.
With surrogates, noise is put on the text that they make; what is compared with it, the whole model and the device
alone, trains on the owner's own text, which needs no cloud.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.audit.case import choose_attacked, public_texts
from privtune.device.audit.engine import Depth, Engine
from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.audit.outcome import Outcome
from privtune.device.audit.suite import attack_releases
from privtune.device.audit.tuning.choice import Recovered, Value, Words, shown
from privtune.device.audit.tuning.request import TuneRequest, Watch
from privtune.device.audit.tuning.tuned_records import joined, labels_of, read_texts
from privtune.device.noise.public_texts import PublicTexts
from privtune.shared import __version__
from privtune.shared.errors import DataInvalid
from privtune.shared.job_spec import MechanismSpec

SETTINGS = "settings.jsonl"  # what was measured, in the output folder
NO_NOISE = MechanismSpec(name="none")
FIGURES: dict[Words, str] = {"content": "content_top1", "all": "top1"}


class Trials:
    """Model and data of a request, loaded once, and what was measured with them."""

    def __init__(self, request: TuneRequest, home: Path, out: Path, watch: Watch) -> None:
        self._request, self._home, self._watch = request, home, watch
        self._kept = MeasurementFile(out / SETTINGS, private=True)
        texts = read_texts(request)
        self._replacement = texts.replacement
        self._engine = Engine(request.model, "classification", len({record.label for record in texts.own[0]}), home)
        whole = self._engine.whole
        whole.check_tail(whole.check_cut(request.cut), request.tail)
        parts = self._engine.bottom(request.cut)
        self._max_length = min(request.max_length, parts.max_positions or request.max_length)
        self._own, self._sent, left_out = texts.encoded(parts, self._max_length)
        self._all = joined(self._sent)
        train, dev = self._sent.train, self._sent.held_out
        among = np.arange(len(train), len(self._all))
        self._attacked = choose_attacked(self._all, request.size, request.seed, among)
        self._public = public_texts(request.public_text, home)
        self._seconds: list[float] = []
        self._begun = 0
        self.majority = float(np.bincount(labels_of(dev)).max() / len(dev))
        self.records = {
            "train": len(train),
            "dev": len(dev),
            "dev_left_out": left_out,
            "attacked": len(self._attacked),
        }

    def facts(self, value: Value | None) -> dict[str, Any]:
        """The measurements of a setting (None: no noise), kept ones or new ones."""
        request = self._request
        spec = NO_NOISE if value is None else request.spec(value)
        name = "no noise" if value is None else f"{request.param}={shown(value)}"
        key = self._key(spec)
        found = self._begin(name, key)
        facts = found or self._measure(spec)
        if not found:
            self._kept.keep(key, facts)
        self._seconds.append(facts["seconds"])
        self._watch.end(name, facts, kept=found is not None)
        return facts

    def alone(self) -> list[str]:
        """Which dev records the same device gets right without a cloud, for each training seed; kept or new."""
        request, name, began = self._request, "the device alone", time.monotonic()
        key = f"alone-{_digest({**self._question, 'tail': request.tail})}"
        found = self._begin(name, key)
        if found is None:
            with tempfile.TemporaryDirectory() as scratch:
                noise = self._engine.noise(NO_NOISE, request.cut, self._own.train, Path(scratch))
                victim = self._engine.victim(noise, request.cut)
                depth = Depth(cut=request.cut, tail=request.tail).alone
                right = [
                    self._engine.utility_alone(
                        victim, depth, self._own, request.training, seed=seed, say=self._watch.say
                    ).right_B
                    for seed in range(request.size.seeds)
                ]
            found = {"right": _packed(right), "seconds": round(time.monotonic() - began, 1)}
            self._kept.keep(key, found)
            self._watch.end(name, found, kept=False)
        else:
            self._watch.end(name, found, kept=True)
        return list(found["right"])

    def _begin(self, name: str, key: str) -> dict[str, Any] | None:
        """Announce a measurement; what is kept of it."""
        request = self._request
        self._begun += 1
        total = 1 + len(request.values) + request.refine + request.measure_gain
        self._watch.begin(name, self._begun, total, self._seconds_left())
        return self._kept.find(key)

    def _seconds_left(self) -> float | None:
        """Estimated from the settings so far; None before the first, and when nothing is left."""
        request = self._request
        planned = [self._kept.find(self._key(request.spec(value))) for value in request.values]
        refined = max(0, self._begun - 1 - len(planned) - 1)
        todo = planned.count(None) + request.refine - refined
        return todo * sum(self._seconds) / len(self._seconds) if todo and self._seconds else None

    def _measure(self, spec: MechanismSpec) -> dict[str, Any]:
        began, request, say = time.monotonic(), self._request, self._watch.say
        with tempfile.TemporaryDirectory() as scratch:
            # What a mechanism learns from the records serves this measurement only.
            noise = self._engine.noise(spec, request.cut, self._sent.train, Path(scratch), say)
            case, _ = self._engine.case(
                noise,
                request.cut,
                self._all,
                self._attacked,
                size=request.size,
                seed=request.seed,
                public=self._public,
                max_length=self._max_length,
            )
            case = replace(case, labelled=None)  # inversions only
            depth = Depth(cut=request.cut, tail=0 if spec == NO_NOISE else request.tail, skip=request.skip)
            data = self._own if spec == NO_NOISE else self._sent
            right = [
                self._engine.utility(case.victim, depth, data, request.training, seed=seed, say=say).right_B
                for seed in range(request.size.seeds)
            ]
            draws = [case.victim.observe(case.attacked.ids) for _ in range(request.size.seeds)]
            lab = self._engine.lab(case, request.cut, request.seed)
            outcome = attack_releases(case, lab, request.size, draws, say=say)
        statement = noise.mechanism.statement(noise.source)
        if self._replacement is not None:
            statement = self._replacement.claim(statement)
        return {
            "mechanism": spec.model_dump(),
            "recovered": {words: worst(outcome, figure) for words, figure in FIGURES.items()},
            "right": _packed(right),
            "attacks": outcome.to_dict()["attacks"],
            "statement": statement.to_dict(),
            "seconds": round(time.monotonic() - began, 1),
        }

    def _key(self, spec: MechanismSpec) -> str:
        """Names everything that decides a measurement, so that another question finds nothing of this one."""
        params = {name: float(value) if isinstance(value, int) else value for name, value in spec.params.items()}
        request = self._request
        ends = {"tail": request.tail, "skip": request.skip} if request.tail and spec != NO_NOISE else {}
        return f"{spec.name}-{_digest({**self._question, **ends, 'mechanism': spec.name, 'params': params})}"

    @cached_property
    def _question(self) -> dict[str, Any]:
        weights = hashlib.sha256()
        for name, value in sorted(self._engine.whole.model.state_dict().items()):
            weights.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        request = self._request
        return {
            "version": __version__,
            "weights": weights.hexdigest(),
            "cut": request.cut,
            "records": [part.fingerprint for one in (self._own, self._sent) for part in (one.train, one.held_out)],
            "attacked": self._attacked.tolist(),
            "public": _digest([list(self._public), asdict(PublicTexts.load(self._home))]),
            "size": asdict(request.size),
            "training": asdict(request.training),
            "max_length": self._max_length,
            "seed": request.seed,
        }


def worst(outcome: Outcome, figure: str) -> dict[str, Any]:
    """The figure of the attack that serves an attacker who knows the mechanism best."""
    row = outcome.worst("adaptive", figure)
    if row is None:
        raise DataInvalid("no inversion attack could be run on these records")
    found = row.figures[figure]
    recovered = Recovered(
        value=found.value,
        low=found.low,
        high=found.high,
        floor=found.floor,
        attack=f"{row.name} {row.variant} ({row.knowledge})",
    )
    return asdict(recovered)


def _packed(right: Sequence[NDArray[np.bool_]]) -> list[str]:
    """A line of 0 and 1 for each seed."""
    return ["".join("01"[int(one)] for one in right_B) for right_B in right]


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
