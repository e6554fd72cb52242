"""Language-model jobs from conversations to scores: resumed, recomputed, evaluated; and what is refused."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from privtune.device.data.records import Columns
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder
from privtune.device.inference.evaluate import evaluate
from privtune.shared.errors import InvalidInput, JobConflict, JobPaused, ModelUnsupported
from tests.support.running import adapter_hash, run, same_order
from tests.support.tiny_models import tiny_tokenizer
from tests.support.world import Watcher

TEMPLATE = (
    "{% for m in messages %}[CLS] {{ m.role }} {{ m.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant {% endif %}"
)


@pytest.fixture
def chats(local_world):
    """The world's decoder with a chat template, and conversations to learn from: the answer repeats the question."""
    folder = local_world.folder
    give_template(local_world, TEMPLATE)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(96):
        messages = [{"role": "system", "content": "w1 w2"}]
        for _ in range(int(rng.integers(1, 3))):
            words = " ".join(f"w{number}" for number in rng.integers(0, 20, rng.integers(2, 9)))
            messages += [{"role": "user", "content": words}, {"role": "assistant", "content": words}]
        rows.append(json.dumps({"messages": messages}))
    (folder / "chats.jsonl").write_text("\n".join(rows) + "\n")
    return DataSource(path=str(folder / "chats.jsonl"))


def give_template(world, template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(world.models["dec"])


def lm(world, **changes):
    base = {
        "model": "dec",
        "task": "causal-lm",
        "train": {"batch_size": 4, "max_length": 40, "max_steps": 18, "checkpoint_every": 6},
    }
    for key, value in changes.items():
        base[key] = base.get(key, {}) | value if isinstance(value, dict) else value
    return world.spec(**base)


def test_a_chat_job_trains_resumes_and_recomputes_to_the_same_adapter(local_world, chats):
    """Paused in the middle, with and without gradient check-pointing: the same adapter, byte by byte."""
    world = local_world
    spec = lm(world, mechanism={"name": "dchi"}, codec="bf16", tuning={"dropout": 0.1})
    watcher = Watcher()
    calm_id, _ = run(world, spec, chats, watcher=watcher)
    # Under real noise of the default strength a few steps need not learn anything; the plain jobs show learning.
    assert np.isfinite(watcher.losses).all()
    form = JobFolder(world.settings.home, calm_id).load().prompt
    assert (form.kind, form.template) == ("chat", TEMPLATE)

    recomputed = lm(
        world, mechanism={"name": "dchi"}, codec="bf16", tuning={"dropout": 0.1, "gradient_checkpointing": True}
    )
    job_id = world.cloud.create_job(recomputed)
    same_order(world, calm_id, job_id, spec=recomputed)
    stop = threading.Event()
    with pytest.raises(JobPaused):
        run(
            world,
            recomputed,
            chats,
            job_id=job_id,
            stop=stop,
            watcher=Watcher(at_step=lambda info: stop.set() if info.step == 7 else None),
        )
    give_template(world, TEMPLATE.replace("[SEP]", "w9"))  # the job keeps the form that it began with
    run(world, recomputed, chats, job_id=job_id)
    assert adapter_hash(world, job_id) == adapter_hash(world, calm_id)


def test_evaluation_repeats_the_figures_of_the_end_of_training(local_world, chats):
    world = local_world
    train, held_out = chats.with_holdout(0.2)
    job_id, result = run(world, lm(world, mechanism={"name": "dchi"}), train, validation=held_out)
    found = evaluate(job_id, held_out, world.settings, batch_size=5)
    assert set(found.metrics) == {"loss", "perplexity", "token_accuracy"}
    assert found.metrics == pytest.approx(result.metrics, rel=1e-6, abs=1e-5)
    assert found.metrics["perplexity"] == pytest.approx(np.exp(found.metrics["loss"]))
    assert (found.records, found.written) == (19, None)


def test_answers_are_compared_with_the_data(local_world, chats):
    world = local_world
    job_id, _ = run(world, lm(world, train={"max_steps": 4}), chats)
    found = evaluate(job_id, replace(chats, limit=8), world.settings, generate=3, max_new_tokens=5)
    assert len(found.written.texts) == len(found.written.questions) == 3
    for question in found.written.questions:
        assert question.prompt[-1].role == "user"
        assert question.references == (question.prompt[-1].content,)
    assert 0 <= found.written.scores.rouge1 <= 1
    long = " ".join(["w3"] * 60)
    row = {"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "w3"}]}
    file = world.folder / "long.jsonl"
    file.write_text(json.dumps(row) + "\n" + (world.folder / "chats.jsonl").read_text().splitlines()[0])
    source = DataSource(path=str(file))
    found = evaluate(job_id, source, world.settings, generate=5, max_new_tokens=3)
    assert (found.records, found.dropped, found.written.too_long, len(found.written.texts)) == (1, 1, 1, 1)


def test_a_classifier_is_evaluated_too(local_world):
    world = local_world
    spec = world.spec(train={"max_steps": 10})
    job_id, result = run(world, spec, world.data, validation=world.validation)
    found = evaluate(job_id, world.validation, world.settings)
    assert found.metrics == pytest.approx(result.metrics, rel=1e-6, abs=1e-5)
    with pytest.raises(InvalidInput, match="is for language models"):
        evaluate(job_id, world.validation, world.settings, generate=2)


def test_a_model_without_a_chat_template_fails_the_job_and_says_what_to_do(local_world, chats, tmp_path):
    world = local_world
    give_template(world, None)
    (world.models["dec"] / "chat_template.jinja").unlink(missing_ok=True)
    spec = lm(world, train={"max_steps": 2})
    job_id = world.cloud.create_job(spec)
    with pytest.raises(ModelUnsupported, match=r"no chat template.*--chat-template FILE"):
        run(world, spec, chats, job_id=job_id)
    status, reason = world.cloud.status(job_id)
    assert status == "failed"
    assert "chat template" in reason
    own = tmp_path / "own.jinja"
    own.write_text(TEMPLATE)
    given_id, _ = run(world, spec, replace(chats, chat_template=str(own)))
    assert JobFolder(world.settings.home, given_id).load().prompt.template == TEMPLATE


def test_what_evaluation_refuses(local_world, chats, monkeypatch):
    world = local_world
    texts = DataSource(path=str(world.folder / "train.tsv"), columns=Columns(text="sentence"))
    spec = lm(world, train={"max_steps": 2})
    job_id = world.cloud.create_job(spec)
    stop = threading.Event()
    stop.set()
    with pytest.raises(JobPaused):
        run(world, spec, texts, job_id=job_id, stop=stop)
    with pytest.raises(InvalidInput, match="--generate needs prompts"):
        evaluate(job_id, texts, world.settings, generate=2)
    other = world.cloud.create_job(spec)
    JobFolder(world.settings.home, other).save(JobFolder(world.settings.home, job_id).load())
    with pytest.raises(JobConflict, match="no checkpoint on this device"):
        evaluate(other, texts, world.settings)
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(InvalidInput, match=r"pip install '\.\[eval\]'"):
        evaluate(job_id, chats, world.settings, generate=2)
