"""What other programs read of an export beside its weights: turns, their end, and the keys of transformers 4."""

import json

import pytest
from transformers import GenerationConfig

from privtune.device.data.source import DataSource
from privtune.device.export.export_job import ExportOptions, export_job
from tests.support.chats import CHATML, byte_tokenizer
from tests.support.running import train
from tests.support.world import InProcessCloud
from tests.support.writing import chat_world

OWN = CHATML + "{# the owner's own #}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = chat_world(tmp_path_factory.mktemp("readers"), InProcessCloud)
    yield built
    built.cloud.stop()


@pytest.fixture(scope="module")
def job(world):
    """Tuned on conversations in the owner's own template."""
    file, template = world.folder / "chats.jsonl", world.folder / "own.jinja"
    turns = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "it is said"}]
    file.write_text((json.dumps({"messages": turns}) + "\n") * 8)
    template.write_text(OWN)
    wanted = {"max_steps": 2, "batch_size": 2, "max_length": 128}
    spec = world.spec(model="chatty", task="causal-lm", train=wanted)
    return train(world, spec, DataSource(path=str(file), chat_template=str(template)))


def exported(world, job, name):
    settings = world.device(local_model=str(world.models["chatty"]))
    return export_job(job, world.folder / f"out-{name}", settings, ExportOptions(format=name.partition("-")[0]))


def template_of(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 has no TokenizersBackend
    file = folder / "chat_template.jinja"
    return file.read_text() if file.exists() else config["chat_template"]


def test_an_adapter_carries_the_template_of_its_training_and_its_turn_end(world, job):
    folder = exported(world, job, "peft")
    assert template_of(folder) == OWN
    tokenizer = byte_tokenizer(CHATML)
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    assert set(ends) == {3, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}  # 3: the base's own


def test_an_adapter_has_no_key_that_older_peft_does_not_know(world, job):
    """peft refuses a key that came after it; these are of its first release with `layers_to_transform` (0.4)."""
    config = json.loads((exported(world, job, "peft-keys") / "adapter_config.json").read_text())
    known = {"peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "lora_dropout"}
    assert config.keys() <= known | {"target_modules", "layers_to_transform", "layers_pattern"}


def test_special_tokens_are_a_list_where_transformers_4_reads_one(world, job):
    config = json.loads((exported(world, job, "peft-tokens") / "tokenizer_config.json").read_text())
    assert "<|im_end|>" in config["additional_special_tokens"]
    assert "extra_special_tokens" not in config


def test_a_merged_model_ends_turns_and_is_read_right_by_transformers_4(world, job):
    folder = exported(world, job, "merged")
    assert template_of(folder) == OWN
    turn_end = byte_tokenizer(CHATML).convert_tokens_to_ids("<|im_end|>")
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert turn_end in ends
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]


def test_a_gguf_file_carries_template_and_turn_end(world, job):
    gguf = pytest.importorskip("gguf")
    (file,) = exported(world, job, "gguf").glob("*.gguf")
    fields = gguf.GGUFReader(file).fields
    assert fields["tokenizer.chat_template"].contents() == OWN
    turn_end = byte_tokenizer(CHATML).convert_tokens_to_ids("<|im_end|>")
    assert fields["tokenizer.ggml.eot_token_id"].contents() == turn_end
