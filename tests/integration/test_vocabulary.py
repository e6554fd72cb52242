"""A tokenizer that knows more than its model: one clear line before anything leaves, on every path."""

import pytest

from tests.support.owner import TINY, job_id_of
from tests.support.tiny_models import save_model
from tests.support.world import ProcessCloud, build_world

# The tiny tokenizer knows w0 ... w59 as tokens 4 ... 63; these models have no row for the last ones.
ROWS = 40
KNOWN = "sentence\tlabel\n" + "".join(f"w{n} w{n + 1} w{n + 2}\t{'low' if n % 2 else 'high'}\n" for n in range(30))
BEYOND = KNOWN + "w1 w55 w2\tlow\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    models = {
        "enc": save_model(folder / "narrow-enc", "bert", "classification", num_labels=2, vocab_size=ROWS),
        "dec": save_model(folder / "narrow-dec", "llama", "causal-lm", vocab_size=ROWS),
    }
    built = build_world(folder, lambda place, _, **more: ProcessCloud(place, models, **more))
    built.models.update(models)
    (folder / "known.tsv").write_text(KNOWN)
    (folder / "beyond.tsv").write_text(BEYOND)
    (folder / "beyond.jsonl").write_text('{"prompt": "w1", "completion": "w2 w55"}\n' * 8)
    yield built
    built.cloud.stop()


def refused(done):
    assert done.code == 4, (done.out, done.err)
    last = done.err.strip().splitlines()[-1]
    assert "Traceback" not in done.err
    assert "do not belong together" in last
    assert "w55" not in last
    assert "59" not in last  # the id of the token, which is private


def nothing_was_sent(owner, job_id):
    job = owner.world.cloud.control.get_job(job_id)
    assert job["status"] == "failed"
    assert "do not belong together" in job["privtune"]["reason"]
    assert not (owner.home / "jobs" / job_id / "checkpoints").exists()


@pytest.mark.parametrize(("task", "model", "data"), [("classification", "enc", "tsv"), ("causal-lm", "dec", "jsonl")])
def test_finetune(owner, task, model, data):
    before = set(owner.jobs())
    file = str(owner.world.folder / f"beyond.{data}")
    done = owner("finetune", "--task", task, "--model", model, "--data", file, "--protect", "none", *TINY)
    refused(done)
    (job_id,) = set(owner.jobs()) - before
    nothing_was_sent(owner, job_id)


def test_a_held_out_set_beyond_the_vocabulary(owner):
    held_out = str(owner.world.folder / "beyond.tsv")
    refused(owner.finetune("--validation", held_out, data=owner.world.folder / "known.tsv"))


def test_agent(owner):
    job_id = owner.world.cloud.create_job(owner.world.spec(training_file="device://beyond", train={"max_steps": 2}))
    data = f"beyond={owner.world.folder / 'beyond.tsv'}"
    refused(owner("agent", "--once", "--poll", "0.1", "--protect", "none", "--data", data))
    nothing_was_sent(owner, job_id)


def test_audit_and_tune_noise(owner):
    model, data = str(owner.world.models["enc"]), str(owner.world.folder / "beyond.tsv")
    refused(owner("audit", "--model", model, "--data", data, "--protect", "none"))
    refused(owner("tune-noise", "--model", model, "--data", data, "--cut", "1", "--holdout", "0.2", "--max-drop", "3"))


def test_evaluate_and_predict_with_a_job_that_knew_all_its_words(owner):
    done = owner.finetune(data=owner.world.folder / "known.tsv")
    assert done.code == 0, done.err
    job_id = job_id_of(done)
    refused(owner("evaluate", job_id, "--data", str(owner.world.folder / "beyond.tsv")))
    refused(owner("predict", job_id, "--text", "w1 w55"))
    assert owner("predict", job_id, "--text", "w1 w3").code == 0
