"""Measures the cells of one data set: utility, attacks and the mechanism's statement.

The seed decides which test records are attacked, the order of training and the draws of tables. The noise comes from
the operating system, as in a job.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privtune.device.audit.attacks.attack import Say
from privtune.device.audit.case import Case
from privtune.device.audit.engine import Depth, Engine, Labelled
from privtune.device.audit.metrics import AttributeScore
from privtune.device.audit.suite import attack_releases, attack_simulated_gradients
from privtune.device.audit.utility import Utility
from privtune.device.data.encode import EncodedDataset, encode_causal_lm, encode_classification
from privtune.device.data.records import Columns, Record, Records
from privtune.device.data.source import label_order
from privtune.device.inference.text_scores import require_packages, score_texts
from privtune.device.noise.public_texts import declare
from privtune.device.release.noising import Noise
from privtune.shared.errors import DataInvalid, StorageFull
from privtune.shared.files import write_text
from research.paper.cell import PaperCell
from research.paper.datasets import DataSet, Example, Parts, draw
from research.paper.perplexity import score, tune
from research.paper.scales import Amount
from research.paper.written_answers import prompt_of, write_answers


class PaperEvaluation:
    """A data set, read and encoded once for all its cells.

    Args:
        model: folder, hub id or GGUF.
        folder: of data sets.
        work: folder of tables and noised counts, which are no results.
    """

    def __init__(self, data: DataSet, model: str, folder: Path, amount: Amount, work: Path) -> None:
        self.data, self.amount = data, amount
        self._home = work / data.name
        if amount.answers and data.task == "causal-lm":
            require_packages()
        whole = data.load(folder)
        self._parts: Parts = draw(whole, train=amount.train, test=amount.test, public=amount.suite.public)
        self._references = _by_prompt(whole.test)
        self._labels = label_order(example.label for example in self._parts.train if example.label is not None)
        self._attributes = sorted({example.attribute for example in self._parts.public})
        self._declare()
        self._engine = Engine(model, data.task, len(self._labels), self._home)

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

    def measure(self, cell: PaperCell, say: Say) -> dict[str, Any]:
        """Utility, attacks and the statement of one cell."""
        setting = cell.setting
        cut = min(setting.depth, self._engine.bottom(0).n_layers - setting.tail - 1)
        spec, folder = setting.spec(self.data.task), self._home / f"seed-{cell.seed}"
        noise = self._engine.noise(spec, cut, self.train, folder, say)
        case, records = self._case(noise, cut, cell.seed)
        return {
            "cut": cut,
            "records": {"train": len(self.train), "test": len(self.test), **records},
            "utility": self._utility(case, noise, Depth(cut=cut, tail=setting.tail, skip="tuned"), cell.seed, say),
            **self._attacks(case, cut, cell.seed, say),
            "statement": noise.mechanism.statement(noise.source).to_dict(),
        }

    def _case(self, noise: Noise, cut: int, seed: int) -> tuple[Case, dict[str, int]]:
        order = np.random.default_rng(seed).permutation(len(self.test))[: self.amount.suite.attacked]
        return self._engine.case(
            noise,
            cut,
            self._by_attribute(order),
            np.arange(len(order)),
            size=self.amount.suite,
            seed=seed,
            public=(),
            max_length=self.data.length,
        )

    def _attacks(self, case: Case, cut: int, seed: int, say: Say) -> dict[str, Any]:
        observed = case.victim.observe(case.attacked.ids)
        lab = self._engine.lab(case, cut, seed)
        outcome = attack_releases(case, lab, self.amount.suite, [observed], say=say)
        attack_simulated_gradients(case, observed, outcome)
        found = outcome.to_dict()
        return {"attacks": found["attacks"], "untested": found["untested"]}

    def _utility(self, case: Case, noise: Noise, depth: Depth, seed: int, say: Say) -> dict[str, float]:
        if self.test.loss_masks is not None:
            return self._language(case, noise, depth.cut, seed, say)
        data, training = Labelled(train=self.train, held_out=self.test), self.amount.training
        found = self._scores(self._engine.utility(case.victim, depth, data, training, seed=seed, say=say))
        if not depth.tail:
            return found
        alone = self._engine.utility_alone(case.victim, depth, data, training, seed=seed, say=say)
        return {**found, "alone": float(alone.right_B.mean())}

    def _language(self, case: Case, noise: Noise, cut: int, seed: int, say: Say) -> dict[str, float]:
        """Perplexity, and how close the generated answers are to all references of their prompts."""
        top, training = self._engine.whole.top(cut), self.amount.training
        tuned = tune(case.victim, top, case.head, self.train, training=training, seed=seed, say=say)
        scored = score(tuned, case.victim, self.test)
        found = {"perplexity": scored.perplexity, "token_accuracy": scored.token_accuracy}
        # With a mechanism that reads draws, a growing text would show every word's draw again; jobs refuse it too.
        if noise.mechanism.reads_draws or not self.amount.answers:
            return found
        asked = {example.prompt: place for place, example in enumerate(self._parts.test)}
        places = list(asked.values())[: self.amount.answers]
        ids, masks = self.test.ids, self.test.loss_masks or ()
        prompts = [prompt_of(ids[place], masks[place]) for place in places]
        parts = self._engine.bottom(cut)
        texts = write_answers(parts, noise, tuned, prompts, longest=self.amount.longest, say=say)
        near = score_texts(texts, [self._references[self._parts.test[place].prompt] for place in places])
        return {**found, "rouge_l": near.rougeL, "bleu": near.bleu}

    def _scores(self, found: Utility) -> dict[str, float]:
        score = AttributeScore(np.asarray(self.test.labels))
        score.add(torch.eye(len(self._labels))[torch.from_numpy(found.predicted_B)])
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
        """The attacked records, then the attacker's, each with its attribute as its label."""
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

    def _encoded(self, examples: Sequence[Example]) -> EncodedDataset:
        parts = self._engine.bottom(0)
        length = min(self.data.length, parts.max_positions or self.data.length)
        records = _records(self.data, examples)
        if self.data.task == "classification":
            return encode_classification(records, parts.tokenizer, length, self._labels)
        encoded = encode_causal_lm(records, parts.tokenizer, length)
        if encoded.dropped:
            raise DataInvalid(f"{encoded.dropped} prompts of {self.data.name} are longer than {length} tokens")
        return encoded

    def _declare(self) -> None:
        """The attacker's texts are also the owner's declared public text: both have the same."""
        path = self._home / "declared.txt"
        lines = [" ".join(" ".join(filter(None, (e.prompt, e.text, e.text2))).split()) for e in self._parts.public]
        try:
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_text(path, "\n".join(lines) + "\n")
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
