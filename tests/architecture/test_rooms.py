"""Each thing has one room and one name: no two modules or classes share a name, and tests lie where their room does."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIDES = {side: ROOT / side / "privtune" / side for side in ("device", "cloud", "shared")}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the product with its room, such as "device/noise"; a side's loose modules are a room too."""
    for side, folder in SIDES.items():
        for path in folder.rglob("*.py"):
            inside = path.relative_to(folder).parts
            yield "/".join((side, *inside[:-1][:1])), path


def in_several_rooms(names: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    """Names that modules of different rooms give, with those rooms."""
    rooms = defaultdict(set)
    for room, path in modules():
        for name in names(path):
            rooms[name].add(room)
    return {name: sorted(found) for name, found in rooms.items() if len(found) > 1}


def public_classes(path: Path) -> list[str]:
    """Names of the classes at the top of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def module_name(path: Path) -> list[str]:
    """The module's name, where it must be the only one: a command's file is named after the command."""
    return [] if path.stem in ("__init__", "__main__") or path.parent.name == "commands" else [path.stem]


def test_no_two_rooms_have_a_module_of_one_name():
    assert in_several_rooms(module_name) == {}


def test_no_two_rooms_have_a_class_of_one_name():
    assert in_several_rooms(public_classes) == {}


@pytest.mark.parametrize("side", SIDES)
def test_unit_tests_lie_in_the_folder_of_their_room(side):
    tests = ROOT / "tests" / "unit" / side
    folders = [path.relative_to(tests) for path in tests.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    assert folders
    assert [str(folder) for folder in folders if not (SIDES[side] / folder / "__init__.py").exists()] == []


def imported_from(path: Path) -> list[str]:
    """The modules of tests/ that a file imports from."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found += [f"{'.' * node.level}{node.module or ''}"]
            found += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "tests"]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.startswith((".", "tests."))]


def test_tests_share_through_support_only():
    """A helper that two test modules need lies in tests/support; benchmarks, soak and torture are programs."""
    wrong = {}
    for path in (ROOT / "tests").rglob("*.py"):
        program = path.parent.name in ("benchmarks", "soak", "torture")
        own = ("tests.support", f"tests.{path.parent.name}") if program else ("tests.support",)
        names = [name for name in imported_from(path) if not name.startswith(own)]
        if names:
            wrong[str(path.relative_to(ROOT))] = names
    assert wrong == {}
