"""What a GPU makes of the cloud's part: speed against plain transformers + peft on it, memory, jobs as one, answers.

    OUT=FOLDER scripts/gpu_check.sh               # under 10 minutes
    OUT=FOLDER DEVICE=cpu scripts/gpu_check.sh    # a rehearsal with tiny sizes: its figures mean nothing

Random weights: nothing is downloaded, and speed and memory do not depend on them. Writes gpu-check.{json,md} to OUT
after each part, so that a run which is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.top_session import TopSession
from privtune.shared.job_spec import JobSpec, Task
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.stored_weights import Stored
from research.many_jobs import alone, seconds, together
from research.memory_table import GB, SEVEN_B, table

SMALL = {  # SmolLM2-135M
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49_152,
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 256,
}


class RandomHost(Host):
    """A host of a model with random weights, made where it computes; float32 weights are not kept."""

    def __init__(self, sizes: dict[str, Any], scratch: Path, stored: Stored) -> None:
        super().__init__(Catalog(), scratch, stored)
        self._sizes = sizes

    def _whole(self, model: str, task: Task) -> Partition:
        torch.manual_seed(0)
        with self.device:
            return Partition(AutoModelForCausalLM.from_config(LlamaConfig(**self._sizes), dtype=torch.float32))

    def partition(self, model: str, task: Task, stored: Stored | None = None) -> Partition:
        """As of any host; there are no files, hence no tokenizer."""
        self._tokenizers.setdefault(model, None)
        return super().partition(model, task, stored)


class Check:
    """The parts, at the sizes of a device."""

    def __init__(self, scratch: Path, repeats: int) -> None:
        self.scratch, self.repeats = scratch, repeats
        self.gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.gpu else "cpu")
        self.small, self.large = (SMALL, SEVEN_B) if self.gpu else (TINY, TINY)
        self.records, self.tokens, self.new = (4, 512, 64) if self.gpu else (2, 8, 4)

    def host(self, sizes: dict[str, Any], stored: Stored) -> RandomHost:
        """A host with the blocks in a form."""
        return RandomHost(sizes, self.scratch, stored)

    def session(self, host: Host, number: int = 0, **tuning: Any) -> TopSession:
        """A job with the default adapter, without dropout, as the plain loop has it."""
        about = {
            "model": "random",
            "task": "causal-lm",
            "training_file": "device://x",
            "tuning": {"dropout": 0.0} | tuning,
            "train": {"seed": number, "precision": "bf16"},
        }
        return TopSession(host, JobSpec.model_validate(about), 1000, self.scratch / str(number))

    def vectors(self, host: Host, records: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A micro-batch whose every row is read out."""
        h_BTD = torch.randn(records, tokens, host.partition("random", "causal-lm").hidden_size)
        return h_BTD, torch.ones(records, tokens, dtype=torch.long), torch.arange(records * tokens)

    def training(self) -> list[dict[str, Any]]:
        """Top of a job against all of the same model in a plain loop: blocks, LoRA, batch and precision the same."""
        host = self.host(self.small, "bf16")
        top, batch = self.session(host), self.vectors(host, self.records, self.tokens)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**self.small), dtype=torch.bfloat16).to(self.device)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", layers_to_transform=None)
        plain: Any = peft.get_peft_model(model, config).train()
        optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=5e-4)
        ids_BT = torch.randint(4, self.small["vocab_size"], (self.records, self.tokens), device=self.device)

        def step() -> None:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss = plain(input_ids=ids_BT, labels=ids_BT).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        ratios, best = self.pairs(lambda: alone([top], batch), step)
        speed = f"{self.records * self.tokens / best:,.0f} tokens/s"
        return [figure("training: top of a job, without bottom and head", "plain transformers + peft", ratios, speed)]

    def jobs(self) -> list[dict[str, Any]]:
        """Eight jobs as one against one after the other."""
        host = self.host(self.small, "bf16")
        tops, batch = [self.session(host, number) for number in range(8)], self.vectors(host, 4, min(64, self.tokens))
        ratios, best = self.pairs(lambda: together(tops, batch), lambda: alone(tops, batch))
        speed = f"{8 * batch[1].numel() / best:,.0f} tokens/s"
        return [figure("8 jobs as one, batch 4", "one at a time", ratios, speed)]

    def answers(self) -> list[dict[str, Any]]:
        """Further tokens of eight texts at once: the top, against all of the model in `generate`."""
        host = self.host(self.small, "bf16")
        top, count, width = self.session(host), 8, host.partition("random", "causal-lm").hidden_size
        model = AutoModelForCausalLM.from_config(LlamaConfig(**self.small), dtype=torch.bfloat16).to(self.device).eval()
        ids_BT = torch.randint(4, self.small["vocab_size"], (count, 8), device=self.device)

        def ours() -> None:
            texts = [top.new_text() for _ in range(count)]
            top.begin_together(texts, torch.randn(count, 8, width), [8] * count)
            for _ in range(self.new):
                top.extend_together(texts, torch.randn(count, width))

        def plain() -> None:
            model.generate(ids_BT, max_new_tokens=self.new, min_new_tokens=self.new, do_sample=False)

        ratios, best = self.pairs(ours, plain)
        return [figure("8 answers at once, top", "generate", ratios, f"{count * self.new / best:,.0f} tokens/s")]

    def memory(self) -> list[dict[str, Any]]:
        """A step on the large model in bf16 and 4 bits, against what the table of sizes says; bytes on a GPU only."""
        rows = []
        for stored in ("bf16", "nf4"):
            host = self.host(self.large, stored)
            top = self.session(host, gradient_checkpointing=True)
            batch = self.vectors(host, self.records, self.tokens)
            if self.gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            took = min(seconds(alone, [top], batch) for _ in range(2))
            held = torch.cuda.max_memory_allocated() if self.gpu else 0
            said = next(
                row
                for row in table(self.large, cut=1, records=self.records, tokens=self.tokens, card=24 * GB)
                if row["stored"] == stored and row["recomputed"]
            )
            speed = f"{held / GB:.2f} GB, {self.records * self.tokens / took:,.0f} tokens/s"
            rows.append(figure(f"memory: a step, {stored}", "the table of sizes", [held / said["total"]], speed))
            del host, top
        return rows

    def pairs(self, one: Callable[[], None], other: Callable[[], None]) -> tuple[list[float], float]:
        """How many times as fast `one` is, in turn with `other`, the first pair left out; and its best seconds."""
        found = [(seconds(one), seconds(other)) for _ in range(self.repeats + 1)][1:]
        return [theirs / ours for ours, theirs in found], min(ours for ours, _ in found)


