"""One setting measured: attacks and training on it, kept in a folder as it is done.

A setting is attacked as `privtune audit` attacks it (inversions only) and its use is measured by training
(`privtune.device.audit.utility`), on records that are in neither the training data nor the attacker's text.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtune.device.audit.attacks.attack import Lab, Say
from privtune.device.audit.case import build_case, choose, public_texts, whole_model
from privtune.device.audit.public_knowledge import without_overlap
from privtune.device.audit.report.document import write_private
from privtune.device.audit.suite import Case, Outcome, Size, attack_releases
from privtune.device.audit.tuning.choice import Recovered, Value, Words, shown
from privtune.device.audit.tuning.request import TuneRequest, Watch
from privtune.device.audit.utility import measure_utility
from privtune.device.data.encode import EncodedDataset, encode_classification
from privtune.device.noise.public_texts import PublicTexts
from privtune.device.release.noising import build_noise
from privtune.device.release.own_records import OwnRecords
from privtune.shared import __version__
from privtune.shared.errors import DataInvalid
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.package import bottom_from_model

LEAST_DEV = 30
SETTINGS = "settings"  # folder of what was measured
NO_NOISE = MechanismSpec(name="none")
FIGURES: dict[Words, str] = {"content": "content_top1", "all": "top1"}


class Bench:
    """Model and data, loaded once, and the folder of what was measured with them."""

    def __init__(self, request: TuneRequest, home: Path, out: Path, watch: Watch) -> None:
        self._request, self._home, self._out, self._watch = request, home, out, watch
        train, dev = (source.load("classification") for source in (request.train, request.dev))
        classes = len({record.label for record in train})
        self._whole = whole_model(request.model, "classification", classes)
        self._whole.check_tail(self._whole.check_cut(request.cut), request.tail)
        self._parts = bottom_from_model(request.model, "classification", request.cut, num_labels=max(classes, 2))
        self._max_length = min(request.max_length, self._parts.max_positions or request.max_length)
        self._train = encode_classification(train, self._parts.tokenizer, self._max_length)
        encoded = encode_classification(dev, self._parts.tokenizer, self._max_length, self._train.label_names)
        self._parts.check_ids((*self._train.ids, *encoded.ids))
        self._dev = apart(encoded, self._train, dev.source)
        self._all = joined(self._train, self._dev)
        among = np.arange(len(self._train), len(self._all))
        self._attacked = choose(self._all, request.size, request.seed, among)
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
        """What is known of a setting (None: no noise), from the folder or measured now and kept there."""
        request = self._request
        spec = NO_NOISE if value is None else request.spec(value)
        name = "no noise" if value is None else f"{request.param}={shown(value)}"
        path = self._path(spec)
        found = _read(path)
        self._begun += 1
        self._watch.begin(name, self._begun, 1 + len(request.values) + request.refine, self._seconds_left())
        facts = found or self._measure(spec)
        if not found:
            _keep(path, facts)
        self._seconds.append(facts["seconds"])
        self._watch.end(name, facts, kept=found is not None)
        return facts

    def _seconds_left(self) -> float | None:
        """By what a setting took so far; None before the first, and where nothing is left."""
        request = self._request
        planned = [self._path(request.spec(value)) for value in request.values]
        refined = max(0, self._begun - 1 - len(planned) - 1)
        todo = sum(not path.exists() for path in planned) + request.refine - refined
        return todo * sum(self._seconds) / len(self._seconds) if todo and self._seconds else None

    def _measure(self, spec: MechanismSpec) -> dict[str, Any]:
        began, request, say = time.monotonic(), self._request, self._watch.say
        with tempfile.TemporaryDirectory() as scratch:
            # What a mechanism learns from the records is learned for this measurement only.
            own = OwnRecords(
                home=Path(scratch), fingerprint=self._train.fingerprint, job=Path(scratch) / "job", data=self._train
            )
            noise = build_noise(self._parts, spec, request.cut, self._home, own, progress=say)
            case, _ = build_case(
                self._parts,
                noise,
                self._all,
                self._attacked,
                size=request.size,
                seed=request.seed,
                public=self._public,
                max_length=self._max_length,
                whole=self._whole,
            )
            tail = 0 if spec == NO_NOISE else request.tail
            right = [self._right(case, tail, seed, say) for seed in range(request.size.seeds)]
            outcome = inversions(case, request.size, say)
        return {
            "mechanism": spec.model_dump(),
            "recovered": {words: worst(outcome, figure) for words, figure in FIGURES.items()},
            "right": ["".join("01"[int(told)] for told in right_B) for right_B in right],
            "attacks": outcome.to_dict()["attacks"],
            "statement": noise.mechanism.statement(noise.source).to_dict(),
            "seconds": round(time.monotonic() - began, 1),
        }

    def _right(self, case: Case, tail: int, seed: int, say: Say) -> NDArray[np.bool_]:
        """Which dev records a model trained on this setting's releases tells right."""
        request, whole = self._request, self._whole
        found = measure_utility(
            case.victim,
            whole.top(request.cut, tail),
            whole.head(),
            self._train,
            self._dev,
            readout=whole.readout,
            training=request.training,
            tail=whole.tail(tail) if tail else None,
            below=whole.below(request.cut) if request.skip == "tuned" else None,
            skip=request.skip != "none",
            seed=seed,
            say=say,
        )
        return found.right_B

    def _path(self, spec: MechanismSpec) -> Path:
        """Named by all that decides a measurement, so that another question finds nothing of this one."""
        params = {name: float(value) if isinstance(value, int) else value for name, value in spec.params.items()}
        request = self._request
        ends = {"tail": request.tail, "skip": request.skip} if request.tail and spec != NO_NOISE else {}
        key = _digest({**self._question, **ends, "mechanism": spec.name, "params": params})
        return self._out / SETTINGS / f"{spec.name}-{key}.json"

    @cached_property
    def _question(self) -> dict[str, Any]:
        weights = hashlib.sha256()
        for name, value in sorted(self._whole.model.state_dict().items()):
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


