"""Invariant 1: with the mechanism off, split training is ordinary training."""

from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, get_scheduler

from privtune.device.data.batches import BatchPlan
from privtune.device.data.encode import encode_causal_lm, encode_classification
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder, JobState
from privtune.device.release.filler import Padding
from privtune.device.release.perturber import pad
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.lora import adapter_state, attach_lora
from privtune.shared.modeling.partition import Partition
from tests.support.running import adapter_file, train
from tests.support.world import Watcher

LLAMA_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def ordinary_loop(spec, ref, data, *, label_count, planned=None):
    """The same job as a plain transformers + peft loop: one model, one optimiser, the whole batch at once.

    planned: lengths by which batches are made up; None: the records' own.
    """
    lm = spec.task == "causal-lm"
    kind = AutoModelForCausalLM if lm else AutoModelForSequenceClassification
    model = kind.from_pretrained(ref) if lm else kind.from_pretrained(ref, num_labels=label_count)
    start = load_task_model(str(ref), spec.task, num_labels=label_count, seed=spec.train.seed)
    model.load_state_dict(start.state_dict())
    partition = Partition(start)
    top = partition.tail(spec.tail) if spec.tail else partition.top(spec.cut)
    attach_lora(top, spec.tuning, spec.train.seed)
    initial = {
        f"base_model.model.{name}".replace(".default", ""): value.clone() for name, value in adapter_state(top).items()
    }
    config = peft.LoraConfig(
        r=spec.tuning.rank,
        lora_alpha=spec.tuning.alpha,
        lora_dropout=0.0,
        target_modules=LLAMA_LINEAR if lm else ["query", "key", "value", "dense"],
        exclude_modules=None if lm else r".*(pooler|classifier).*",
        layers_to_transform=list(range(top.cut, top.stop)),
    )
    model = peft.get_peft_model(model, config)
    result = peft.set_peft_model_state_dict(model, initial)
    assert not result.unexpected_keys
    head = [] if lm else [p for n, p in model.named_parameters() if "classifier" in n or "pooler" in n]
    for parameter in head:
        parameter.requires_grad_(True)
    lora = [p for n, p in model.named_parameters() if "lora_" in n]
    assert sum(p.numel() for p in lora) == sum(v.numel() for v in initial.values())
    optimizer = torch.optim.AdamW([*lora, *head], lr=spec.optim.learning_rate, weight_decay=0.0)
    plan = BatchPlan(data.lengths if planned is None else planned, spec.train)
    warmup = -(-plan.total_steps * 6 // 100)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=warmup, num_training_steps=plan.total_steps)
    losses, norms = [], []
    model.train()
    for step in range(plan.total_steps):
        indices = [i for batch in plan.micro_batches(step) for i in batch.tolist()]
        ids_BT, mask_BT = pad([data.ids[i] for i in indices])
        logits = model(input_ids=ids_BT, attention_mask=mask_BT).logits
        if lm:
            loss_mask_BT = pad([data.loss_masks[i] for i in indices])[0].bool()[:, 1:]
            logits, targets = logits[:, :-1][loss_mask_BT], ids_BT[:, 1:][loss_mask_BT]
        else:
            targets = torch.from_numpy(data.labels[indices])
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        # Each side clips its own parameters (docs/architecture.md): so does the reference.
        mine = [*head, *lora] if spec.tail else lora
        norms.append(float(torch.nn.utils.clip_grad_norm_(mine, spec.optim.max_grad_norm)))
        if head and not spec.tail:
            torch.nn.utils.clip_grad_norm_(head, spec.optim.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    adapter = peft.get_peft_model_state_dict(model)
    return losses, norms, adapter, {n: p.detach() for n, p in model.named_parameters() if "classifier" in n}


def split(world, spec, source, data):
    """Run the job in the split; returns also its data in the order that the device (secretly) gave it."""
    job_id = world.cloud.create_job(spec)
    state = JobState(
        spec=spec,
        label_names=data.label_names,
        data_fingerprint=data.fingerprint,
        order_secret=7,  # fixed here only so that rounding is the same in each run of this test
        local_model=None,
    )
    JobFolder(world.settings.home, job_id).save(state)
    watcher = Watcher()
    train(world, spec, source, watcher=watcher, job_id=job_id)
    return job_id, data.pick(state.order(len(data))), watcher


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_encoder_classifier(local_world, cut):
    world = local_world
    spec = world.spec(cut=cut, optim={"learning_rate": 3e-3})
    data = encode_classification(world.data.load("classification"), load_tokenizer(str(world.models["enc"])), 16)
    job_id, data, watcher = split(world, spec, world.data, data)
    losses, norms, adapter, head = ordinary_loop(spec, world.models["enc"], data, label_count=2)
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    check_losses(watcher, losses, norms)
    check_adapter(world, job_id, adapter)
    checkpoint = load_file(
        world.settings.home / "jobs" / job_id / "checkpoints" / "step-00000020" / "state.safetensors"
    )
    for name, value in head.items():
        mine = checkpoint["param." + name.removeprefix("base_model.model.")]
        torch.testing.assert_close(mine, value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tail", [0, 1])
def test_padded_records_train_as_what_they_are_with_their_filler(local_world, monkeypatch, tail):
    """An encoder's text is read together with its filler, without any mask: what hides a length is what it costs."""
    world, original, filled = local_world, Padding.fill, {}

    def fill(self, ids_T, source):
        return filled.setdefault(ids_T.tobytes(), original(self, ids_T, source))

    monkeypatch.setattr(Padding, "fill", fill)
    spec = world.spec(tail=tail, skip="none", optim={"learning_rate": 3e-3}, train={"pad_to": (8,), "max_steps": 10})
    data = encode_classification(world.data.load("classification"), load_tokenizer(str(world.models["enc"])), 16)
    _, data, watcher = split(world, spec, world.data, data)
    ids = [filled.get(ids_T.tobytes(), ids_T) for ids_T in data.ids]
    assert {len(ids_T) for ids_T in ids} == {8, 16}
    planned = np.array([8 if len(ids_T) <= 8 else 16 for ids_T in data.ids])
    if not tail:
        losses, norms, *_ = ordinary_loop(
            spec, world.models["enc"], replace(data, ids=tuple(ids)), label_count=2, planned=planned
        )
        check_losses(watcher, losses, norms)
        return
    losses, _, *_ = ordinary_loop(spec, world.models["enc"], data, label_count=2, planned=planned)
    assert watcher.losses != pytest.approx(losses, abs=1e-5)  # the cloud's blocks read the filler too


def test_filler_costs_a_language_model_with_a_tail_nothing(local_world):
    """What follows a text is not read by it, and the device drops it: the job is that of the records alone."""
    world = local_world
    spec = world.spec(
        model="dec",
        task="causal-lm",
        tail=1,
        skip="none",
        optim={"learning_rate": 3e-3},
        train={"pad_to": (8,), "max_steps": 6},
    )
    source, data = language_data(world)
    job_id, data, watcher = split(world, spec, source, data)
    planned = np.array([8 if len(ids_T) <= 8 else 16 for ids_T in data.ids])
    losses, norms, adapter, _ = ordinary_loop(spec, world.models["dec"], data, label_count=2, planned=planned)
    check_losses(watcher, losses, norms)
    check_tail(world, job_id, adapter, step=6)


@pytest.mark.parametrize("cut", [0, 1])
def test_encoder_classifier_with_a_tail(local_world, cut):
    """What trains on the device, on states of the cloud, trains as the same blocks of the whole model do."""
    world = local_world
    spec = world.spec(cut=cut, tail=1, skip="none", optim={"learning_rate": 3e-3})
    data = encode_classification(world.data.load("classification"), load_tokenizer(str(world.models["enc"])), 16)
    job_id, data, watcher = split(world, spec, world.data, data)
    losses, norms, adapter, head = ordinary_loop(spec, world.models["enc"], data, label_count=2)
    assert losses[-1] < losses[0]
    check_losses(watcher, losses, norms)
    check_tail(world, job_id, adapter | head)


def check_losses(watcher, losses, norms):
    torch.testing.assert_close(torch.tensor(watcher.losses), torch.tensor(losses), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.tensor([info.grad_norm for info in watcher.steps]), torch.tensor(norms), atol=1e-5, rtol=1e-5
    )


def check_tail(world, job_id, trained, step=20):
    """The device's last checkpoint holds what the plain loop trained."""
    state = load_file(world.settings.home / "jobs" / job_id / "checkpoints" / f"step-{step:08}" / "state.safetensors")
    mine = {name.removeprefix("param.").replace(".default.", "."): v for name, v in state.items() if "param." in name}
    for name, value in trained.items():
        torch.testing.assert_close(mine[name.removeprefix("base_model.model.")], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tail", [0, 1, 2])
def test_decoder_language_model(local_world, tail):
    world = local_world
    spec = world.spec(
        model="dec", task="causal-lm", cut=0 if tail == 2 else 1, tail=tail, skip="none", optim={"learning_rate": 3e-3}
    )
    source, data = language_data(world)
    job_id, data, watcher = split(world, spec, source, data)
    losses, norms, adapter, _ = ordinary_loop(spec, world.models["dec"], data, label_count=2)
    assert losses[-1] < losses[0]
    check_losses(watcher, losses, norms)
    if tail:
        check_tail(world, job_id, adapter)
    else:
        check_adapter(world, job_id, adapter)


def language_data(world):
    rows = world.folder / "lm.jsonl"
    lines = (world.folder / "train.tsv").read_text().splitlines()[1:]
    rows.write_text("".join(f'{{"text": "{line.split(chr(9))[0]}"}}\n' for line in lines))
    source = DataSource(path=str(rows))
    return source, encode_causal_lm(source.load("causal-lm"), load_tokenizer(str(world.models["dec"])), 16)


def check_adapter(world, job_id, adapter):
    exported = load_file(adapter_file(world, job_id))
    assert exported.keys() == adapter.keys()
    for name, value in adapter.items():
        torch.testing.assert_close(exported[name], value, atol=1e-5, rtol=0)
