"""Pages: links and anchors lead somewhere, paths and modules that they name exist, and none is too long to finish."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_WORDS = 1600
EXAMPLES = {"tests/unit/device/noise/test_padding.py"}  # a page has the reader create it
COMPONENTS = ("device", "cloud", "shared", "protos")
# What the repository holds, as a page would name it in backticks. Placeholders and shortened paths do not match.
PATH = re.compile(rf"(?:{'|'.join(COMPONENTS)}|docs|research|requirements|scripts|tests)/[\w./-]+")
MODULE = re.compile(r"(?:privtune|research|tests)(?:\.(?!yaml\b)\w+)+")
FENCE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)


def listed(*patterns: str) -> list[str]:
    """Files of the repository, tracked or to be added, by git's patterns."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


PAGES = [page for page in listed("*.md") if not page.startswith("docs/results/")]


def text(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str | Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text(page))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def is_module(name: str) -> bool:
    """Whether a dotted name is a module, a package or something that a module defines."""
    parts = name.split(".")
    for base in (ROOT, *(ROOT / component for component in COMPONENTS)):
        path = base.joinpath(*parts)
        if path.is_dir() or path.with_suffix(".py").is_file():
            return True
        owner = (
            path.parent.with_suffix(".py") if path.parent.with_suffix(".py").is_file() else path.parent / "__init__.py"
        )
        if owner.is_file() and re.search(rf"\b{parts[-1]}\b", owner.read_text(encoding="utf-8")):
            return True
    return False


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_modules_exist(page):
    quoted = re.findall(r"`([^`\n]+)`", prose(page))
    missing = [name for name in quoted if PATH.fullmatch(name) and name not in EXAMPLES and not (ROOT / name).exists()]
    missing += [name for name in quoted if MODULE.fullmatch(name) and not is_module(name)]
    missing += [
        name for name in re.findall(r"python -m ((?:privtune|research|tests)[\w.]*)", text(page)) if not is_module(name)
    ]
    missing += [
        name for name in re.findall(r"^from (privtune[\w.]*) import", text(page), re.MULTILINE) if not is_module(name)
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_finished(page):
    words = [word for word in text(page).split() if re.search(r"\w", word)]
    assert len(words) <= MAX_WORDS, f"{len(words)} words: split the page"


def test_code_names_pages_that_exist():
    named = {
        (file, page)
        for file in listed("*.py", "Makefile", ".importlinter", "*.toml", "*.yml")
        for page in re.findall(r"\bdocs/[\w-]+\.md\b", text(file))
    }
    assert named, "nothing was searched"
    assert not [pair for pair in named if not (ROOT / pair[1]).exists()]
