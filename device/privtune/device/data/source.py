"""`DataSource`: a data set as the owner describes it, and the records it yields.

Sampling and the held-out part depend only on the seed and the file, so that a resumed job sees the same records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from privtune.device.data.records import Columns, Records, refuse_left_out, resolve_columns, to_records
from privtune.device.data.table_files import read_table
from privtune.shared.errors import DataInvalid, InvalidInput
from privtune.shared.job_spec import SurrogateSpec, Task
from privtune.shared.plain_text import read_text
from privtune.shared.text_tables import RawTable
from privtune.shared.wording import counted

NOT_IN_MEMORY = (
    "The records of this job were given in Python's memory: give the same ones again to `Client.finetune`, which "
    "resumes it."
)


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A file, hub data set or table in memory, its columns, and which part of it to use.

    path: a file (JSON, JSONL, CSV, TSV, Parquet) or a hub id `owner/name[:config][@split]`; of a table in memory a name
        that no file has, under which the ledger adds up what leaves of it.
    columns: which column holds what.
    limit: at most this many records, drawn at random with `seed`; applied before the held-out part is split off.
    holdout: share of records held out for validation (0 to below 1), stratified by label.
    part: `all`, `train` (without the held-out share) or `held-out`.
    seed: of the sample and the held-out part.
    chat_template: a file with the owner's own template for conversations; None: the tokenizer's.
    own_terms: a file with words and phrases that surrogates always replace, one a line; None: none.
    table: records in memory, which are never written; None: they are read from `path`.
    sha256: of the table's contents; empty without one.
    """

    path: str
    columns: Columns = field(default_factory=Columns)
    limit: int | None = None
    holdout: float = 0.0
    part: Literal["all", "train", "held-out"] = "all"
    seed: int = 0
    chat_template: str | None = None
    own_terms: str | None = None
    table: RawTable | None = field(default=None, compare=False, repr=False)
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InvalidInput(f"--limit must be at least 1, not {self.limit}.", param="limit")
        if not 0 <= self.holdout < 1:
            raise InvalidInput(f"--holdout must be from 0 to below 1, not {self.holdout}.", param="holdout")
        if self.part != "all" and self.holdout == 0:
            raise InvalidInput(f"The {self.part} part needs a --holdout above 0.", param="holdout")

    @property
    def readable(self) -> bool:
        """Whether there is anything to read; not where the records were in the memory of another process."""
        return not self.sha256 or self.table is not None

    def load(self, task: Task, *, labelled: bool = True) -> Records:
        """Read, check, sample and split.

        Args:
            task: determines which columns are needed.
            labelled: False for prediction, where a classification file needs no label column.

        Raises:
            DataInvalid: names the file, the line and the column.
        """
        if not self.readable:
            raise DataInvalid(NOT_IN_MEMORY)
        table = self.table or read_table(self.path)
        columns = resolve_columns(table, self.columns, task, labelled=labelled)
        if task == "causal-lm":
            refuse_left_out(table, columns, self.columns)
        records = sample(to_records(table, columns), self.limit, self.seed)
        if self.part == "all":
            return records
        train, held_out = split(records, self.holdout, self.seed)
        return train if self.part == "train" else held_out

    def with_holdout(self, share: float) -> tuple[DataSource, DataSource]:
        """The training part and the held-out part of this data set."""
        return replace(self, holdout=share, part="train"), replace(self, holdout=share, part="held-out")


def own_terms(spec: SurrogateSpec, *sources: DataSource | None) -> tuple[str, ...]:
    """The owner's terms of these data sets, in order, each once.

    Raises:
        DataInvalid: a file can't be read.
        InvalidInput: there are terms, and the job replaces nothing.
    """
    files = dict.fromkeys(source.own_terms for source in sources if source is not None)
    lines = [line.strip() for file in files if file for line in read_text(Path(file)).split("\n")]
    if lines and not spec.on:
        raise InvalidInput(
            "Your own terms are to be replaced, and this job replaces nothing: add --surrogates identifying, or leave "
            "out the terms.",
            param="own_terms",
            private=True,
        )
    return tuple(dict.fromkeys(line for line in lines if line))


