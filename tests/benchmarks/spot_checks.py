"""What a spot check costs, and how far an honest cloud in bf16 is from the device's own float32.

python -m tests.benchmarks.spot_checks --out docs/results/spot-checks.json
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from privtune.device.model.replica import AnsweredBatch, Replica
from privtune.device.release.perturber import Released
from privtune.device.release.release_store import EncodedRelease
from privtune.device.training.spot_checks import BF16, GRADIENT
from privtune.shared.codec import encode
from privtune.shared.job_spec import JobSpec

RECORDS, ROWS = 8, 32
SHAPES = {
    "MiniLM-L6 (6 blocks of 384)": BertConfig(
        vocab_size=1000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "SmolLM2-135M (30 blocks of 576)": LlamaConfig(
        vocab_size=1000,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
    ),
}


def batch(width: int) -> tuple[Released, np.ndarray[Any, np.dtype[np.int64]], torch.Tensor]:
    """Rows, a read-out position a record, and a gradient for each."""
    rng = np.random.default_rng(1)
    rows = [rng.standard_normal((ROWS, width)).astype(np.float32) for _ in range(RECORDS)]
    releases = [EncodedRelease(rows=ROWS, data=encode(one, "fp32")) for one in rows]
    gradient_ND = torch.from_numpy(rng.standard_normal((RECORDS, width)).astype(np.float32))
    return Released(handles=np.arange(RECORDS), releases=releases), np.arange(RECORDS) * ROWS, gradient_ND


def measured(folder: Path, config: Any) -> dict[str, float]:
    """Of one shape, with random weights."""
    torch.manual_seed(0)
    kind = BertForSequenceClassification if isinstance(config, BertConfig) else LlamaForCausalLM
    kind(config).save_pretrained(folder)
    task = "classification" if isinstance(config, BertConfig) else "causal-lm"
    common = {"model": "m", "training_file": "device://x", "task": task, "codec": "fp32"}
    released, readout_N, gradient_ND = batch(config.hidden_size)
    found: dict[str, float] = {}
    frozen = Replica(str(folder), JobSpec.model_validate(common | {"tail": 1}), 10, None)
    began = time.process_time()
    mine = frozen.states(released)
    found["ms a micro-batch of states"] = 1000 * (time.process_time() - began)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = frozen.states(released).float()
    found["states apart, of the tolerance"] = apart(theirs, mine) / (BF16 * math.sqrt(frozen.blocks))
    replica = Replica(str(folder), JobSpec.model_validate(common), 10, None)
    state = replica.initial
    one = AnsweredBatch(
        number=0, released=released, readout_N=readout_N, answer_ND=gradient_ND, gradient_ND=gradient_ND
    )
    began = time.process_time()
    outs, gradients = replica.repeat(0, state, [one])
    replica.advance(0, state, gradients)
    found["ms a step of one micro-batch"] = 1000 * (time.process_time() - began)
    found["bytes fetched a step"] = 2 * replica.state_bytes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        others, other_gradients = replica.repeat(0, state, [one])
    tolerance = BF16 * math.sqrt(replica.blocks)
    found["outputs apart, of the tolerance"] = apart(others[0].float(), outs[0]) / tolerance
    flat = [torch.cat([part.flatten() for part in parts]).unsqueeze(0) for parts in (other_gradients, gradients)]
    found["gradient apart, of the tolerance"] = apart(*flat) / (GRADIENT * tolerance)
    return {name: round(value, 3) for name, value in found.items()}


def apart(theirs_ND: torch.Tensor, mine_ND: torch.Tensor) -> float:
    """The largest difference of two rows, as a share of the second."""
    return float(((theirs_ND - mine_ND).norm(dim=-1) / mine_ND.norm(dim=-1)).max())


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "command": "python -m tests.benchmarks.spot_checks --out docs/results/spot-checks.json",
        "batch": f"{RECORDS} records of {ROWS} rows, one thread, CPU time, random weights",
    }
    for name, config in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measured(Path(folder), config)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(out.read_text())


if __name__ == "__main__":
    main()
