"""Jobs with a tail: the last blocks train on the device, no gradient leaves, and all else works as without one."""

import json
import sys
import threading

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from privtune.device.account.ledger import outcomes
from privtune.device.audit.jobs.recorded import Traffic
from privtune.device.export.export_job import ExportOptions, export_job
from privtune.device.home.job_folder import JobFolder
from privtune.device.home.policy import Budget, Policy
from privtune.device.inference.evaluate import evaluate
from privtune.device.inference.generate import generate_texts, open_writer
from privtune.device.inference.generation.sampling import Sampling
from privtune.device.inference.predict import predict
from privtune.device.model.head import HeadTrainer
from privtune.device.model.tail import States, Tail
from privtune.device.release.perturber import pad
from privtune.shared.errors import (
    CutOutOfRange,
    InvalidInput,
    JobCancelled,
    JobPaused,
    ModelUnsupported,
    PackageMissing,
    PolicyRefused,
)
from privtune.shared.modeling.bottom_package import bottom_from_model
from privtune.shared.modeling.load import load_tokenizer
from tests.support.proxy import Proxy
from tests.support.running import Died, die_after, ledger_entries, once, run, same_order, transcript_folder
from tests.support.texts import TEXTS
from tests.support.world import Watcher
from tests.support.writing import PROMPTS, plain_model, plain_tokens, tune

FREELY = Sampling(max_new_tokens=20, ignore_end=True)


def kinds(world, job_id):
    """Which kinds of frames crossed the wire and in which direction, by the device's own transcript."""
    traffic = Traffic(transcript_folder(world, job_id), job_id, None)
    return {kind.partition(" (")[0] for kind in traffic.counts}


def test_it_learns_without_a_gradient_and_asks_the_cloud_once_a_record(local_world):
    world = local_world
    shape = {"max_steps": None, "epochs": 30, "batch_size": 16, "accumulation": 1, "checkpoint_every": 20}
    spec = world.spec(tail=1, train=shape, optim={"learning_rate": 5e-3})
    watcher = Watcher()
    job_id, _ = run(world, spec, settings=world.device(record_frames=True), watcher=watcher)
    assert world.cloud.status(job_id)[0] == "succeeded"
    assert np.mean(watcher.losses[-10:]) < 0.8 * np.mean(watcher.losses[:10])
    seen = kinds(world, job_id)
    assert "up GRADIENT" not in seen
    plain_id, _ = run(world, world.spec(train={"max_steps": 1}), settings=world.device(record_frames=True))
    assert kinds(world, plain_id) >= {"up GRADIENT", "up FORWARD", "down OUTPUT"}, "or the line above could not fail"
    by_epoch = [info.bytes_up for info in watcher.steps if info.step % 10 == 0]
    first, last = by_epoch[0], by_epoch[-1] - by_epoch[1]
    assert last < 0.1 * first, "later epochs send nothing but the steps themselves"
    assert not JobFolder(world.settings.home, job_id).states.exists(), "a finished job lets its states go"
    told = {row["gradients"] for row in ledger_entries(world) if row.get("job") == job_id and "gradients" in row}
    assert told == {"none leave"}


def test_a_cancelled_job_lets_its_states_go(world):
    job_id = world.cloud.create_job(spec := world.spec(tail=1))
    watcher = Watcher(at_step=lambda info: world.cloud.cancel(job_id) if info.step == 5 else None)
    with pytest.raises(JobCancelled):
        run(world, spec, watcher=watcher, job_id=job_id)
    assert JobFolder(world.settings.home, job_id).path.exists()
    assert not JobFolder(world.settings.home, job_id).states.exists()


def test_prediction_and_evaluation_go_through_the_tail(world):
    spec = world.spec(tail=1, mechanism={"name": "dchi", "params": {"noise_ratio": 0.2}})
    job_id, result = run(world, spec)
    found = evaluate(job_id, world.validation, world.settings, batch_size=7)
    assert found.metrics == pytest.approx(result.metrics, rel=1e-5, abs=1e-5)
    told = predict(job_id, TEXTS, world.settings)
    assert [one.label for one in told] == [one.label for one in predict(job_id, TEXTS, world.settings, batch_size=1)]


