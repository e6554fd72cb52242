"""DELETE over real HTTP: OpenAI's shape, for its owner only; and what a deletion does to a session in use."""

import contextlib
import os

import openai
import pytest

from privtune.device.link.download import artifact_of, fetch_manifest
from privtune.device.link.rpc import Link
from privtune.shared.errors import JobNotFound
from privtune.split.v1 import split_pb2 as pb
from tests.support.leases import begin
from tests.support.running import train
from tests.support.sessions import request_for, streaming


def done(plane):
    job_id = plane.make()
    plane.jobs.succeed(job_id, begin(plane.jobs, job_id), adapter_sha256="00", tokens=1, steps=1)
    return job_id, plane.jobs.get(job_id).tuned_model


def test_a_tuned_model_is_deleted_with_openais_client(plane):
    job_id, model = done(plane)
    client = plane.openai()
    for _ in range(2):
        answer = client.models.delete(model)
        assert (answer.id, answer.object, answer.deleted) == (model, "model", True)
    for gone in (lambda: client.models.retrieve(model), lambda: client.fine_tuning.jobs.retrieve(job_id)):
        with pytest.raises(openai.NotFoundError):
            gone()


def test_a_job_is_deleted_with_a_receipt(plane):
    job_id, _ = done(plane)
    with plane.http() as client:
        first, again = (client.delete(f"/v1/fine_tuning/jobs/{job_id}") for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert first.json() | {"privtune": {}} == {
        "id": job_id,
        "object": "fine_tuning.job",
        "deleted": True,
        "privtune": {},
    }
    assert first.json()["privtune"]["went"]["events"]["count"] == 3


def test_others_and_unfinished_jobs_and_the_clouds_models_are_refused(plane):
    job_id, model = done(plane)
    waiting, stranger = plane.make(), plane.keys.create("mallory").secret
    wrong = model.replace("tiny", "other")
    for key, path, status, code in [
        (stranger, f"fine_tuning/jobs/{job_id}", 404, "JOB_NOT_FOUND"),
        (stranger, f"models/{model}", 404, "MODEL_NOT_FOUND"),
        (None, f"models/{wrong}", 404, "MODEL_NOT_FOUND"),
        (None, "models/ft:tiny:alice::none", 404, "MODEL_NOT_FOUND"),
        (None, "models/tiny", 403, "PERMISSION_DENIED"),
        (None, f"fine_tuning/jobs/{waiting}", 409, "JOB_CONFLICT"),
    ]:
        with plane.http(key) as client:
            answer = client.delete(f"/v1/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), path
    assert {job.id for job in plane.jobs.list("alice").items} == {job_id, waiting}


def test_a_session_in_use_ends_and_its_memory_is_freed(local_world):
    world = local_world
    spec = world.spec(train={"max_steps": 2})
    job_id = train(world, spec)
    folder = world.folder / "cloud" / "jobs" / job_id
    assert (folder / "adapter").exists()
    request = request_for(world, job_id, spec, infer=True, checkpoint_steps=[2])
    with Link(world.settings.endpoint) as link, contextlib.ExitStack() as stack:
        stream = stack.enter_context(streaming(link, request))
        link.open(request)  # another, whose stream has not begun
        world.cloud.jobs.deletions.delete(job_id, "alice")
        assert not folder.exists()
        with pytest.raises(JobNotFound, match="deleted"):
            stream.receive()
        with pytest.raises(JobNotFound):
            link.open(request)


def test_a_package_that_is_asked_for_is_in_use(local_world):
    world = local_world
    job_id = world.cloud.create_job(world.spec())
    with Link(world.settings.endpoint) as link:
        first = fetch_manifest(link, artifact_of(pb.ARTIFACT_KIND_BOTTOM, job_id))
        (folder,) = (world.folder / "cloud" / "bottoms").iterdir()
        os.utime(folder, (0, 0))
        assert fetch_manifest(link, artifact_of(pb.ARTIFACT_KIND_BOTTOM, job_id)) == first
        assert folder.stat().st_mtime > 0
