"""The cloud's blocks as a module: a loop of one's own and a trainer learn what the built-in loop does."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from privtune.device import Client, FineTuneConfig
from privtune.device.account.ledger import spent
from privtune.device.account.verify import check
from privtune.device.data.source import DataSource
from privtune.shared.errors import InvalidInput, JobConflict, PolicyRefused
from privtune.shared.job_spec import OptimSpec
from privtune.shared.modeling.optim import build_optimizer, build_schedule, clip_gradients
from tests.support.running import ledger_entries, transcript_folder
from tests.support.world import ProcessCloud, build_world

STEPS = 6
OPTIM = OptimSpec(learning_rate=3e-3)
CONFIG = FineTuneConfig(
    batch_size=8,
    accumulation=2,
    max_length=16,
    max_steps=STEPS,
    epochs=10,
    lora_rank=4,
    lora_dropout=0.0,
    codec="fp32",
    learning_rate=3e-3,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("top"), ProcessCloud)
    yield built
    built.cloud.stop()


@pytest.fixture(scope="module")
def client(world):
    with Client(
        world.cloud.http_url, api_key=world.cloud.api_key, home=world.settings.home, say=lambda _: None
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def rows(world):
    found = DataSource(path=world.data.path).load("classification")
    return [{"text": one.text, "label": one.label} for one in found][:64]


@pytest.fixture
def one_order(monkeypatch):
    """Every job has its records in one order, so that losses can be compared."""
    monkeypatch.setattr("privtune.device.home.job_folder.secrets.randbits", lambda bits: 7)


@pytest.fixture(scope="module")
def built_in(client, rows):
    """The losses of the built-in loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("privtune.device.home.job_folder.secrets.randbits", lambda bits: 7)
        job = client.finetune(rows, model="enc", protect="none", config=CONFIG)
        result = job.wait(progress=False)
    losses = [event.info.loss for event in job.events() if event.kind == "step"]
    assert losses[-1] < losses[0]
    return losses, result.adapter_sha256


def remote_top(client, rows, **more):
    return client.remote_top(rows, model="enc", protect="none", config=CONFIG, **more)


def optimizer_of(top):
    optimizer = build_optimizer([{"params": list(top.head.parameters())}], OPTIM)
    return top.follow(optimizer), build_schedule(optimizer, OPTIM, STEPS)


def train(top, optimizer, schedule, last=STEPS):
    losses = []
    for step in range(top.steps, last):
        batches, total = top.batches(step), 0.0
        for records in batches:
            loss = cross_entropy(top.head(top(records)), top.targets(records)) / len(batches)
            loss.backward()
            total += loss.item()
        clip_gradients(list(top.head.parameters()), OPTIM.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def close(losses, others):
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(others), atol=1e-5, rtol=0)


def test_a_plain_loop_learns_as_the_built_in_one(client, world, rows, built_in, one_order):
    with remote_top(client, rows) as top:
        assert len(top.dataset) == len(rows)
        losses = train(top, *optimizer_of(top))
        result = top.finish()
    close(losses, built_in[0])
    assert result.steps == STEPS
    assert client.job(top.job_id).status == "succeeded"
    assert client.job(top.job_id).model.predict("w1 w2").label in top.label_names
    with pytest.raises(JobConflict, match="this loop has ended"):
        top.step()


def test_a_trainer_learns_as_the_built_in_loop(client, rows, built_in, one_order, tmp_path):
    losses = []

    class Model(torch.nn.Module):
        def __init__(self, top):
            super().__init__()
            self.top, self.head = top, top.head

        def forward(self, records, labels):
            logits = self.head(self.top(records))
            loss = cross_entropy(logits, labels)
            losses.append(loss.item())
            return {"loss": loss, "logits": logits}

    class InOrder(Trainer):
        def get_train_dataloader(self):
            order = [int(n) for step in range(STEPS) for records in top.batches(step) for n in records]
            return DataLoader(top.dataset, batch_size=8, sampler=order, collate_fn=self.data_collator)

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        max_grad_norm=OPTIM.max_grad_norm,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    with remote_top(client, rows, new=True) as top:
        trainer = InOrder(model=Model(top), args=arguments, train_dataset=top.dataset, optimizers=optimizer_of(top))
        trainer.train()
        evaluated = trainer.evaluate(top.dataset)
        top.finish()
    trained = torch.tensor(losses[: 2 * STEPS]).view(STEPS, 2).mean(1)
    close(trained.tolist(), built_in[0])
    assert evaluated["eval_loss"] == pytest.approx(torch.tensor(losses[2 * STEPS :]).mean().item(), abs=1e-4)


def interrupted(client, rows):
    """A loop that its owner stops after step 3; the job, and the state of every part after step 2."""
    kept = {}
    with remote_top(client, rows, checkpoint_every=2) as top:
        optimizer, schedule = optimizer_of(top)
        train(top, optimizer, schedule, last=2)
        for part in (top, top.head, optimizer, schedule):
            kept[type(part)] = copy.deepcopy(part.state_dict())
        train(top, optimizer, schedule, last=3)
    return top.job_id, kept


