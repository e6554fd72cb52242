"""Memory of the cloud's part of one step, with and without gradient checkpointing and mixed precision.

    MALLOC_MMAP_THRESHOLD_=262144 python -m research.top_memory [--records 8 --tokens 128]

With that threshold glibc returns freed memory, so that the peak counts what is in use.

A top of SmolLM2-135M's size (30 blocks, cut 1, LoRA rank 8) with random weights, on the CPU (Linux). Prints, for each
setting, what the forward pass keeps for the backward pass, the peak of resident memory above the model itself, and the
duration of both passes.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, LlamaConfig

from privtune.shared.job_spec import TuningSpec
from privtune.shared.modeling.lora import attach_lora
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.recompute import recompute_blocks

SIZES = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 1000,  # a top holds no vocabulary
}
Figures = tuple[float, float, float]


def main() -> None:
    """Measure each setting and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # threads do not survive a fork
    partition = Partition(AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)))
    h_BTD = torch.randn(arguments.records, arguments.tokens, SIZES["hidden_size"])
    print("| precision | check-pointing | MB kept | MB at the peak | seconds |\n|---|---|---|---|---|")
    for mixed in (False, True):
        for recomputed in (False, True):
            kept, peak, seconds = forked(measure, partition, h_BTD, mixed, recomputed)
            named = ("bf16" if mixed else "fp32", "on" if recomputed else "off")
            print(f"| {named[0]} | {named[1]} | {kept:,.0f} | {peak:,.0f} | {seconds:.1f} |", flush=True)


def forked(function: Callable[..., Figures], *arguments: Any) -> Figures:
    """Call it in a forked process, because an allocator does not return everything it once had."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    child = fork.Process(target=lambda: there.send(function(*arguments)))
    child.start()
    found: Figures = here.recv()
    child.join()
    return found


def measure(partition: Partition, h_BTD: torch.Tensor, mixed: bool, recomputed: bool) -> Figures:
    """MB kept, MB at the peak and seconds of one forward and backward pass."""
    top = partition.top(1).train()
    attach_lora(top, TuningSpec(), seed=0)
    if recomputed:
        recompute_blocks(top)
    mask_BT = torch.ones(h_BTD.shape[:2], dtype=torch.long)
    readout_N = torch.arange(mask_BT.numel())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, began = resident("VmRSS"), time.monotonic()
    weights = {parameter.untyped_storage().data_ptr() for parameter in top.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), saved_tensors_hooks(keep, lambda tensor: tensor):
        out_ND = top(h_BTD, mask_BT, readout_N).float()
    out_ND.backward(torch.ones_like(out_ND))
    return sum(kept.values()) / 1e6, resident("VmHWM") - before, time.monotonic() - began


def resident(name: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


if __name__ == "__main__":
    main()
