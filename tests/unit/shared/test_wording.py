"""Numbers with their nouns; and no message counts one of something in the plural."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from privtune.shared.wording import counted

ROOT = Path(__file__).parents[3]
# A number in an f-string right before the plural of what the messages count; "the same, 2 epochs" is never one.
_COUNTED = re.compile(
    r"(?<!of )(?<!least )(?<!most )(?<!the same, )"
    r"\{(?:len\(|[a-z_.]*(?:records|entries|jobs|steps|epochs|files|runs|texts))"
    r"[^{}]*?(?::,)?\} (?:\w+ )?(?:records|entries|jobs|steps|epochs|files|runs|texts|releases|predictions|problems)\b"
)


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "job", "1 job"),
        (0, "job", "0 jobs"),
        (1200, "new release", "1,200 new releases"),
        (2, "entry", "2 entries"),
        (2, "key", "2 keys"),
        (2, "epoch", "2 epochs"),
        (2, "class", "2 classes"),
        (1, "entry", "1 entry"),
    ],
)
def test_one_is_one(number, noun, said):
    assert counted(number, noun) == said


def test_messages_count_with_it():
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for side in ("device", "cloud", "shared")
        for path in (ROOT / side / "privtune").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if _COUNTED.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_message_sends_anybody_to_an_index_that_does_not_have_privtune():
    found = [
        str(path.relative_to(ROOT))
        for side in ("device", "cloud", "shared", "docs")
        for path in (ROOT / side).rglob("*")
        if path.suffix in (".py", ".md") and "install 'privtune" in path.read_text(encoding="utf-8")
    ]
    assert not found
