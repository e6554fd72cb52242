"""What is prepared for a GPU: the table of sizes, and its measurement rehearsed at tiny sizes on a CPU."""

import json

import pytest
import torch

from research import gpu_check, memory_table
from research.memory_table import GB, SEVEN_B


def test_a_model_of_7b_trains_on_24_gb_on_paper():
    rows = memory_table.table(SEVEN_B, cut=1, records=4, tokens=512, card=24 * GB)
    by = {(row["stored"], row["recomputed"]): row for row in rows}
    assert by["fp32", True]["jobs"] == 0
    assert by["bf16", True]["jobs"] >= 4
    assert by["nf4", True]["base"] < by["bf16", True]["base"] / 3
    assert all(row["total"] <= 24 * GB for row in rows if row["jobs"])
    assert memory_table.markdown(rows, 24 * GB).count("\n") == len(rows) + 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures for minutes where there is a GPU")
def test_every_part_of_the_check_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu_check", "--out", str(tmp_path), "--repeats", "1"])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert not ended.value.code, found
    assert len(found["figures"]) == 5
    assert "a rehearsal" in (tmp_path / "gpu-check.md").read_text()
