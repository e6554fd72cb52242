"""The page of common failures quotes lines that the code still says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
LINES = [line for row in re.findall(r"^\| (`.+?`) \|", PAGE, re.MULTILINE) for line in re.findall(r"`([^`]+)`", row)]


@pytest.fixture(scope="module")
def said():
    """The text of every string of both sides and what they share, one a line; what is filled in is `{}`."""
    found = []
    for component in ("cloud", "device", "shared"):
        for file in (ROOT / component).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                    found.append("".join(map(str, parts)))
    return "\n".join(found)


def test_there_are_lines():
    assert len(LINES) > 15


@pytest.mark.parametrize("line", LINES)
def test_the_code_says_it(said, line):
    upgrade = re.fullmatch(r"Upgrade (the \w+)\.", line)  # which one is filled in
    quoted = re.sub(r"\{\w+\}", "{}", line)
    assert ("Upgrade {}." in said and upgrade[1] in said) if upgrade else quoted in said
