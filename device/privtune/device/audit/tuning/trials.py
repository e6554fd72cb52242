"""One setting measured: attacks on it and training on it, each kept as soon as it is done.

A setting is attacked as `privtune audit` attacks it (inversions only). Its utility is measured by training
(`privtune.device.audit.utility`). The attacked records are neither in the training data nor in the attacker's text.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.audit.attacker_text import without_overlap
from privtune.device.audit.case import choose_attacked, public_texts
from privtune.device.audit.engine import Depth, Engine, Labelled
from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.audit.outcome import Outcome
from privtune.device.audit.suite import attack_releases
from privtune.device.audit.tuning.choice import Recovered, Value, Words, shown
from privtune.device.audit.tuning.request import TuneRequest, Watch
from privtune.device.data.encode import EncodedDataset, encode_classification
from privtune.device.noise.public_texts import PublicTexts
from privtune.shared import __version__
from privtune.shared.errors import DataInvalid
from privtune.shared.job_spec import MechanismSpec

LEAST_DEV = 30
SETTINGS = "settings.jsonl"  # what was measured, in the output folder
NO_NOISE = MechanismSpec(name="none")
FIGURES: dict[Words, str] = {"content": "content_top1", "all": "top1"}


class Trials:
    """Model and data of a request, loaded once, and what was measured with them."""

    def __init__(self, request: TuneRequest, home: Path, out: Path, watch: Watch) -> None:
        self._request, self._home, self._watch = request, home, watch
        self._kept = MeasurementFile(out / SETTINGS, private=True)
        train, dev = (source.load("classification") for source in (request.train, request.dev))
        self._engine = Engine(request.model, "classification", len({record.label for record in train}), home)
        whole = self._engine.whole
        whole.check_tail(whole.check_cut(request.cut), request.tail)
        parts = self._engine.bottom(request.cut)
        self._max_length = min(request.max_length, parts.max_positions or request.max_length)
        self._train = encode_classification(train, parts.tokenizer, self._max_length)
        encoded = encode_classification(dev, parts.tokenizer, self._max_length, self._train.label_names)
        parts.check_ids((*self._train.ids, *encoded.ids))
        self._dev = apart(encoded, self._train, dev.source)
        self._all = joined(self._train, self._dev)
        among = np.arange(len(self._train), len(self._all))
        self._attacked = choose_attacked(self._all, request.size, request.seed, among)
        self._public = public_texts(request.public_text, home)
        self._seconds: list[float] = []
        self._begun = 0
        self.majority = float(np.bincount(labels_of(self._dev)).max() / len(self._dev))
        self.records = {
            "train": len(self._train),
            "dev": len(self._dev),
            "dev_left_out": len(encoded) - len(self._dev),
            "attacked": len(self._attacked),
        }

    def facts(self, value: Value | None) -> dict[str, Any]:
        """The measurements of a setting (None: no noise), kept ones or new ones."""
        request = self._request
        spec = NO_NOISE if value is None else request.spec(value)
        name = "no noise" if value is None else f"{request.param}={shown(value)}"
        key = self._key(spec)
        found = self._kept.find(key)
        self._begun += 1
        self._watch.begin(name, self._begun, 1 + len(request.values) + request.refine, self._seconds_left())
        facts = found or self._measure(spec)
        if not found:
            self._kept.keep(key, facts)
        self._seconds.append(facts["seconds"])
        self._watch.end(name, facts, kept=found is not None)
        return facts

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
            noise = self._engine.noise(spec, request.cut, self._train, Path(scratch), say)
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
            data = Labelled(train=self._train, held_out=self._dev)
            right = [
                self._engine.utility(case.victim, depth, data, request.training, seed=seed, say=say).right_B
                for seed in range(request.size.seeds)
            ]
            draws = [case.victim.observe(case.attacked.ids) for _ in range(request.size.seeds)]
            lab = self._engine.lab(case, request.cut, request.seed)
            outcome = attack_releases(case, lab, request.size, draws, say=say)
        return {
            "mechanism": spec.model_dump(),
            "recovered": {words: worst(outcome, figure) for words, figure in FIGURES.items()},
            "right": ["".join("01"[int(one)] for one in right_B) for right_B in right],
            "attacks": outcome.to_dict()["attacks"],
            "statement": noise.mechanism.statement(noise.source).to_dict(),
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
            "train": self._train.fingerprint,
            "dev": self._dev.fingerprint,
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


def apart(dev: EncodedDataset, train: EncodedDataset, source: str) -> EncodedDataset:
    """The dev records that training does not have. Raises DataInvalid if they are few, or fewer than half."""
    free = without_overlap(dev.ids, train.ids)
    shared = len(dev) - len(free)
    if shared > len(free):
        raise DataInvalid(
            f"{source}: {shared:,} of {len(dev):,} dev records are training records too, so nothing can be learned "
            "from them. Give --dev other records than --data, or leave it out to hold part of --data out."
        )
    if len(free) < LEAST_DEV:
        raise DataInvalid(
            f"{source}: tuning needs at least {LEAST_DEV} dev records that training lacks, and there are {len(free)}."
        )
    return dev.pick(np.array(free, dtype=np.int64))


def joined(train: EncodedDataset, dev: EncodedDataset) -> EncodedDataset:
    """Training records, then dev records. The attacker has those that are not attacked."""
    labels = np.concatenate([labels_of(train), labels_of(dev)])
    return EncodedDataset(ids=train.ids + dev.ids, labels=labels, label_names=train.label_names)


def labels_of(data: EncodedDataset) -> NDArray[np.int64]:
    """Class numbers. Raises DataInvalid for unlabelled records."""
    if data.labels is None:
        raise DataInvalid("tuning needs labelled records")
    return data.labels


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
