"""Early stopping: the device stops and keeps the best state, and the cloud learns of it at the end alone."""

import pytest

from privtune.device.home.job_folder import JobFolder
from privtune.device.inference.predict import predict
from privtune.device.link.rpc import Link
from privtune.device.session.scoring import Scorer
from privtune.shared.errors import CloudUnreachable
from privtune.shared.modeling.checkpoint import checkpoint_steps
from tests.support.running import adapter_hash, run, same_order, transcript_folder
from tests.support.transcripts import recorded_frames
from tests.support.world import Watcher

FLAT = {"learning_rate": 1e-2, "schedule": "constant", "warmup_ratio": 0.0}
LOSSES = [0.9, 0.5, 0.6, 0.55, 0.1]  # the last one is never asked for
TRAIN = {"early_stopping": 2, "evaluate_every": 2, "max_steps": 12, "batch_size": 8, "accumulation": 1}


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations say what a test wants, in place of what the records say."""

    def script(losses):
        coming = iter(losses)
        monkeypatch.setattr(Scorer, "score", lambda self, data, **place: {"loss": next(coming)})

    return script


def patient(world, **changes):
    handle = {"validation_file": "device://sentences-validation"}
    return world.spec(optim=FLAT, train=TRAIN | changes.pop("train", {}), **handle | changes)


def controls(world, job_id):
    frames = recorded_frames(transcript_folder(world, job_id), job_id)
    return [frame.control.SerializeToString() for _, frame in frames if frame.HasField("control")]


def plain_job(world, like, steps):
    """The same job without it, ended where the best state was."""
    spec = world.spec(optim=FLAT, train=TRAIN | {"early_stopping": None, "max_steps": steps}, tail=like.spec.tail)
    job_id = world.cloud.create_job(spec)
    return spec, job_id


@pytest.mark.parametrize("tail", [0, 1])
def test_the_best_state_is_that_of_a_job_which_ends_there(local_world, scripted, tail):
    world = local_world
    scripted(LOSSES)
    watcher = Watcher()
    job_id, result = run(world, patient(world, tail=tail), watcher=watcher)
    assert watcher.steps[-1].step == 8  # two evaluations after the best
    assert (result.steps, result.metrics) == (4, {"loss": 0.5})
    assert any("stopped after step 8 of 12: keeps the state of step 4" in line for line in watcher.messages)
    assert any("at most log2(K) bits" in caveat for caveat in result.statement.caveats)
    assert world.cloud.jobs.get(job_id).status == "succeeded"
    folder = JobFolder(world.settings.home, job_id)
    assert checkpoint_steps(folder.checkpoints) == [4]
    spec, other = plain_job(world, folder.load(), 4)
    same_order(world, job_id, other, spec=spec, kept_step=None)
    _, reference = run(world, spec, validation=False, job_id=other)
    assert reference.adapter_sha256 == result.adapter_sha256
    if not tail:
        assert adapter_hash(world, other) == adapter_hash(world, job_id)
    texts = ["w1 w2 w3", "w40 w41 w50"]
    assert [p.probabilities for p in predict(job_id, texts, world.settings)] == [
        pytest.approx(p.probabilities, abs=1e-6) for p in predict(other, texts, world.settings)
    ]


def test_until_the_end_the_cloud_sees_nothing_of_the_evaluations(local_world, scripted):
    world, settings, said = local_world, local_world.device(record_frames=True), []
    for losses in (LOSSES, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]):
        scripted(losses)
        said.append(controls(world, run(world, patient(world), settings=settings)[0]))
    early, late = said
    assert (len(early), len(late)) == (8, 12)
    assert late[:8] == early


@pytest.mark.parametrize("lost", ["before", "after"], ids=["commit is lost", "answer is lost"])
def test_a_lost_commit_is_made_again(local_world, scripted, monkeypatch, lost):
    world, original, commits = local_world, Link.commit, []

    def commit(self, request):
        commits.append(request.final_step)
        if len(commits) == 1 and lost == "before":
            raise CloudUnreachable("the connection was lost")
        answer = original(self, request)
        if len(commits) == 1:
            raise CloudUnreachable("the connection was lost")
        return answer

    scripted(LOSSES)
    monkeypatch.setattr(Link, "commit", commit)
    job_id, result = run(world, patient(world))
    assert commits == [4, 4]
    assert result.steps == 4
    assert world.cloud.jobs.get(job_id).adapter_sha256 == result.adapter_sha256


def test_a_run_killed_before_an_evaluation_makes_it_up(local_world, scripted, monkeypatch):
    world, spec = local_world, patient(local_world)
    scripted([0.9])
    with pytest.raises(StopIteration):  # the second evaluation kills the run
        run(world, spec, job_id=(job_id := world.cloud.create_job(spec)))
    scripted(LOSSES[1:])
    _, result = run(world, spec, job_id=job_id)
    assert JobFolder(world.settings.home, job_id).evaluations(12) == {
        2: {"loss": 0.9},
        4: {"loss": 0.5},
        6: {"loss": 0.6},
        8: {"loss": 0.55},
    }
    assert result.steps == 4
