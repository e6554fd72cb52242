"""Tables to records: which columns hold the text and the label, and whether every cell is usable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from privtune.device.data.messages import ChatMessage, parse_conversation
from privtune.shared.errors import DataInvalid
from privtune.shared.job_spec import Task
from privtune.shared.text_tables import (
    LABEL_NAMES,
    TEXT_NAMES,
    RawTable,
    columns_of,
    find_column,
    is_missing,
    label_cell,
    place,
    text_cell,
)
from privtune.shared.wording import counted

# Column names to look for, in this order, when none is given.
PAIR_NAMES = (
    ("text", "text2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
)
MESSAGES_NAME = "messages"
PROMPT_NAMES = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("question", "answer"),
    ("input", "output"),
    ("dialogue", "summary"),
    ("document", "summary"),
    ("source", "target"),
    ("mr", "ref"),
)
# What such records have beside prompt and completion, or messages, that belongs to what the model reads.
CONTEXT_NAMES = (
    "input",
    "context",
    "system",
    "system_prompt",
    "instruction",
    "question",
    "passage",
    "history",
    "tools",
    "functions",
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The name of the column for each role; None: found by the header."""

    text: str | None = None
    text2: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None

    def __str__(self) -> str:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(f'{role} = "{name}"' for role, name in named.items() if name is not None)