def sample(records: Records, limit: int | None, seed: int) -> Records:
    """At most `limit` records, drawn without replacement, kept in file order."""
    if limit is None or limit >= len(records):
        return records
    picked = np.random.default_rng(seed).permutation(len(records))[:limit]
    return records.pick(sorted(picked.tolist()))


def split(records: Records, share: float, seed: int) -> tuple[Records, Records]:
    """Training and held-out records; each label keeps its share, and at least one record in training.

    Raises:
        DataInvalid: too few records to hold any out.
    """
    by_label: dict[str | None, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        by_label[record.label].append(index)
    rng = np.random.default_rng([seed, 1])
    held_out: set[int] = set()
    for indexes in by_label.values():
        order = rng.permutation(len(indexes))[: min(round(len(indexes) * share), len(indexes) - 1)]
        held_out.update(indexes[position] for position in order)
    if not held_out:
        raise DataInvalid(
            f"{records.source}: {counted(len(records), 'record')}: too few to hold out {share:.0%} of them."
        )
    train = [index for index in range(len(records)) if index not in held_out]
    return records.pick(train), records.pick(sorted(held_out))


def label_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels in the order of their class numbers: whole numbers by value, otherwise by name."""
    names = set(labels)
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def training_labels(records: Records) -> tuple[str, ...]:
    """The label names of a training set.

    Raises:
        DataInvalid: a record without a label, or one label only.
    """
    names = label_order(_labels(records))
    if len(names) < 2:
        raise DataInvalid(
            f'{records.source}, column "{records.columns.label}": all records have the same label ({len(records):,}); '
            "a classifier needs at least two."
        )
    return names


def read_for_training(
    train: DataSource, validation: DataSource | None, task: Task, say: Callable[[str], None]
) -> tuple[Records, Records | None, tuple[str, ...]]:
    """Training records, held-out records and the names of the classes; none for a language model.

    say: gets what was read, from which columns, and what to look at, a line each; before anything is checked further.

    Raises DataInvalid.
    """
    records = train.load(task)
    say(str(records))
    names = training_labels(records) if task == "classification" else ()
    if (remark := _label_remark(records, names)) is not None:
        say(remark)
    held_out = None if validation is None else validation.load(task)
    if held_out is not None:
        say(f"held out: {counted(len(held_out), 'record')} of {held_out.source}; columns: {held_out.columns}")
        if names:
            class_numbers(held_out, names)
    return records, held_out, names


MANY_LABELS = 100


def _label_remark(records: Records, names: tuple[str, ...]) -> str | None:
    """What to look at where a column has more different values than labels usually have; None: nothing."""
    if len(names) <= MANY_LABELS:
        return None
    return (
        f'{records.source}: column "{records.columns.label}" has {len(names):,} different values in {len(records):,} '
        "records, and each becomes a label. If it is not the column of the labels, name that with --label-column."
    )


def _labels(records: Records) -> Iterable[str]:
    for record in records:
        if record.label is None:
            raise DataInvalid(f"{records.source}: the records have no labels. Name the column with --label-column.")
        yield record.label


def class_numbers(records: Records, label_names: tuple[str, ...]) -> list[int]:
    """The class number of each record.

    Raises:
        DataInvalid: a label that does not occur in training; names file, line and column (the label is private).
    """
    numbers = {name: number for number, name in enumerate(label_names)}
    classes = []
    for record, label in zip(records, _labels(records), strict=True):
        if label not in numbers:
            raise DataInvalid(
                f"{records.where(record, 'label')}: this label does not occur in the training data "
                f"({counted(len(label_names), 'label')}). Correct it, remove the record or add it to training.",
                detail=f"label {label!r}; training has {', '.join(label_names)}",
            )
        classes.append(numbers[label])
    return classes