def test_states_come_back_in_eight_bits_where_the_job_says_so(local_world):
    world, found = local_world, []
    for states in ("codec", "int8"):
        spec, watcher = world.spec(tail=1, states=states, train={"max_steps": 12}), Watcher()
        job_id = world.cloud.create_job(spec)
        if found:
            same_order(world, found[0][0], job_id, spec=spec)
        run(world, spec, job_id=job_id, watcher=watcher)
        assert len(predict(job_id, TEXTS, world.settings)) == len(TEXTS)
        lines = [json.loads(text) for path in transcript_folder(world, job_id).glob("*.jsonl") for text in path.open()]
        down = [line for line in lines if line.get("kind") == "OUTPUT"]
        assert {line["codec"] for line in down} == {"fp32" if states == "codec" else "int8"}
        found.append((job_id, watcher.losses, sum(line["payload_bytes"] for line in down)))
    (_, exact, many), (_, rounded, few) = found
    assert rounded[0] == pytest.approx(exact[0], abs=0.01)
    assert rounded == pytest.approx(exact, abs=0.2)  # the optimiser's first steps enlarge what rounding changes
    assert rounded != exact
    assert few * 32 * 4 == many * (32 + 4)


@pytest.mark.parametrize(
    ("method", "skip"),
    [
        ("lora", "tuned"),
        ("full", "none"),
        *(
            pytest.param(method, skip, marks=pytest.mark.slow)
            for method, skip in (("lora", "none"), ("lora", "frozen"), ("full", "frozen"), ("full", "tuned"))
        ),
    ],
)
def test_a_new_process_and_a_cut_line_end_with_the_undisturbed_tail(local_world, skip, method):
    world = local_world

    spec = world.spec(
        tail=1,
        skip=skip,
        tuning={"dropout": 0.1, "method": method},
        train={"checkpoint_every": 4},
        optim={"learning_rate": 3e-3},
    )
    calm_id, calm = run(world, spec)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    with Proxy(world.settings.grpc_address, record=False) as proxy:
        settings = world.device(grpc_address=proxy.address)
        with pytest.raises(Died):
            run(world, spec, settings=settings, watcher=Watcher(at_step=die_after(9)), job_id=job_id)
        watcher = Watcher(at_step=once({11}, proxy.cut))
        _, result = run(world, spec, settings=settings, watcher=watcher, job_id=job_id)
    assert watcher.starts[0].start_step == 8
    assert result.adapter_sha256 == calm.adapter_sha256
    _, other = run(world, world.spec(tail=1, skip=skip, tuning={"method": method}, train={"seed": 5}))
    assert other.adapter_sha256 != calm.adapter_sha256, "or the line above could not fail"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_tuned_skip_learns_more_and_the_bottom_that_releases_stays(local_world, method):
    world, ids = local_world, np.array([1, 5, 6, 7, 2])
    parts = bottom_from_model(str(world.models["enc"]), "classification", 1, tail=1)
    spec = world.spec(tail=1, skip="tuned", tuning={"method": method, "dropout": 0.0}, optim={"learning_rate": 1e-2})
    released = parts.bottom(*pad([ids])).clone()
    head = HeadTrainer(parts.head, spec.optim, seed=0, total_steps=20, tail=(tail := Tail.of(parts, spec)))
    frozen = Tail.of(
        bottom_from_model(str(world.models["enc"]), "classification", 1, tail=1),
        spec.model_copy(update={"skip": "frozen"}),
    )
    assert {name for name in tail.state() if "layer.0." in name}, "the copy of block 0 is trained"
    assert len(tail.parameters) > len(frozen.parameters)
    before = tail.sha256()
    ids_BT, mask_BT = pad([ids])
    states = States(z_BTD=released, clean_BTD=parts.bottom.embed(ids_BT, mask_BT), mask_BT=mask_BT)
    losses = []
    for step in range(6):
        losses.append(head.learn(states, torch.tensor([0]), torch.tensor([1]), step=step, micro_batch=0, items=1))
        assert step < 2 or all(parameter.grad is not None for parameter in tail.parameters), "nothing is left out"
        head.step()
    assert losses[-1] < losses[0]
    assert tail.sha256() != before
    assert torch.equal(parts.bottom(*pad([ids])), released)


