"""Many jobs on one base: what computing their passes as one gains, and what each further job takes of memory.

    MALLOC_MMAP_THRESHOLD_=65536 python -m research.many_jobs --model minilm=FOLDER --model smollm2=FOLDER --out OUT

Speed: the tops of 8 jobs at batch 4, forward, backward and optimiser step, alone one after the other and together, in
turn; the ratio is of pairs. The head and the wire are the same for both and not part of it. Memory: resident memory
with 32 jobs that have all done a step, against base + 32 x (adapter + two moments).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.top_session import TopSession
from privtune.cloud.compute.work import compute_together
from privtune.shared.job_spec import JobSpec, Task
from privtune.shared.modeling.architectures import tasks_of

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Bench:
    """Tops of one model, and batches for them."""

    def __init__(self, model: str, folder: Path) -> None:
        self.name, _, ref = model.partition("=")
        self._folder = folder / self.name
        self.host = Host(Catalog([f"{self.name}={ref}"]), self._folder)
        kinds = tasks_of(json.loads((Path(ref) / "config.json").read_text())["model_type"])
        self.task: Task = "causal-lm" if "causal-lm" in kinds else "classification"
        self.base = self.host.partition(self.name, self.task)

    def sessions(self, count: int) -> list[TopSession]:
        """Jobs with the default adapter on every linear layer of the top."""
        made = []
        for seed in range(count):
            about = {"model": self.name, "task": self.task, "training_file": "device://x", "train": {"seed": seed}}
            made.append(TopSession(self.host, JobSpec.model_validate(about), 1000, self._folder / str(seed)))
        return made

    def batch(self, records: int, tokens: int) -> Batch:
        """Vectors of `records` texts of as many tokens; a classifier reads one row of each, a language model all."""
        h_BTD = torch.randn(records, tokens, self.base.hidden_size)
        read = torch.arange(records) * tokens if self.task == "classification" else torch.arange(records * tokens)
        return h_BTD, torch.ones(records, tokens, dtype=torch.long), read


def alone(tops: Sequence[TopSession], batch: Batch) -> None:
    """A step of each job, one job after the other."""
    for top in tops:
        out_ND = top.forward(0, *batch, want_cut_gradient=False).now()
        top.backward(0, out_ND).now()
        top.apply()


def together(tops: Sequence[TopSession], batch: Batch) -> None:
    """The same with their passes as one."""
    forward = [top.forward(0, *batch, want_cut_gradient=False) for top in tops]
    compute_together(forward)
    backward = [top.backward(0, work.result()) for top, work in zip(tops, forward, strict=True)]
    compute_together(backward)
    for top, work in zip(tops, backward, strict=True):
        work.result()
        top.apply()


def speed(bench: Bench, jobs: int, records: int, tokens: int, pairs: int) -> dict[str, Any]:
    """Summed tokens a second, as a ratio of pairs; the first pair warms up."""
    tops, batch, ratios, best = bench.sessions(jobs), bench.batch(records, tokens), [], 0.0
    for pair in range(pairs + 1):
        one, other = seconds(alone, tops, batch), seconds(together, tops, batch)
        if pair:
            ratios.append(one / other)
            best = max(best, jobs * records * tokens / other)
    return {
        "model": bench.name,
        "jobs": jobs,
        "batch": records,
        "tokens": tokens,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "tokens_per_s": best,
    }


def memory(bench: Bench, jobs: int) -> dict[str, Any]:
    """Resident memory that the jobs add, against their adapters and optimisers, both with the base."""
    batch = bench.batch(1, 4)
    together(bench.sessions(2), batch)  # what is made once
    before = resident()
    tops = bench.sessions(jobs)
    alone(tops, batch)
    base = sum(p.numel() * p.element_size() for p in bench.base.model.parameters())
    needed = base + jobs * 3 * 4 * tops[0].trainable_parameters
    return {"model": bench.name, "jobs": jobs, "needed": needed, "ratio": (base + resident() - before) / needed}


def resident() -> int:
    """Bytes of this process in memory, without what is free inside the allocator."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds(what: Any, *arguments: Any) -> float:
    """How long a call takes: on a GPU with what it started there; else of the processor, which others may use too."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    what(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def main() -> None:
    """Measure and write OUT.json and OUT.md."""
    parser = argparse.ArgumentParser(prog="python -m research.many_jobs", description=__doc__)
    parser.add_argument("--model", action="append", required=True, help="NAME=FOLDER; may be repeated")
    parser.add_argument("--tokens", type=int, action="append", help="of a text; default 8 and 64")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory-jobs", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {arguments.threads} thread(s)"
    found: dict[str, Any] = {"device": where, "torch": torch.__version__, "speeds": [], "memory": []}
    with tempfile.TemporaryDirectory() as scratch:
        for model in arguments.model:
            bench = Bench(model, Path(scratch))
            found["memory"].append(memory(bench, arguments.memory_jobs))
            for tokens in arguments.tokens or (8, 64):
                found["speeds"].append(speed(bench, arguments.jobs, arguments.batch, tokens, arguments.pairs))
                print(found["speeds"][-1], flush=True)
                write(arguments.out, found)  # what there is, should the run be cut short


def write(out: Path, found: dict[str, Any]) -> None:
    """OUT.json with every pair, OUT.md with the medians."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        f"Written by `python -m research.many_jobs` on {found['device']}, torch {found['torch']}.",
        "",
        "| model | jobs | batch | tokens | together / alone, summed tokens/s | lowest-highest |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["speeds"]:
        span = f"{min(row['ratios']):.2f}-{max(row['ratios']):.2f}"
        lines.append(
            f"| {row['model']} | {row['jobs']} | {row['batch']} | {row['tokens']} | {row['ratio']:.2f} | {span} |"
        )
    lines += ["", "| model | jobs | memory / (base + jobs x (adapter + moments)) |", "|---|---|---|"]
    lines += [f"| {row['model']} | {row['jobs']} | {row['ratio']:.2f} |" for row in found["memory"]]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
