"""Texts of real data sets."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

_TABLES = {"sst2": "sst2/test.tsv", "trec": "trec/test.tsv", "ag_news": "ag_news/test.tsv"}


def real_texts(data: Path, count: int) -> dict[str, list[str]]:
    """`count` texts of each set, drawn once."""
    found = {name: _column(data / path) for name, path in _TABLES.items()}
    found["dialogsum"] = dialogues(data)
    return {name: sample(texts, count) for name, texts in found.items()}


def sample(texts: Sequence[str], count: int) -> list[str]:
    """The same ones in each run."""
    return random.Random(0).sample(texts, min(count, len(texts)))


def dialogues(data: Path) -> list[str]:
    """DialogSum's dialogues of the test split."""
    lines = (data / "dialogsum/test.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["dialogue"] for line in lines]


def comments(data: Path) -> list[str]:
    """SynthPAI's comments."""
    lines = (data / "synthpai/comments.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def _column(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row.get("sentence") or row["text"] for row in rows]
