"""Tuned language models to write with, and what plain transformers + peft write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from privtune.device.data.source import DataSource
from privtune.device.export.export_job import export_job
from privtune.device.session.run_settings import RunSettings
from tests.support.chats import CHATML, byte_tokenizer
from tests.support.running import train
from tests.support.tiny_models import tiny_lm
from tests.support.world import World

PROMPTS = ["w5 w6 w7", "w50", "w1 w40 w41 w42 w43 w44 w9 w9 w3"]


def tune(world: World, *, model: str = "dec", record: bool = False, **changes: Any) -> str:
    """A short causal-LM job, trained to its end; the mechanism is off and the codec exact unless changed."""
    rows = world.folder / "lm.jsonl"
    rows.write_text("".join(f'{{"text": "w{n} w{n + 1} w{n + 2} w{n + 3}"}}\n' for n in range(40)))
    wanted = {"train": {"max_steps": 4}, **changes}
    spec = world.spec(model=model, task="causal-lm", **wanted)
    settings = world.device(record_frames=record)
    return train(world, spec, DataSource(path=str(rows)), settings=settings)


def plain_model(world: World, job_id: str, model: str = "dec") -> Any:
    """The owner's base with the exported adapter, in plain transformers + peft."""
    folder = world.folder / f"exported-{job_id}"
    export_job(job_id, folder, world.settings)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.models[model]), folder).eval()


def plain_tokens(model: Any, ids: list[int], count: int, **options: Any) -> tuple[int, ...]:
    """What `model.generate` writes greedily."""
    ids_1T = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=1,
            **options,
        )
    return tuple(out[0, len(ids) :].tolist())


def chat_world(folder: Path, cloud_type: type, tokenizer: Any = None) -> World:
    """A cloud with a tiny decoder `chatty` of bytes, or of a tokenizer; 512 positions, and a chat template."""
    tokenizer = tokenizer or byte_tokenizer(CHATML)
    target = folder / "models" / "chatty"
    tiny_lm("llama", vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(target)
    tokenizer.save_pretrained(target)
    models = {"chatty": target}
    cloud = cloud_type(folder / "cloud", models)
    settings = RunSettings(grpc_address=cloud.grpc_address, api_key=cloud.api_key, home=folder / "home")
    nothing = DataSource(path=str(folder / "none"))
    return World(cloud=cloud, folder=folder, models=models, settings=settings, data=nothing, validation=nothing)


def tune_chat(world: World, **changes: Any) -> str:
    """A short job on conversations."""
    file = world.folder / "chats.jsonl"
    turns = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "it is said"}]
    file.write_text((json.dumps({"messages": turns}) + "\n") * 8)
    wanted = {"train": {"max_steps": 2, "batch_size": 2, "max_length": 128}, **changes}
    spec = world.spec(model="chatty", task="causal-lm", **wanted)
    return train(world, spec, DataSource(path=str(file)))
