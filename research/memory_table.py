"""What a cloud's GPU holds for a model of given sizes, from its structure alone: no weights are made.

    python -m research.memory_table [--card 24]

Rows: how the frozen blocks are kept. Columns: the blocks, each job's adapter with gradient and two moments, a
micro-batch's graph, and how many jobs with one micro-batch under way each fit on the card.
"""

from __future__ import annotations

import argparse
from typing import Any

from transformers import LlamaConfig

from privtune.shared.job_spec import TuningSpec
from privtune.shared.modeling.load import build_task_model
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.stored_weights import BYTES
from privtune.shared.modeling.training_size import graph_bytes, linear_layers, trained_weights, weight_bytes

GB = 1 << 30
SEVEN_B = {  # Llama 2 7B
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32_000,
}
_CONTEXT = GB  # CUDA's own, the libraries' workspaces and what the allocator can't use


def table(sizes: dict[str, Any], *, cut: int, records: int, tokens: int, card: int) -> list[dict[str, Any]]:
    """One row per form of the blocks and setting of checkpointing; bytes."""
    top = Partition(build_task_model(LlamaConfig(**sizes), "causal-lm")).top(cut)
    linear = sum(layer.get_parameter("weight").numel() for layer in linear_layers(top).values())
    rest = sum(weight.numel() for weight in top.parameters()) - linear
    job, blocks = weight_bytes(trained_weights(top, TuningSpec())), top.stop - top.cut
    rows = []
    for stored, each in BYTES.items():
        base = int(linear * each) + 4 * rest
        for recomputed in (False, True):
            graph = graph_bytes(records * tokens, sizes["hidden_size"], blocks, recomputed=recomputed)
            jobs = (card - _CONTEXT - base) // (job + graph)
            rows.append(
                {
                    "stored": stored,
                    "recomputed": recomputed,
                    "base": base,
                    "job": job,
                    "graph": graph,
                    "total": base + job + graph + _CONTEXT,
                    "jobs": max(0, jobs),
                }
            )
    return rows


def markdown(rows: list[dict[str, Any]], card: int) -> str:
    """The rows as a table."""
    lines = [
        f"| blocks kept as | checkpointing | blocks | a job | a micro-batch | one job | jobs on {card // GB} GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = " | ".join(f"{row[key] / GB:.2f} GB" for key in ("base", "job", "graph", "total"))
        lines.append(f"| {row['stored']} | {'on' if row['recomputed'] else 'off'} | {sizes} | {row['jobs']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table of a 7B-class model."""
    parser = argparse.ArgumentParser(prog="python -m research.memory_table", description=__doc__)
    parser.add_argument("--card", type=int, default=24, help="GB of the GPU")
    parser.add_argument("--cut", type=int, default=1)
    parser.add_argument("--records", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    card = arguments.card * GB
    found = table(SEVEN_B, cut=arguments.cut, records=arguments.records, tokens=arguments.tokens, card=card)
    print(markdown(found, card), end="")


if __name__ == "__main__":
    main()
