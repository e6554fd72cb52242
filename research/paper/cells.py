"""One cell of the evaluation: a mechanism on a data set with one seed, measured once and kept in a file of its own.

The seed rules which test records are attacked, the order of training and the draws of tables; the noise comes from the
operating system, as in a job.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privtune.device.audit.attacks.attack import Clean, Lab, Say
from privtune.device.audit.attacks.gradients import simulated
from privtune.device.audit.case import build_case, whole_model
from privtune.device.audit.metrics import AttributeScore
from privtune.device.audit.suite import Case, attack_gradients, attack_releases
from privtune.device.audit.utility import DeviceAlone, Utility, measure_utility
from privtune.device.audit.victim import Victim
from privtune.device.data.encode import EncodedDataset, encode_causal_lm, encode_classification
from privtune.device.data.records import Columns, Record, Records
from privtune.device.data.source import label_order
from privtune.device.inference.text_scores import require_packages, score_texts
from privtune.device.model.tail import skip_share
from privtune.device.noise.public_texts import declare
from privtune.device.release.noising import Noise, build_noise
from privtune.device.release.own_records import OwnRecords
from privtune.shared.errors import DataInvalid, StorageFull
from privtune.shared.modeling.package import BottomPackage, bottom_from_model
from privtune.shared.modeling.partition import Partition
from research.paper.answers import prompt_of, write_answers
from research.paper.datasets import DataSet, Example, Parts, draw
from research.paper.perplexity import score, tune
from research.paper.settings import Amount, Setting

VERSION = 1  # of what a cell's file says; another one is measured anew


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured. model: its short name."""

    data: DataSet
    model: str
    setting: Setting
    scale: str
    amount: Amount
    seed: int

    @property
    def file(self) -> str:
        """Its name in the folder of cells."""
        return f"{self.data.name}-{self.model}-{self.setting.name}-{self.scale}-{self.seed}.json"

    def question(self) -> dict[str, Any]:
        """All that decides the figures, apart from the code: as it stands in the file."""
        spec = self.setting.spec(self.data.task)
        facts = {
            "version": VERSION,
            "data": self.data.name,
            "model": self.model,
            "mechanism": self.setting.mechanism,
            "name": self.setting.name,
            "params": spec.params,
            "depth": self.setting.depth,
            "scale": self.scale,
            "seed": self.seed,
            "length": self.data.length,
            "sizes": self.amount.to_dict(self.data.task),
            **({"tail": self.setting.tail, "share": skip_share(self.data.task)} if self.setting.tail else {}),
        }
        written: dict[str, Any] = json.loads(json.dumps(facts))
        return written


