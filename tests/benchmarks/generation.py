"""Writing text: the split on loopback, noise on, against plain transformers + peft in one process on the same cores.

A Llama of SmolLM2-135M's sizes with random weights: what it writes means nothing, what it costs is the same.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from privtune.device.inference.generate import open_writer
from privtune.device.inference.generation.prompt_builder import Asked
from privtune.device.inference.generation.sampling import Sampling
from privtune.device.inference.generation.writer import Writer
from tests.benchmarks.figures import row
from tests.support.tiny_models import VOCAB, tiny_tokenizer
from tests.support.world import ProcessCloud, World, build_world
from tests.support.writing import plain_model, tune

SIZES = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
}
PROMPT, NEW, MANY = 48, 24, 8
AGAINST = "plain transformers + peft"
Seconds = tuple[float, float]  # to the first token, and from there to the last one


def writing(repeats: int, scratch: Path) -> list[dict[str, Any]]:
    """Time to the first token and per further token, of one answer and of several at once."""
    folder = scratch / "models" / "big"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    world = build_world(scratch / "writing", lambda place, _, **__: ProcessCloud(place, {"big": folder}, threads=None))
    world.models["big"] = folder
    try:
        return measured(world, repeats)
    finally:
        world.cloud.stop()


def measured(world: World, repeats: int) -> list[dict[str, Any]]:
    """A pair for each count of answers, in turn."""
    noise = {"mechanism": {"name": "dchi"}, "codec": "bf16", "tuning": {"rank": 8}}
    job_id = tune(world, model="big", cut=1, train={"max_steps": 1, "max_length": 16}, **noise)
    model = plain_model(world, job_id, "big")
    prompts = prompts_of(PROMPT)
    rows = []
    with open_writer(job_id, world.settings) as writer:
        for count in (1, MANY):
            pairs = []
            for _ in range(repeats + 1):
                texts = [next(prompts) for _ in range(count)]
                pairs.append((split(writer, texts), plain(model, texts)))
                print(f"   {count} at once: split {pairs[-1][0]}, plain {pairs[-1][1]}", flush=True)
            rows += figures(count, pairs[1:])
    return rows


def figures(count: int, pairs: Sequence[tuple[Seconds, Seconds]]) -> list[dict[str, Any]]:
    """The rows of one count of answers."""
    who = "1 answer" if count == 1 else f"{count} answers at once"
    first = [ours[0] / theirs[0] for ours, theirs in pairs]
    further = [ours[1] / theirs[1] for ours, theirs in pairs]
    typical = [statistics.median(ours[part] for ours, _ in pairs) for part in (0, 1)]
    speed = f"{count * (NEW - 1) / typical[1]:,.1f} tokens/s"
    return [
        row(f"writing, {who}: time to first token", AGAINST, first, "<= 1.3", f"{typical[0] * 1000:,.0f} ms"),
        row(f"writing, {who}: time a further token", AGAINST, further, "<= 1.3", speed),
    ]


def prompts_of(length: int) -> Any:
    """Prompts that no other one begins like, so that each of their rows has to be drawn."""
    generator = torch.Generator().manual_seed(1)
    for _ in itertools.count():
        yield torch.randint(5, VOCAB, (length,), generator=generator).tolist()


def split(writer: Writer, texts: Sequence[Sequence[int]]) -> Seconds:
    """All answers under way at once."""
    began = time.perf_counter()
    replies = [writer.begin(Asked(ids=list(ids)), Sampling(max_new_tokens=NEW, ignore_end=True)) for ids in texts]
    while not all(reply.new_ids for reply in replies):
        writer.advance()
    first = time.perf_counter()
    while writer.active:
        writer.advance()
    return first - began, time.perf_counter() - first


def plain(model: Any, texts: Sequence[Sequence[int]]) -> Seconds:
    """`generate` of all of them as one batch."""
    ids_BT = torch.tensor(texts)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=1,
            )
        return time.perf_counter() - began

    first = seconds(1)
    return first, seconds(NEW) - first
