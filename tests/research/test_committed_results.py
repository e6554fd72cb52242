"""The committed tables and pictures are what the committed cells say."""

import shutil

import pytest

from privtune.device.audit.measurement_file import MeasurementFile
from research.cloud_gain import PRODUCT
from research.cloud_gain import main as cloud_gain
from research.frontier.__main__ import main as frontier
from research.paper.__main__ import main as paper
from research.teach_down.__main__ import main as teach_down
from research.wire_bytes import page
from tests.support.real import ROOT

RESULTS = ROOT / "docs" / "results"


def copied(folder, pattern):
    """The files of cells alone, in a folder of their own."""
    for path in RESULTS.glob(pattern):
        shutil.copy(path, folder)


def same(folder, pattern):
    """Whether the folder's files are the committed ones; returns how many there are."""
    paths = [path for path in folder.rglob(pattern) if path.is_file() and not path.name.startswith(".")]
    assert [p.name for p in paths if p.read_bytes() != (RESULTS / p.relative_to(folder)).read_bytes()] == []
    return len(paths)


def test_the_frontiers_are(tmp_path):
    copied(tmp_path, "frontier-*.cells.jsonl")
    frontier(["report", "--out", str(tmp_path)])
    assert same(tmp_path, "frontier-*") == 3 * 5  # cells, JSON, markdown, two pictures


def test_the_papers_are(tmp_path):
    copied(tmp_path, "paper-small.cells.jsonl")
    assert paper(["--scale", "small", "--data", str(tmp_path), "--out", str(tmp_path / "paper-small")]) == 0
    assert same(tmp_path, "*") == 3 + 5 * 2  # cells, JSON, markdown, two pictures a data set


def test_the_cloud_gains_are(tmp_path):
    for pattern in ("frontier-*-test.*", "sst2.json", "surrogates-attacker.json", "teach-down.json"):
        copied(tmp_path, pattern)
    product = tmp_path / "product" / "measured.json"
    product.parent.mkdir()
    cloud_gain(["report", "--results", str(tmp_path), "--product", str(product)])
    assert same(tmp_path, "cloud-gain*") == 2  # JSON, markdown
    assert product.read_bytes() == (ROOT / PRODUCT).read_bytes()


def test_what_teachers_added_is(tmp_path):
    copied(tmp_path, "teach-down-*.cells.jsonl")
    teach_down(["report", "--out", str(tmp_path)])
    assert same(tmp_path, "teach-down*") == 2 + 2  # cells, JSON, markdown


def test_the_bytes_on_the_wire_are(tmp_path):
    copied(tmp_path, "wire-bytes.cells.jsonl")
    assert page(MeasurementFile(tmp_path / "wire-bytes.cells.jsonl")) == (RESULTS / "wire-bytes.md").read_text()


def test_a_cell_of_no_name_is_refused(capsys):
    with pytest.raises(SystemExit, match="no such cell: graded-9; there are: clean, graded-4"):
        frontier(["run", "--cells", "graded-9"])