def finished(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What the cell's file says; None where there is none, or one that answers another question."""
    try:
        found: dict[str, Any] = json.loads((folder / cell.file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("question") == cell.question() else None


def keep(folder: Path, cell: Cell, result: dict[str, Any]) -> None:
    """Write the cell's file, whole or not at all. Raises StorageFull."""
    path = folder / cell.file
    scratch = path.with_suffix(".part")
    text = json.dumps({"question": cell.question(), **_rounded(result)}, indent=None, separators=(",", ":"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text + "\n", encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise StorageFull(f"{path} can't be written: {error.strerror or error}") from error


class Bench:
    """A data set read and encoded once for all its cells, which also share what is built on clean vectors.

    work: tables and noised counts, never among the results.
    """

    def __init__(self, data: DataSet, model: str, folder: Path, amount: Amount, work: Path) -> None:
        self.data, self.amount, self._model = data, amount, model
        self._home = work / data.name
        if amount.answers and data.task == "causal-lm":
            require_packages()
        whole = data.load(folder)
        self._parts: Parts = draw(whole, train=amount.train, test=amount.test, public=amount.suite.public)
        self._references = _by_prompt(whole.test)
        self._labels = label_order(example.label for example in self._parts.train if example.label is not None)
        self._attributes = sorted({example.attribute for example in self._parts.public})
        self._declare()
        self._bottoms: dict[int, BottomPackage] = {}
        self._cases: dict[tuple[int, int], tuple[Case, dict[str, int], Clean]] = {}

    @cached_property
    def train(self) -> EncodedDataset:
        """The owner's records."""
        return self._encoded(self._parts.train)

    @cached_property
    def test(self) -> EncodedDataset:
        """The records that are scored."""
        return self._encoded(self._parts.test)

    @cached_property
    def public(self) -> EncodedDataset:
        """The attacker's records."""
        return self._encoded(self._parts.public)

    def measure(self, cell: Cell, say: Say) -> dict[str, Any]:
        """Utility, attacks and the statement of one cell."""
        parts = self._bottom(min(cell.setting.depth, self._embedding.n_layers - cell.setting.tail - 1))
        seeded = self._home / f"seed-{cell.seed}"
        own = OwnRecords(home=seeded, fingerprint=self.train.fingerprint, job=seeded / "job", data=self.train)
        noise = build_noise(parts, cell.setting.spec(self.data.task), parts.cut, self._home, own, progress=say)
        case, records, clean = self._case(parts, noise, cell.seed)
        return {
            "cut": parts.cut,
            "records": {"train": len(self.train), "test": len(self.test), **records},
            "utility": self._utility(case, parts, noise, cell, say),
            **self._attacks(case, clean, say),
            "statement": noise.mechanism.statement(noise.source).to_dict(),
        }

    def _case(self, parts: BottomPackage, noise: Noise, seed: int) -> tuple[Case, dict[str, int], Clean]:
        """What is attacked, how many records of each sort, and the attacks that all mechanisms at this cut share."""
        known = self._cases.get((parts.cut, seed))
        if known is not None:
            case, records, clean = known
            first = case.victim
            victim = Victim(parts.bottom, noise.mechanism, first.special_ids, noise.importance, first.states)
            return replace(case, victim=victim), records, clean
        order = np.random.default_rng(seed).permutation(len(self.test))[: self.amount.suite.attacked]
        case, records = build_case(
            parts,
            noise,
            self._by_attribute(order),
            np.arange(len(order)),
            size=self.amount.suite,
            seed=seed,
            public=(),
            max_length=self.data.length,
            whole=self._whole,
        )
        return self._cases.setdefault((parts.cut, seed), (case, records, Clean()))

    def _attacks(self, case: Case, clean: Clean, say: Say) -> dict[str, Any]:
        observed = case.victim.observe(case.attacked.ids)
        lab = Lab(case.public, case.victim, case.encoder, clean)
        outcome = attack_releases(case, lab, self.amount.suite, [observed], say=say)
        if case.attacked.loss_masks is not None and case.top is not None:
            attack_gradients(case, observed, simulated(case.attacked, observed, case.top, case.head), outcome)
        found = outcome.to_dict()
        return {"attacks": found["attacks"], "untested": found["untested"]}

    def _utility(self, case: Case, parts: BottomPackage, noise: Noise, cell: Cell, say: Say) -> dict[str, float]:
        if self.test.loss_masks is not None:
            return self._language(case, parts, noise, cell, say)
        cut, whole, count = parts.cut, self._whole, cell.setting.tail
        measure = partial(
            measure_utility,
            head=case.head,
            train=self.train,
            held_out=self.test,
            readout=case.readout,
            training=self.amount.training,
            seed=cell.seed,
            say=say,
        )
        if not count:
            return self._scores(measure(case.victim, whole.top(cut)))
        tail, below = whole.tail(count), whole.below(cut)
        found = self._scores(measure(case.victim, whole.top(cut, count), tail=tail, below=below))
        embedded = Victim(self._embedding.bottom, case.victim.mechanism, case.victim.special_ids)
        alone = measure(embedded, DeviceAlone(below, tail), clean=True)
        return {**found, "alone": float(alone.right_B.mean())}

    def _language(self, case: Case, parts: BottomPackage, noise: Noise, cell: Cell, say: Say) -> dict[str, float]:
        """Perplexity, and how near the written answers are to all references of their prompts."""
        top, training = self._whole.top(parts.cut), self.amount.training
        tuned = tune(case.victim, top, case.head, self.train, training=training, seed=cell.seed, say=say)
        told = score(tuned, case.victim, self.test)
        found = {"perplexity": told.perplexity, "token_accuracy": told.token_accuracy}
        # Of a mechanism that reads draws a growing text would show each word's draw anew: jobs refuse it too.
        if noise.mechanism.reads_draws or not self.amount.answers:
            return found
        asked = {example.prompt: place for place, example in enumerate(self._parts.test)}
        places = list(asked.values())[: self.amount.answers]
        ids, masks = self.test.ids, self.test.loss_masks or ()
        prompts = [prompt_of(ids[place], masks[place]) for place in places]
        texts = write_answers(parts, noise, tuned, prompts, longest=self.amount.longest, say=say)
        near = score_texts(texts, [self._references[self._parts.test[place].prompt] for place in places])
        return {**found, "rouge_l": near.rougeL, "bleu": near.bleu}

    def _scores(self, found: Utility) -> dict[str, float]:
        score = AttributeScore(np.asarray(self.test.labels))
        score.add(torch.eye(len(self._labels))[torch.from_numpy(found.told_B)])
        figures = score.figures()
        accuracy = figures["accuracy"]
        return {
            "accuracy": accuracy.value,
            "low": accuracy.low,
            "high": accuracy.high,
            "majority": accuracy.floor,
            "macro_f1": figures["macro_f1"].value,
        }

    def _by_attribute(self, attacked: NDArray[np.int64]) -> EncodedDataset:
        """The attacked records, then the attacker's, each with its attribute."""
        victims, public = self.test.pick(attacked), self.public
        examples = [*(self._parts.test[index] for index in attacked), *self._parts.public]
        numbers = [self._attributes.index(example.attribute) for example in examples]
        masks = None
        if victims.loss_masks is not None and public.loss_masks is not None:
            masks = (*victims.loss_masks, *public.loss_masks)
        return EncodedDataset(
            ids=(*victims.ids, *public.ids),
            labels=np.array(numbers, dtype=np.int64),
            loss_masks=masks,
            label_names=tuple(self._attributes),
        )

    @cached_property
    def _embedding(self) -> BottomPackage:
        """For its tokenizer and the number of blocks."""
        return self._bottom(0)

    @cached_property
    def _whole(self) -> Partition:
        return whole_model(self._model, self.data.task, len(self._labels))

    def _bottom(self, cut: int) -> BottomPackage:
        if cut not in self._bottoms:
            classes = max(len(self._labels), 2)
            self._bottoms[cut] = bottom_from_model(self._model, self.data.task, cut, num_labels=classes)
        return self._bottoms[cut]

    def _encoded(self, examples: Sequence[Example]) -> EncodedDataset:
        parts = self._embedding
        length = min(self.data.length, parts.max_positions or self.data.length)
        records = _records(self.data, examples)
        if self.data.task == "classification":
            return encode_classification(records, parts.tokenizer, length, self._labels)
        encoded = encode_causal_lm(records, parts.tokenizer, length)
        if encoded.dropped:
            raise DataInvalid(f"{encoded.dropped} prompts of {self.data.name} are longer than {length} tokens")
        return encoded

    def _declare(self) -> None:
        """The attacker's texts are what the owner knows as public text, too: both have the same."""
        path = self._home / "declared.txt"
        lines = [" ".join(" ".join(filter(None, (e.prompt, e.text, e.text2))).split()) for e in self._parts.public]
        try:
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageFull(f"{path} can't be written: {error.strerror or error}") from error
        declare(self._home, texts=path)


def _by_prompt(examples: Sequence[Example]) -> dict[str | None, list[str]]:
    """All texts that were written to each prompt."""
    found: dict[str | None, list[str]] = {}
    for example in examples:
        found.setdefault(example.prompt, []).append(example.text)
    return found


def _records(data: DataSet, examples: Sequence[Example]) -> Records:
    if data.task == "classification":
        columns = Columns(text="text", text2="text2" if examples[0].text2 is not None else None, label="label")
    else:
        columns = Columns(prompt="prompt", completion="text")
    items = tuple(
        Record(number=number, text=example.text, text2=example.text2, label=example.label, prompt=example.prompt)
        for number, example in enumerate(examples, start=1)
    )
    return Records(source=data.name, unit="row", columns=columns, items=items)


def _rounded(value: Any) -> Any:
    """Figures to four digits after the point: more would only tell of the noise, and make files large."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