def figure(name: str, against: str, ratios: list[float], absolute: str) -> dict[str, Any]:
    """One line of the table."""
    return {"figure": name, "against": against, "ratio": statistics.median(ratios), "absolute": absolute, "all": ratios}


def write(out: Path, rows: list[dict[str, Any]], took_s: float) -> None:
    """gpu-check.json and gpu-check.md."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU: a rehearsal, no figures"
    about = {"device": device, "torch": torch.__version__, "seconds": round(took_s), "figures": rows}
    (out / "gpu-check.json").write_text(json.dumps(about, indent=1) + "\n")
    lines = [
        f"Written by `scripts/gpu_check.sh` on {device}, torch {torch.__version__}, in {took_s:.0f} s.",
        "",
        "| figure | compared with | median ratio | absolute |",
        "|---|---|---|---|",
        *(f"| {row['figure']} | {row['against']} | {row['ratio']:.2f} | {row['absolute']} |" for row in rows),
    ]
    (out / "gpu-check.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run the parts; one that fails is a line of the table, and the others go on."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check.sh", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        check = Check(Path(scratch), arguments.repeats)
        for part in (check.training, check.jobs, check.answers, check.memory):
            try:
                rows += part()
            except Exception as error:
                rows.append(figure(part.__name__, "-", [0.0], f"failed: {error!r}"[:200].replace("|", "/")))
            if check.gpu:
                torch.cuda.empty_cache()
            write(arguments.out, rows, time.monotonic() - began)
            print(f"{part.__name__}: {time.monotonic() - began:.0f} s", flush=True)
    raise SystemExit(any(row["absolute"].startswith("failed") for row in rows))


if __name__ == "__main__":
    main()