def test_ctrl_c_pauses_and_the_same_job_goes_on(world):
    stop = threading.Event()
    spec = world.spec(tail=1)
    job_id = world.cloud.create_job(spec)
    first = Watcher(at_step=lambda info: stop.set() if info.step == 7 else None)
    with pytest.raises(JobPaused, match="paused after step"):
        run(world, spec, watcher=first, stop=stop, job_id=job_id)
    assert JobFolder(world.settings.home, job_id).states.exists()
    second = Watcher()
    run(world, spec, watcher=second, job_id=job_id)
    assert second.starts[0].start_step == first.steps[-1].step
    assert world.cloud.status(job_id)[0] == "succeeded"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_export_without_a_skip_is_the_split_model_itself(local_world, method):
    world = local_world
    job_id, _ = run(world, world.spec(tail=1, skip="none", tuning={"method": method}, optim={"learning_rate": 3e-3}))
    split = np.array([list(p.probabilities.values()) for p in predict(job_id, TEXTS, world.settings)])
    batch = load_tokenizer(str(world.models["enc"]))(TEXTS, padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    base = AutoModelForSequenceClassification.from_pretrained(world.models["enc"], num_labels=2)
    if method == "lora":
        folder = export_job(job_id, world.folder / "exported", world.settings)
        assert json.loads((folder / "adapter_config.json").read_text())["layers_to_transform"] == [2]
        assert "last block" in (folder / "README.md").read_text()
        with torch.no_grad():
            plain = PeftModel.from_pretrained(base, folder).eval()(**inputs).logits.softmax(-1)
        np.testing.assert_allclose(plain.numpy(), split, atol=1e-5)
    merged = export_job(
        job_id,
        world.folder / "merged",
        world.device(local_model=str(world.models["enc"])),
        ExportOptions(format="merged"),
    )
    with torch.no_grad():
        plain = AutoModelForSequenceClassification.from_pretrained(merged).eval()(**inputs).logits.softmax(-1)
    np.testing.assert_allclose(plain.numpy(), split, atol=1e-5)


def test_a_model_with_a_skip_is_not_exported(local_world):
    world = local_world
    job_id, _ = run(world, world.spec(tail=1, train={"max_steps": 2}))
    with pytest.raises(ModelUnsupported, match="--skip none to export"):
        export_job(job_id, world.folder / "exported", world.settings)
    assert not (world.folder / "exported").exists()


def test_a_language_model_writes_as_in_plain_transformers(local_world):
    world = local_world
    job_id = tune(world, tail=1, skip="none")
    found = generate_texts(job_id, PROMPTS, world.settings, sampling=FREELY, in_flight=2)
    with open_writer(job_id, world.settings) as writer:
        prompts = [writer.prompts.asked(prompt).ids for prompt in PROMPTS]
    model = plain_model(world, job_id)
    for ids, answer in zip(prompts, found, strict=True):
        assert answer.tokens == plain_tokens(model, ids, 20, eos_token_id=None)


@pytest.mark.parametrize(
    ("injection", "skip"),
    [
        ("cut", "tuned"),
        ("embedding", "frozen"),
        pytest.param("cut", "frozen", marks=pytest.mark.slow),
        pytest.param("embedding", "tuned", marks=pytest.mark.slow),
    ],
)
def test_a_language_model_with_a_skip_writes_what_its_whole_texts_say(local_world, injection, skip):
    """Token by token with kept keys and values, or every state computed again: the same answer."""
    world = local_world
    noise = {"name": "dchi", "params": {"noise_ratio": 0.3, "injection": injection}}
    job_id = tune(world, tail=1, skip=skip, mechanism=noise, train={"max_steps": 12})
    (found,) = generate_texts(job_id, PROMPTS[:1], world.settings, sampling=FREELY)
    world.restart(max_texts=0)  # forgets every state at once
    again = generate_texts(job_id, PROMPTS[:1], world.settings, sampling=FREELY)
    assert again[0].tokens == found.tokens
    with (
        Proxy(world.settings.grpc_address, record=False) as proxy,
        open_writer(job_id, world.device(grpc_address=proxy.address)) as writer,
    ):
        reply = writer.begin(writer.prompts.asked(PROMPTS[0]), FREELY)
        for count in range(1, 21):
            writer.advance()
            if count == 6:
                proxy.cut()
        assert tuple(reply.new_ids) == found.tokens


def test_lora_without_peft_is_refused_before_anything_is_entered_and_the_job_waits(local_world, monkeypatch):
    world = local_world
    job_id = world.cloud.create_job(world.spec(tail=1))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PackageMissing, match=r"--tuning full.*pip install '\.\[tail\]'"):
        run(world, world.spec(tail=1), job_id=job_id)
    assert world.cloud.status(job_id)[0] == "queued"
    assert outcomes(ledger_entries(world)) == []
    run(world, world.spec(tail=1, tuning={"method": "full"}, train={"max_steps": 2}))


