"""The report on slopes pairs its ways over the same records, at equal steps and at equal time."""

import json

import pytest

from research.zeroth_order import SIZES, write


def cell(way, seed, at_steps, at_end):
    curve = [{"steps": 8, "seconds": 2.0, "accuracy": at_steps.count("1") / 10}]
    curve.append({"steps": 20, "seconds": 9.0, "accuracy": at_end.count("1") / 10})
    about = dict.fromkeys(SIZES, 1) | {"records": 50, "steps": 8, "split": "test", "releases": "names"}
    return about | {"way": way, "seed": seed, "curve": curve, "right_steps": at_steps, "right": at_end}


def test_differences_are_paired_over_the_seeds_that_both_have(tmp_path):
    cells = [
        cell("slopes-8", 0, "0000111111", "0000111111"),
        cell("slopes-8", 1, "1111111111", "1111111111"),  # no tail of this seed
        cell("tail", 0, "0000011111", "0111111111"),
    ]
    write(cells, tmp_path)
    (found,) = json.loads((tmp_path / "zeroth-order.json").read_text())["differences"]
    assert found["pair"][:3] == ["test", "names", "slopes-8 - tail"]
    assert (found["steps"][0], found["time"][0]) == (pytest.approx(0.1), pytest.approx(-0.3))
    page = (tmp_path / "zeroth-order.md").read_text()
    assert "| test | names | slopes-8 | 50 | 8 | 2 | 80.0 [60.0, 100.0] |" in page
    assert "| slopes-8 - tail | 50 | 8 | 10.0 [0.0, 30.0] | -30.0 [" in page
