"""Real models and data sets, which not every machine has: a test that asks for one that is missing is skipped."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("PRIVTUNE_TEST_DATA", ROOT.parent / "shared" / "data"))
MODELS = Path(os.environ.get("PRIVTUNE_TEST_MODELS", ROOT.parent / "shared" / "models"))


def installed(package: str) -> Path:
    """The folder of a Python package that ships a model."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"needs the package {package}")
    return Path(found.submodule_search_locations[0])


def data_set(path: str) -> Path:
    """A file or folder below the folder of real data sets."""
    return _existing(DATA / path, "PRIVTUNE_TEST_DATA")


def model_folder(name: str) -> Path:
    """A folder below the folder of pre-trained models."""
    return _existing(MODELS / name, "PRIVTUNE_TEST_MODELS")


def _existing(path: Path, variable: str) -> Path:
    if not path.exists():
        pytest.skip(f"needs {path}; set {variable}")
    return path
