"""The five data sets: who has which records, the task, and the attribute to infer.

Every set has three parts that share no record: `train` (the owner's), `test` (scored; part of it attacked) and `public`
(the attacker's text of the same kind, with the attribute). `draw` cuts them to size and removes from `public` every
record that shares six consecutive words with a test record.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from privtune.device.data.table_files import read_table
from privtune.shared.errors import DataInvalid, InvalidInput
from privtune.shared.job_spec import Task

GRAM = 6  # consecutive words
_LEAST_PUBLIC = 20
_COMMENTS = 4  # of one author per record: a single one reveals next to nothing about its author
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One record.

    prompt, text: for generation, a prompt and its completion.
    label: its class; None for generation.
    attribute: the target of AIA.
    group: records of one group stay in one part (an author, or a form that texts are written from).
    """

    text: str
    text2: str | None = None
    prompt: str | None = None
    label: str | None = None
    attribute: str
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The records of the owner, those that are scored, and the attacker's."""

    train: Sequence[Example]
    test: Sequence[Example]
    public: Sequence[Example]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set.

    name: as on the command line.
    attribute: in words.
    length: most tokens per record.
    note: for the report.
    """

    name: str
    task: Task
    model: Literal["encoder", "decoder"]
    attribute: str
    length: int
    note: str
    load: Callable[[Path], Parts]


def draw(found: Parts, *, train: int, test: int, public: int) -> Parts:
    """This many records of each part, always the same ones, without test records of a class that the others lack.

    Raises DataInvalid if too little is left of the attacker's text.
    """
    scored = _some(found.test, test, 1)
    known = {gram for example in scored for gram in grams(example)}
    free = [example for example in found.public if known.isdisjoint(grams(example))]
    if len(free) < _LEAST_PUBLIC:
        raise DataInvalid(
            f"{len(free)} of {len(found.public)} records are left for the attacker: the others share {GRAM} "
            "consecutive words with a test record"
        )
    mine, theirs = _some(found.train, train, 2), _some(free, public, 3)
    labels, attributes = {example.label for example in mine}, {example.attribute for example in theirs}
    kept = [example for example in scored if example.label in labels and example.attribute in attributes]
    return Parts(train=mine, test=kept, public=theirs)


def grams(example: Example) -> Iterator[tuple[str, ...]]:
    """Six consecutive words of each text separately; the whole of a shorter text.

    Prompts do not count: here they are forms, whose parts recur by design.
    """
    for text in (example.text, example.text2):
        words = _WORD.findall((text or "").lower())
        for start in range(max(len(words) - GRAM + 1, min(len(words), 1))):
            yield tuple(words[start : start + GRAM])


def by_group(examples: Sequence[Example], shares: Sequence[float]) -> list[list[Example]]:
    """Parts of about these shares, each group within one; a record without a group is its own group."""
    names = [example.group or f"\0{number}" for number, example in enumerate(examples)]
    groups = sorted(set(names))
    order = np.random.default_rng(0).permutation(len(groups))
    ends = np.round(np.cumsum(shares) * len(groups)).astype(int)
    part = {groups[group]: int(np.searchsorted(ends, place, side="right")) for place, group in enumerate(order)}
    out: list[list[Example]] = [[] for _ in shares]
    for name, example in zip(names, examples, strict=True):
        out[part[name]].append(example)
    return out


def _some(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    order = np.random.default_rng(seed).permutation(len(examples))[:count]
    return [examples[index] for index in order]


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    table = read_table(str(folder / name))
    return [dict(zip(table.columns, cells, strict=True)) for _, cells in table.rows]


def _labelled(folder: Path, name: str, text: str, text2: str | None = None) -> list[Example]:
    """Classification records whose attribute is their label."""
    return [
        Example(
            text=row[text],
            text2=None if text2 is None else row[text2],
            label=str(row["label"]),
            attribute=str(row["label"]),
        )
        for row in _rows(folder, name)
    ]


def _sst2(folder: Path) -> Parts:
    return Parts(
        train=_labelled(folder, "sst2/train.tsv", "sentence"),
        test=_labelled(folder, "sst2/test.tsv", "sentence"),
        public=_labelled(folder, "rotten_tomatoes/all.tsv", "sentence"),
    )


def _trec(folder: Path) -> Parts:
    owner, public = by_group(_labelled(folder, "trec/train.tsv", "sentence"), (0.6, 0.4))
    return Parts(train=owner, test=_labelled(folder, "trec/test.tsv", "sentence"), public=public)


def _mrpc(folder: Path) -> Parts:
    owner, public = by_group(_labelled(folder, "mrpc/train.tsv", "sentence1", "sentence2"), (0.6, 0.4))
    return Parts(train=owner, test=_labelled(folder, "mrpc/test.tsv", "sentence1", "sentence2"), public=public)


def _e2e(folder: Path) -> Parts:
    def examples(name: str) -> list[Example]:
        return [
            Example(prompt=row["mr"], text=row["ref"], attribute=_area(row["mr"]), group=row["mr"])
            for row in _rows(folder, name)
        ]

    owner, public = by_group(examples("e2e_nlg/dev.jsonl"), (0.5, 0.5))
    return Parts(train=owner, test=examples("e2e_nlg/test.jsonl"), public=public)


def _area(form: str) -> str:
    found = re.search(r"area\[([^]]*)\]", form)
    return found[1] if found else "not told"


def _synthpai(folder: Path) -> Parts:
    by_author: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(folder, "synthpai/comments.jsonl"):
        by_author[row["author"]].append(row)
    examples = []
    for author, rows in by_author.items():
        some = rows[0]
        settled = some["relationship_status"] in ("married", "divorced", "widowed")
        base = Example(
            text="",
            label="married once" if settled else "never married",
            attribute="under 35" if int(some["age"]) < 35 else "35 and over",
            group=author,
        )
        for start in range(0, len(rows) - _COMMENTS + 1, _COMMENTS):
            joined = " ".join(row["text"] for row in rows[start : start + _COMMENTS])
            examples.append(replace(base, text=joined))
    owner, test, public = by_group(examples, (0.45, 0.25, 0.3))
    return Parts(train=owner, test=test, public=public)


_ALL = (
    DataSet(
        name="sst2",
        task="classification",
        model="encoder",
        attribute="the label (sentiment)",
        length=64,
        note="SST-2 sentences; the attacker has Rotten Tomatoes sentences with their sentiment.",
        load=_sst2,
    ),
    DataSet(
        name="synthpai",
        task="classification",
        model="encoder",
        attribute="the author's age, under 35 or not",
        length=128,
        note=f"{_COMMENTS} comments of one made-up author; the task is whether that author was ever married; owner, "
        "test and attacker have different authors.",
        load=_synthpai,
    ),
    DataSet(
        name="trec",
        task="classification",
        model="encoder",
        attribute="the label (kind of question)",
        length=48,
        note="TREC questions in six classes; the attacker has two fifths of the training set.",
        load=_trec,
    ),
    DataSet(
        name="mrpc",
        task="classification",
        model="encoder",
        attribute="the label (paraphrase or not)",
        length=96,
        note="MRPC pairs; the attacker has two fifths of the training set.",
        load=_mrpc,
    ),
    DataSet(
        name="e2e_nlg",
        task="causal-lm",
        model="decoder",
        attribute="the area that the form names",
        length=256,
        note="E2E: a form, then a sentence about it; owner and attacker have halves of the dev set without a common "
        "form. Overlap is judged by the sentences: parts of forms recur by design.",
        load=_e2e,
    ),
)
DATASETS: dict[str, DataSet] = {data.name: data for data in _ALL}


def data_set(name: str) -> DataSet:
    """The data set of this name. Raises InvalidInput, which lists the names."""
    if name not in DATASETS:
        raise InvalidInput(f"there is no data set '{name}'; there are: {', '.join(DATASETS)}", param="datasets")
    return DATASETS[name]
