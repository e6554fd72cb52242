"""Jobs whose releases are few public vectors send ids: the same job to the last bit, in a hundredth of the bytes."""

import contextlib
import json

import pytest

from privtune.cloud.compute.step_machine import StepMachine
from privtune.device.account.ledger import outcomes
from privtune.device.account.verify import check
from privtune.device.inference.evaluate import evaluate
from privtune.device.inference.generate import generate_texts
from privtune.device.inference.generation.sampling import Sampling
from privtune.device.inference.predict import predict
from privtune.device.noise.base import Mechanism
from privtune.shared.errors import FrameCorrupt
from privtune.shared.wire import TABLE, Message
from privtune.split.v1 import split_pb2 as pb
from tests.support.running import (
    Died,
    adapter_hash,
    die_after,
    ledger_entries,
    run,
    same_order,
    transcript_folder,
)
from tests.support.world import Watcher
from tests.support.writing import PROMPTS, tune

CODES = {"name": "codes", "params": {"codes": 8, "dims": 2}}
CLUSTERS = {"name": "shared", "params": {"cluster_size": 8}}
RANDOMISED = {"name": "codes", "params": {"codes": 8, "dims": 2, "epsilon_code": 1.0}}
SHORT = {"train": {"max_steps": 12}, "codec": "bf16"}  # two epochs: later ones name their records
TEXTS = ["w5 w6 w7 w8 w9 w10", "w50 w51 w52"]


@contextlib.contextmanager
def vectors_sent():
    """Mechanisms in here send the vectors themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mechanism, "table", None)
        yield


def sent(world, job_id, kind):
    """The lines of a job's outgoing frames of a kind, over all runs."""
    paths = sorted(transcript_folder(world, job_id).glob("*.jsonl"))
    lines = [json.loads(text) for path in paths for text in path.read_text().splitlines()]
    return [line for line in lines if line.get("kind") == kind and line["direction"] == "up"]


def both_ways(world, spec):
    """Job, losses, metrics and predictions of a job that sends ids, and of one that sends vectors."""
    found, first = [], None
    for sending in (contextlib.nullcontext, vectors_sent):
        with sending():
            job_id, watcher = world.cloud.create_job(spec), Watcher()
            if first is not None:
                same_order(world, first, job_id)
            _, result = run(world, spec, job_id=job_id, watcher=watcher)
            answers = [one.probabilities for one in predict(job_id, TEXTS, world.settings)]
        found.append((job_id, watcher.losses, result.metrics, answers))
        first = job_id
    return found


@pytest.mark.parametrize(("mechanism", "tail"), [(CODES, 0), (CLUSTERS, 1)], ids=["codes", "clusters-tail"])
def test_a_job_is_the_same_to_the_last_bit(local_world, mechanism, tail):
    spec = local_world.spec(mechanism=mechanism, tail=tail, **SHORT)
    (ids, *of_ids), (vectors, *of_vectors) = both_ways(local_world, spec)
    assert of_ids == of_vectors
    if not tail:
        assert adapter_hash(local_world, ids) == adapter_hash(local_world, vectors)
    payload = sum(line["payload_bytes"] for line in sent(local_world, ids, "FORWARD"))
    other = sum(line["payload_bytes"] for line in sent(local_world, vectors, "FORWARD"))
    assert other == payload * 2 * 32  # one byte of two for each of D elements
    assert {line["codec"] for line in sent(local_world, ids, "FORWARD")} == {"ids8"}
    assert len(sent(local_world, ids, "TABLE")) == 1, "once per job: the prediction's session finds it"
    assert not sent(local_world, vectors, "TABLE")


def test_ledger_and_transcript_count_and_recompute_ids(local_world):
    spec = local_world.spec(mechanism=RANDOMISED, tail=1, skip="tuned", **SHORT)
    job_id, _ = run(local_world, spec)
    rows = outcomes(ledger_entries(local_world))
    assert rows
    assert all(row["bytes"] == row["rows"] > 0 for row in rows)
    releases = local_world.settings.home / "releases.sqlite"
    found = check(job_id, transcript_folder(local_world, job_id), ledger_entries(local_world), releases)
    assert not found.problems
    assert not found.open, "ids and their table are recomputed from the store"
    assert found.vectors == sum(row["rows"] for row in rows)


@pytest.mark.slow
def test_a_cloud_that_lost_everything_gets_the_same_ids_and_the_table_once_more(local_world):
    world = local_world
    world.restart(max_release_bytes=0)  # every record of a later epoch is asked for again
    spec = world.spec(mechanism=CODES, **SHORT)
    calm_id, calm = run(world, spec)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    with pytest.raises(Died):
        run(world, spec, watcher=Watcher(at_step=die_after(9)), job_id=job_id)
    lose_table(world, job_id)
    world.restart(max_release_bytes=0)
    _, result = run(world, spec, job_id=job_id)
    assert adapter_hash(world, job_id) == adapter_hash(world, calm_id)
    assert result.metrics == calm.metrics
    assert len(sent(world, job_id, "TABLE")) == 2
    before = predict(job_id, TEXTS, world.settings)
    lose_table(world, job_id)
    assert predict(job_id, TEXTS, world.settings) == before
    assert len(sent(world, job_id, "TABLE")) == 3
    assert evaluate(job_id, world.validation, world.settings).metrics == pytest.approx(result.metrics, rel=1e-5)
    assert len(sent(world, job_id, "TABLE")) == 3


def lose_table(world, job_id):
    (world.folder / "cloud" / "jobs" / job_id / "table.safetensors").unlink()


@pytest.mark.parametrize(("mechanism", "tail"), [(CODES, 1), (CLUSTERS, 0)], ids=["codes-tail", "clusters"])
@pytest.mark.slow
def test_a_language_model_writes_the_same_words(local_world, mechanism, tail):
    job_id = tune(local_world, mechanism=mechanism, tail=tail)
    written = []
    for sending in (contextlib.nullcontext, vectors_sent):
        with sending():
            answers = generate_texts(job_id, PROMPTS, local_world.settings, sampling=Sampling(max_new_tokens=6))
            written.append([one.tokens for one in answers])
    assert written[0] == written[1]
    assert {line["codec"] for line in sent(local_world, job_id, "FORWARD")} == {"ids8", "fp32"}


def test_a_cloud_that_answers_with_another_table_gets_no_ids(local_world, monkeypatch):
    other = pb.TableHeader(sha256="0" * 64)
    monkeypatch.setattr(StepMachine, "_take_table", lambda self, message: Message(kind=TABLE, step=0, table=other))
    job_id = local_world.cloud.create_job(spec := local_world.spec(mechanism=CODES, **SHORT))
    with pytest.raises(FrameCorrupt, match="another table"):
        run(local_world, spec, job_id=job_id)
    assert not sent(local_world, job_id, "FORWARD")