def inversions(case: Case, size: Size, say: Say) -> Outcome:
    """The suite's inversion attacks on fresh releases; attributes and side channels are the audit's business."""
    case = replace(case, labelled=None)
    lab = Lab(case.public, case.victim, case.encoder)
    draws = [case.victim.observe(case.attacked.ids) for _ in range(size.seeds)]
    return attack_releases(case, lab, size, draws, say=say)


def worst(outcome: Outcome, figure: str) -> dict[str, Any]:
    """The figure of the attack that serves whoever knows the mechanism best."""
    row = outcome.worst("adaptive", figure)
    if row is None:
        raise DataInvalid("no inversion attack could be run on these records")
    told = row.figures[figure]
    recovered = Recovered(
        value=told.value,
        low=told.low,
        high=told.high,
        floor=told.floor,
        attack=f"{row.name} {row.variant} ({row.knowledge})",
    )
    return asdict(recovered)


def apart(dev: EncodedDataset, train: EncodedDataset, source: str) -> EncodedDataset:
    """The dev records that training does not have. Raises DataInvalid where few are, or fewer than half."""
    free = without_overlap(dev.ids, train.ids)
    shared = len(dev) - len(free)
    if shared > len(free):
        raise DataInvalid(
            f"{source}: {shared:,} of {len(dev):,} dev records are training records too, so nothing can be told from "
            "them. Give --dev other records than --data, or leave it out to hold a part of --data out."
        )
    if len(free) < LEAST_DEV:
        raise DataInvalid(
            f"{source}: tuning needs at least {LEAST_DEV} dev records that training lacks, and there are {len(free)}."
        )
    return dev.pick(np.array(free, dtype=np.int64))


def joined(train: EncodedDataset, dev: EncodedDataset) -> EncodedDataset:
    """Training records, then dev records; the attacker has what is not attacked."""
    labels = np.concatenate([labels_of(train), labels_of(dev)])
    return EncodedDataset(ids=train.ids + dev.ids, labels=labels, label_names=train.label_names)


def labels_of(data: EncodedDataset) -> NDArray[np.int64]:
    """Class numbers. Raises DataInvalid where there are none."""
    if data.labels is None:
        raise DataInvalid("tuning needs labelled records")
    return data.labels


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _read(path: Path) -> dict[str, Any] | None:
    """What was kept; None where nothing was or it is damaged: then it is measured anew."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _keep(path: Path, facts: dict[str, Any]) -> None:
    """Write whole or not at all."""
    scratch = path.with_suffix(".part")
    write_private(scratch, json.dumps(facts, indent=1) + "\n")
    os.replace(scratch, path)
