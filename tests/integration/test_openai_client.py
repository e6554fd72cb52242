"""The control plane as OpenAI's own client sees it, over real HTTP."""

import time

import openai
import pytest

from privtune.cloud.jobs.states import JobProgress
from privtune.shared.job_spec import JobSpec
from tests.support.leases import HOLDER, begin


def test_openais_client_creates_lists_retrieves_cancels_and_reads_events(plane):
    client = plane.openai()
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file="device://reviews",
        validation_file="device://held-out",
        suffix="mine",
        seed=7,
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
        extra_body={"privtune": {"cut": 1, "train": {"max_length": 64}}},
    )
    assert job.object == "fine_tuning.job"
    assert (job.status, job.seed, job.hyperparameters.n_epochs, job.method.type) == ("queued", 7, 2, "supervised")
    assert job.metadata == {"team": "a"}
    again = client.fine_tuning.jobs.retrieve(job.id)
    assert again == job
    spec = JobSpec.model_validate(again.privtune["spec"])
    assert (spec.train.max_length, spec.train.epochs, spec.suffix) == (64, 2, "mine")
    assert spec.fingerprint() == again.privtune["spec_fingerprint"]
    assert [item.id for item in client.fine_tuning.jobs.list()] == [job.id]
    assert [item.id for item in client.fine_tuning.jobs.list(metadata={"team": "a"})] == [job.id]
    assert list(client.fine_tuning.jobs.list(metadata={"team": "b"})) == []
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert (cancelled.status, cancelled.fine_tuned_model) == ("cancelled", None)
    assert cancelled.finished_at >= cancelled.created_at
    events = list(client.fine_tuning.jobs.list_events(job.id))
    assert [event.level for event in events] == ["info", "info"]
    assert "cancelled" in events[0].message, "newest first, as OpenAI's"
    assert "created" in events[1].message


def test_openais_client_pauses_resumes_and_sees_our_own_status(plane):
    client, job_id = plane.openai(), plane.make()
    assert client.fine_tuning.jobs.pause(job_id).status == "paused"
    assert client.fine_tuning.jobs.retrieve(job_id).status == "paused"
    assert client.fine_tuning.jobs.resume(job_id).status == "queued"


def test_openais_client_sees_how_a_job_ended(plane):
    client = plane.openai()
    good, bad = plane.make(), plane.make()
    token = begin(plane.jobs, good)
    plane.jobs.progress(good, JobProgress(step=3, total_steps=6))
    plane.jobs.record_checkpoint(good, token, 3)
    running = client.fine_tuning.jobs.retrieve(good)
    assert (running.status, running.privtune["phase"], running.privtune["progress"]["step"]) == (
        "running",
        "training",
        3,
    )
    plane.jobs.succeed(good, token, adapter_sha256="a" * 64, tokens=123, steps=6)
    plane.jobs.fail(bad, plane.jobs.leases.claim(bad, HOLDER), "NON_FINITE", "Training produced NaN in step 4.")
    done = client.fine_tuning.jobs.retrieve(good)
    assert (done.status, done.trained_tokens) == ("succeeded", 123)
    assert done.fine_tuned_model == f"ft:tiny:alice::{good.removeprefix('ftjob-')}"
    failed = client.fine_tuning.jobs.retrieve(bad)
    assert (failed.error.code, failed.error.message) == ("NON_FINITE", "Training produced NaN in step 4.")
    checkpoints = client.fine_tuning.jobs.checkpoints.list(good)
    assert [item.step_number for item in checkpoints] == [3]
    metrics = [event for event in client.fine_tuning.jobs.list_events(good) if event.type == "metrics"]
    assert metrics[0].data["step"] == 3


def test_openais_client_pages_by_itself(plane):
    made = [plane.make() for _ in range(25)]
    client = plane.openai()
    assert [job.id for job in client.fine_tuning.jobs.list(limit=10)] == made[::-1]
    for number in range(30):
        plane.jobs.add_event(made[0], "info", str(number))
    told = [event.message for event in client.fine_tuning.jobs.list_events(made[0], limit=7)]
    assert told[:30] == [str(number) for number in range(29, -1, -1)]
    assert len(told) == 31


def test_openais_client_lists_models(plane):
    client = plane.openai()
    assert [model.id for model in client.models.list()] == ["tiny"]
    model = client.models.retrieve("tiny")
    assert model.privtune["cuts"] == {"min": 0, "max": 2}
    assert model.owned_by == "privtune-cloud"


def test_openais_client_gets_its_own_exceptions(plane):
    client, job_id = plane.openai(), plane.make()
    create = client.fine_tuning.jobs.create
    with pytest.raises(openai.NotFoundError, match="/v1/models") as unknown:
        create(model="gpt-9", training_file="device://a")
    assert (unknown.value.code, unknown.value.param) == ("MODEL_NOT_FOUND", "model")
    with pytest.raises(openai.BadRequestError, match="0 to 2") as cut:
        create(model="tiny", training_file="device://a", extra_body={"privtune": {"cut": 3}})
    assert cut.value.code == "CUT_OUT_OF_RANGE"
    with pytest.raises(openai.BadRequestError, match="device://NAME"):
        create(model="tiny", training_file="file-abc123")
    with pytest.raises(openai.PermissionDeniedError, match="stays on the device"):
        client.files.create(file=b"secret text" * 100_000, purpose="fine-tune")
    with pytest.raises(openai.AuthenticationError, match="not known"):
        plane.openai("pt-" + "x" * 43).models.list()
    with pytest.raises(openai.NotFoundError):
        plane.openai(plane.keys.create("mallory").secret).fine_tuning.jobs.retrieve(job_id)
    client.fine_tuning.jobs.cancel(job_id)
    began = time.monotonic()
    with pytest.raises(openai.ConflictError, match="cancelled already"):
        openai.OpenAI(base_url=f"{plane.url}/v1", api_key=plane.key).fine_tuning.jobs.pause(job_id)
    assert time.monotonic() - began < 5