def test_what_is_refused(local_world):
    world = local_world
    spec = world.spec(tail=2)
    job_id = world.cloud.create_job(spec)
    with pytest.raises(CutOutOfRange, match="Cut 1 and a tail of 2 leave none of this model's 3 blocks to the cloud"):
        run(world, spec, job_id=job_id)
    pooled = world.spec(tail=1, mechanism={"name": "pool", "params": {"clusters": False}})
    with pytest.raises(InvalidInput, match="--skip none with this mechanism"):
        run(world, pooled)
    run(world, world.spec(tail=1, skip="none", mechanism=pooled.mechanism.model_dump(), train={"max_steps": 2}))
    policy = Policy(protections=("none",), gradients="none", budget=Budget(noises=None))
    with pytest.raises(PolicyRefused, match="lets no gradient leave"):
        run(world, world.spec(), settings=world.device(policy=policy))
    run(world, world.spec(tail=1, train={"max_steps": 2}), settings=world.device(policy=policy))


@pytest.mark.parametrize(("tail", "skip", "warned"), [(0, "none", True), (1, "none", True), (1, "tuned", False)])
def test_codes_that_hide_the_task_ask_for_a_device_that_learns_it(local_world, tail, skip, warned):
    world, watcher = local_world, Watcher()
    hide = {"name": "codes", "params": {"codes": 4, "dims": 2, "task": "private", "task_use": "hide"}}
    run(world, world.spec(tail=tail, skip=skip, mechanism=hide, train={"max_steps": 2}), watcher=watcher)
    assert any("hides the classes from the cloud" in line for line in watcher.messages) == warned


def test_the_bottom_package_brings_the_tail_and_nothing_between(local_world):
    world = local_world
    job_id, _ = run(world, world.spec(tail=1, cut=0, train={"max_steps": 2}))
    assert world.cloud.status(job_id)[0] == "succeeded"
    (folder,) = (world.settings.home / "bottoms").iterdir()
    layers = {
        name.split("layer.")[1].split(".")[0] for name in load_file(folder / "bottom.safetensors") if "layer." in name
    }
    assert layers == {"2"}
    with_copy = world.device(local_model=str(world.models["enc"]), home=world.folder / "home2")
    run(world, world.spec(tail=1, cut=0, train={"max_steps": 2}), settings=with_copy)