@dataclass(frozen=True, slots=True)
class Record:
    """One example and its place in the file.

    Classification: `text` (and `text2` of a pair) with `label`. Causal LM: `text` alone; or `prompt`, with `text` as
    its completion; or `messages`, a conversation up to its last learned answer, which is in `text` too.
    """

    number: int
    text: str
    text2: str | None = None
    label: str | None = None
    prompt: str | None = None
    messages: tuple[ChatMessage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Records(Sequence[Record]):
    """The examples of one data set, in file order, with the columns they come from.

    unused: the other columns of the file.
    """

    source: str
    unit: str
    columns: Columns
    items: tuple[Record, ...]
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's own overloads: int or slice
        return self.items[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.items)

    def pick(self, indexes: Sequence[int]) -> Records:
        """The records at these positions, in that order."""
        items = tuple(self.items[index] for index in indexes)
        return replace(self, items=items)

    def __str__(self) -> str:
        """How many records, from where, which columns are used and which are not."""
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        return f"{self.source}: {counted(len(self), 'record')}; columns: {self.columns}{unused}"

    def where(self, record: Record, role: str) -> str:
        """The place of a record's text, label, ... for error messages."""
        return place(self.source, self.unit, record.number, getattr(self.columns, role))


def resolve_columns(table: RawTable, wanted: Columns, task: Task, *, labelled: bool = True) -> Columns:
    """Check the named columns and find the others by the header.

    Raises:
        DataInvalid: a named column is missing, or none can be found; lists the columns of the table.
    """
    for field in fields(wanted):
        name = getattr(wanted, field.name)
        if name is not None and name not in table.columns:
            raise DataInvalid(f'{table.source}: no column "{name}" for {field.name}. {columns_of(table)}')
    if task == "causal-lm":
        return _causal_columns(table, wanted)
    if wanted.prompt or wanted.completion or wanted.messages:
        raise DataInvalid(f"{table.source}: prompt, completion and messages are for causal-lm; name text and label.")
    label = wanted.label or (find_column(table, LABEL_NAMES) if labelled else None)
    other = "" if _find_pair(table, PROMPT_NAMES) is None else " For a language model: --task causal-lm."
    if labelled and label is None:
        raise DataInvalid(
            f"{table.source}: which column is the label? Name it with --label-column. {columns_of(table)}{other}"
        )
    text, text2 = wanted.text, wanted.text2
    if text is None:
        pair = _find_pair(table, PAIR_NAMES)
        if pair and text2 in (None, pair[1]):
            text, text2 = pair
        else:
            text = find_column(table, TEXT_NAMES)
    if text is None:
        raise DataInvalid(
            f"{table.source}: which column is the text? Name it with --text-column. {columns_of(table)}{other}"
        )
    return Columns(text=text, text2=text2, label=label)


def _causal_columns(table: RawTable, wanted: Columns) -> Columns:
    if wanted.text2 or wanted.label:
        raise DataInvalid(
            f"{table.source}: a causal-lm job takes text, or prompt and completion, or messages; no label, no text2."
        )
    kinds = [wanted.text, wanted.prompt or wanted.completion, wanted.messages]
    if sum(kind is not None for kind in kinds) > 1:
        raise DataInvalid(f"{table.source}: name either text, or prompt and completion, or messages; not both.")
    if wanted.text:
        return Columns(text=wanted.text)
    messages = wanted.messages or (find_column(table, [MESSAGES_NAME]) if not any(kinds) else None)
    if messages is not None:
        return Columns(messages=messages)
    if wanted.prompt or wanted.completion:
        prompt = wanted.prompt or find_column(table, [pair[0] for pair in PROMPT_NAMES])
        completion = wanted.completion or find_column(table, [pair[1] for pair in PROMPT_NAMES])
        if prompt is None or completion is None:
            raise DataInvalid(f"{table.source}: name both --prompt-column and --completion-column. {columns_of(table)}")
        return Columns(prompt=prompt, completion=completion)
    pair = _find_pair(table, PROMPT_NAMES)
    if pair:
        return Columns(prompt=pair[0], completion=pair[1])
    text = find_column(table, TEXT_NAMES)
    if text is None:
        hint = "Name it with --text-column, or --prompt-column and --completion-column, or --messages-column."
        raise DataInvalid(f"{table.source}: which column is the text? {hint} {columns_of(table)}")
    return Columns(text=text)


def _find_pair(table: RawTable, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    for first, second in pairs:
        one, two = find_column(table, [first]), find_column(table, [second])
        if one and two:
            return one, two
    return None


def refuse_left_out(table: RawTable, columns: Columns, wanted: Columns) -> None:
    """Refuse to leave out what belongs to a prompt or a conversation, unless the owner named the columns to train on.

    Tools are refused in any case: a conversation that uses them makes no sense without.

    Raises:
        DataInvalid: names file, line and column of the first such cell.
    """
    if columns.text is not None:
        return
    named = wanted.messages or (wanted.prompt and wanted.completion)
    used = {columns.prompt, columns.completion, columns.messages}
    for name in CONTEXT_NAMES:
        column = find_column(table, [name])
        if column is None or column in used or (named and name not in ("tools", "functions")):
            continue
        at = table.columns.index(column)
        for number, cells in table.rows:
            if is_missing(cells[at]) or cells[at] in ("", [], {}) or str(cells[at]).strip() == "":
                continue
            kept = "messages" if columns.messages else "the prompt"
            chosen = "--messages-column" if columns.messages else "--prompt-column and --completion-column"
            remedy = f"Join it into {kept}, or remove the column"
            if name not in ("tools", "functions"):
                remedy += f" or name those to train on with {chosen}"
            where = place(table.source, table.unit, number, column)
            raise DataInvalid(f"{where}: this column would be left out of what the model reads. {remedy}.")


def to_records(table: RawTable, columns: Columns) -> Records:
    """Turn rows into records by their resolved columns; every cell is checked.

    Raises:
        DataInvalid: a text or label is missing, empty or of the wrong kind; names file, line and column.
    """
    # `text` also holds the completion of a prompt
    roles = {
        "text2": columns.text2,
        "label": columns.label,
        "prompt": columns.prompt,
        "text": columns.text or columns.completion,
        "messages": columns.messages,
    }
    taken = [(role, name, table.columns.index(name)) for role, name in roles.items() if name is not None]
    items = []
    for number, cells in table.rows:
        values: dict[str, Any] = {}
        for role, name, position in taken:
            cell = cells[position]
            if role == "label":
                values[role] = label_cell(table, number, name, cell)
            elif role == "messages":
                values[role] = parse_conversation(cell, place(table.source, table.unit, number, name))
                values["text"] = values[role][-1].content
            else:
                values[role] = text_cell(table, number, name, cell)
        items.append(Record(number=number, **values))
    used = {getattr(columns, field.name) for field in fields(columns)}
    unused = tuple(name for name in table.columns if name not in used)
    return Records(source=table.source, unit=table.unit, columns=columns, items=tuple(items), unused=unused)