def test_an_interrupted_loop_goes_on_from_its_checkpoint(client, rows, built_in, one_order):
    job_id, kept = interrupted(client, rows)
    with remote_top(client, rows, checkpoint_every=2) as top:
        assert (top.job_id, top.steps) == (job_id, 2)
        optimizer, schedule = optimizer_of(top)
        train(top, optimizer, schedule, last=3)  # by an optimizer that has forgotten
        for part in (top, top.head, optimizer, schedule):
            part.load_state_dict(kept[type(part)])
        assert top.steps == 2
        close(train(top, optimizer, schedule), built_in[0][2:])
        with pytest.raises(JobConflict, match="no checkpoint of step 1"):
            top.set_extra_state(top.get_extra_state() - torch.tensor([0, STEPS - 1]))


def test_the_ledger_is_charged_once_and_the_transcript_agrees(client, world, rows):
    noise = {"mechanism": "dchi", "params": {"noise_ratio": 6.0}, "name": "once"}
    with remote_top(client, rows, **noise) as top:
        train(top, *optimizer_of(top), last=4)  # each record once
    once = spent(ledger_entries(world), "memory:once")
    assert once.releases == len(rows)
    with remote_top(client, rows, **noise) as top:  # from the beginning, and into the next epoch
        assert top.steps == 0
        train(top, *optimizer_of(top))
        top.finish()
    assert spent(ledger_entries(world), "memory:once") == once
    folder, releases = transcript_folder(world, top.job_id), world.settings.home / "releases.sqlite"
    found = check(top.job_id, folder, ledger_entries(world), releases)
    assert found.problems == []
    assert found.records == len(rows)


def test_a_pass_within_the_jobs_description(client, rows):
    with remote_top(client, rows, holdout=0.25, new=True) as top:
        held_out = [item["records"] for item in top.held_out]
        assert len(top.dataset) + len(held_out) == len(rows)
        for number in (0, 5, held_out[1]):
            (row,) = top.rows([number])
            assert top.label_names[int(top.targets([number])[0])] == rows[row - 1]["label"]
        with pytest.raises(InvalidInput, match="held-out records are for evaluation"):
            top(held_out[:2])
        with torch.no_grad():
            assert top(held_out).shape == (len(held_out), 32)
            twice = top([3, 1, 3])
            torch.testing.assert_close(twice[0], twice[2], atol=0, rtol=0)
            torch.testing.assert_close(twice[1], top([1])[0], atol=1e-5, rtol=0)
        with pytest.raises(InvalidInput, match="numbered from 0 to 63"):
            top([64])
        with pytest.raises(InvalidInput, match="batch_size=8"):
            top(range(9))
        with pytest.raises(InvalidInput, match="nothing went through"):
            top.step()
        one, two = top([0, 0, 1]), top([2])
        with pytest.raises(InvalidInput, match="accumulation=2"):
            top([3])
        one.sum().backward()
        assert top.step().step == 1  # a pass without a gradient had the gradient 0
        with pytest.raises(InvalidInput, match="one backward pass, before the next"):
            two.sum().backward()
        with pytest.raises(JobConflict, match="step 1 of 6, which has no checkpoint"):
            top.finish()
        top([4]).sum().backward()
        top.step(checkpoint=True)
        assert top.finish().steps == 2


def test_a_language_model_has_an_output_for_each_predicted_token(client, rows):
    texts = [{"text": row["text"]} for row in rows[:16]]
    with client.remote_top(texts, model="dec", protect="none", config=CONFIG, task="causal-lm", batch_size=4) as top:
        out_ND, targets_N = top([2, 0, 2]), top.targets([2, 0, 2])
        assert len(out_ND) == len(targets_N)
        cross_entropy(top.head(out_ND), targets_N).backward()
        top.step()
        third = len(top.targets([2]))
        torch.testing.assert_close(out_ND[:third], out_ND[-third:])


def test_what_a_loop_of_ones_own_can_not_have(client, rows, world, tmp_path, owner):
    before = len(client.jobs())
    early = {"early_stopping": 1, "holdout": 0.25}
    for more in ({"tail": 1}, {"label_epsilon": 2.0}, {"labels": "shared"}, {"zeroth_order_epsilon": 2.0}, early):
        with pytest.raises(InvalidInput, match=f"a loop of your own can't have {next(iter(more))}"):
            remote_top(client, rows, **more).__enter__()
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "policy.yaml").write_text("protections: [names]\n")
    with (
        Client(world.cloud.http_url, api_key=world.cloud.api_key, home=home, say=lambda _: None) as strict,
        pytest.raises(PolicyRefused),
    ):
        remote_top(strict, rows).__enter__()
    assert len(client.jobs()) == before
    with remote_top(client, rows, max_steps=2) as top:
        pass
    assert "trains in a loop of your own" in owner("finetune", "--job", top.job_id).line
