"""How much of a micro-batch is padding, with and without pools of similar length, on real text.

    python -m research.padding --tokenizer FOLDER --data ../shared/data

FOLDER: a model folder, for example one converted from a GGUF file, under ~/.cache/privtune/gguf.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from privtune.device.data.batches import BatchPlan, IndexArray
from privtune.device.data.encode import encode_causal_lm
from privtune.device.data.source import DataSource
from privtune.shared.job_spec import TrainSpec
from privtune.shared.modeling.load import load_tokenizer

SETS = {
    "E2E (dev)": "e2e_nlg/dev.jsonl",
    "DialogSum (dev)": "dialogsum/dev.jsonl",
    "GSM8K (train)": "gsm8k/train.jsonl",
}


def main() -> None:
    """Print the table of docs/language-models.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer)
    print("| data | tokens per record | micro-batch 4 | micro-batch 16 | without pools, 16 |\n|---|---|---|---|---|")
    for name, file in SETS.items():
        records = DataSource(path=str(arguments.data / file), limit=2000).load("causal-lm")
        lengths_R = encode_causal_lm(records, tokenizer, 512).lengths
        pooled = [padded(lengths_R, planned(lengths_R, size)) for size in (4, 16)]
        order = np.random.default_rng(0).permutation(len(lengths_R))
        mixed = padded(lengths_R, [order[start : start + 16] for start in range(0, len(order), 16)])
        print(f"| {name} | {lengths_R.mean():.0f} | {pooled[0]:.1%} | {pooled[1]:.1%} | {mixed:.1%} |", flush=True)


def planned(lengths_R: IndexArray, batch_size: int) -> list[IndexArray]:
    """The micro-batches of one epoch."""
    plan = BatchPlan(lengths_R, TrainSpec(batch_size=batch_size))
    return [batch for step in range(plan.steps_per_epoch) for batch in plan.micro_batches(step)]


def padded(lengths_R: IndexArray, batches: list[IndexArray]) -> float:
    """Share of positions that are padding."""
    positions = sum(int(lengths_R[batch].max()) * len(batch) for batch in batches)
    return 1 - int(lengths_R.sum()) / positions


if __name__ == "__main__":
    main()
