"""Whole jobs, in process and against a real cloud process: they end as they should, whatever happens on the way."""

import json
import threading
import time
from functools import partial

import pytest

from privtune.device.data.source import DataSource
from privtune.device.inference.predict import predict
from privtune.shared.errors import (
    CloudUnreachable,
    InvalidInput,
    JobCancelled,
    JobConflict,
    JobPaused,
    MessageTooLarge,
    NonFinite,
    Unauthenticated,
    VersionMismatch,
)
from tests.support.proxy import Proxy
from tests.support.running import Died, adapter_hash, die_after, once, run, same_order, wait_for
from tests.support.texts import write_sentences
from tests.support.world import InProcessCloud, ProcessCloud, Watcher, build_world


def test_a_private_job_learns_and_predicts(world):
    watcher = Watcher()
    spec = world.spec(mechanism={"name": "dchi"}, train={"max_steps": 60})
    job_id, result = run(world, spec, watcher=watcher)
    assert world.cloud.status(job_id)[0] == "succeeded"
    assert result.steps == len(watcher.steps) == 60
    assert result.metrics == watcher.evaluations[-1].metrics
    assert set(result.metrics) == {"loss", "accuracy", "macro_f1"}
    assert watcher.losses[-1] < watcher.losses[0]
    predictions = predict(job_id, ["w50 w51 w52 w53", "w1 w2 w3"], world.settings)
    assert {p.label for p in predictions} <= {"high", "low"}
    assert sum(predictions[0].probabilities.values()) == pytest.approx(1)


def test_shared_labels_train_in_the_cloud(local_world, monkeypatch):
    world = local_world
    # Some orders of 160 records of noise learn little of the 40 held-out ones; this one learns.
    monkeypatch.setattr("privtune.device.home.job_folder.secrets.randbits", lambda bits: 1)
    spec = world.spec(labels="shared", num_labels=2, train={"max_steps": 100, "epochs": 20})
    watcher = Watcher()
    job_id, result = run(world, spec, watcher=watcher)
    assert watcher.losses[-1] < watcher.losses[0]
    assert result.metrics["loss"] < watcher.losses[0]
    # Only acknowledgements and evaluation logits come back in training.
    assert result.bytes_down < result.bytes_up / 3
    assert len(predict(job_id, ["w1 w2"], world.settings)) == 1


def test_later_epochs_send_handles_instead_of_vectors(local_world):
    watcher = Watcher()
    spec = local_world.spec(train={"max_steps": 30})  # 160 records, 16 a step: three epochs
    run(local_world, spec, watcher=watcher, validation=False)
    up = [info.bytes_up for info in watcher.steps]
    first, third = up[8] - up[0], up[28] - up[20]
    assert third < first / 5


@pytest.mark.parametrize("labels", [{}, {"labels": "shared", "num_labels": 2}])
def test_what_the_cloud_no_longer_holds_is_sent_again(local_world, labels):
    spec = local_world.spec(train={"max_steps": 30}, **labels)  # three epochs, each with an evaluation
    first, remembered = run(local_world, spec)
    local_world.restart(max_release_bytes=1)
    second = local_world.cloud.create_job(spec)
    same_order(local_world, first, second)
    _, forgotten = run(local_world, spec, job_id=second)
    assert adapter_hash(local_world, second) == adapter_hash(local_world, first)
    assert (forgotten.metrics, forgotten.steps) == (remembered.metrics, 30)
    assert forgotten.bytes_up > 2 * remembered.bytes_up


def test_a_record_is_released_once(local_world):
    """Invariant 4: two jobs with the same mechanism send identical bytes for a record."""
    import sqlite3

    spec = local_world.spec(mechanism={"name": "dchi"}, train={"max_steps": 10})
    run(local_world, spec)

    def stored():
        with sqlite3.connect(local_world.settings.home / "releases.sqlite") as db:
            return dict(db.execute("SELECT record, data FROM releases"))

    before = stored()
    run(local_world, spec)
    assert before
    assert stored() == before


@pytest.mark.parametrize("in_flight", [1, 3])
def test_resume_after_a_cut_connection_gives_the_undisturbed_adapter(world, in_flight):
    """Invariant 5 for the connection: the final adapter's hash equals the undisturbed run's."""
    spec = world.spec(tuning={"dropout": 0.1}, train={"checkpoint_every": 4, "in_flight": in_flight})
    calm_id, _ = run(world, spec)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    with Proxy(world.settings.grpc_address, record=False) as proxy:
        watcher = Watcher(at_step=once({6, 11}, proxy.cut))
        run(world, spec, settings=world.device(grpc_address=proxy.address), watcher=watcher, job_id=job_id)
    assert [info.start_step for info in watcher.starts][:1] == [0]
    assert len(watcher.starts) >= 2
    assert adapter_hash(world, job_id) == adapter_hash(world, calm_id)


def test_a_corrupted_frame_is_noticed_and_repaired(local_world):
    world = local_world
    spec = world.spec(train={"checkpoint_every": 4})
    calm_id, _ = run(world, spec)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    with Proxy(world.settings.grpc_address, record=False) as proxy:
        watcher = Watcher(at_step=once({6}, proxy.corrupt_next.set))
        run(world, spec, settings=world.device(grpc_address=proxy.address), watcher=watcher, job_id=job_id)
    assert adapter_hash(world, job_id) == adapter_hash(world, calm_id)


def test_a_killed_cloud_comes_back_and_the_job_ends_with_the_undisturbed_adapter(tmp_path):
    """Invariant 5 for the cloud: kill -9 in the middle, restart on the same ports, same final hash."""
    world = build_world(tmp_path, ProcessCloud)
    spec = world.spec(tuning={"dropout": 0.1}, train={"checkpoint_every": 4})
    calm_id, _ = run(world, spec)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    http_port, grpc_port = (int(a.rpartition(":")[2]) for a in (world.cloud.http_url, world.cloud.grpc_address))

    def kill_and_restart():
        world.cloud.kill()
        world.cloud = ProcessCloud(world.folder / "cloud", world.models, http_port=http_port, grpc_port=grpc_port)

    try:
        watcher = Watcher(at_step=once({10}, kill_and_restart))
        run(world, spec, watcher=watcher, job_id=job_id)
        assert [info.start_step for info in watcher.starts] == [0, 8]
        assert world.cloud.status(job_id)[0] == "succeeded"
        assert adapter_hash(world, job_id) == adapter_hash(world, calm_id)
    finally:
        world.cloud.stop()


def test_ctrl_c_pauses_and_the_same_job_goes_on(world):
    stop = threading.Event()
    spec = world.spec()
    job_id = world.cloud.create_job(spec)
    first = Watcher(at_step=lambda info: stop.set() if info.step == 7 else None)
    with pytest.raises(JobPaused, match="paused after step"):
        run(world, spec, watcher=first, stop=stop, job_id=job_id)
    wait_for(world, job_id, "paused")
    second = Watcher()
    run(world, spec, watcher=second, job_id=job_id)
    assert second.starts[0].start_step == first.steps[-1].step
    assert world.cloud.status(job_id)[0] == "succeeded"


def test_ctrl_c_while_the_cloud_is_away_pauses_at_once(local_world):
    world, stop = local_world, threading.Event()

    class Impatient(Watcher):
        def message(self, text):
            super().message(text)
            if text.endswith("; trying again in 1 s"):
                stop.set()

    spec = world.spec(train={"checkpoint_every": 4})
    job_id = world.cloud.create_job(spec)
    with Proxy(world.settings.grpc_address, record=False) as proxy:
        watcher = Impatient(at_step=once({6}, proxy.cut))
        with pytest.raises(JobPaused, match="while the cloud was away"):
            run(
                world,
                spec,
                settings=world.device(grpc_address=proxy.address),
                watcher=watcher,
                stop=stop,
                job_id=job_id,
            )
    again = Watcher()
    run(world, spec, watcher=again, job_id=job_id)
    assert again.starts[0].start_step == 4


def test_a_new_device_process_resumes_from_its_folder(local_world):
    """The device dies without warning: nothing but its folder is left."""
    world = local_world

    spec = world.spec(tuning={"dropout": 0.1}, train={"checkpoint_every": 4})
    calm_id, _ = run(world, spec)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    with pytest.raises(Died):
        run(world, spec, watcher=Watcher(at_step=die_after(9)), job_id=job_id)
    watcher = Watcher()
    run(world, spec, watcher=watcher, job_id=job_id)
    assert watcher.starts[0].start_step == 8
    assert adapter_hash(world, job_id) == adapter_hash(world, calm_id)


def test_cancel_and_pause_over_the_control_plane(world):
    spec = world.spec(train={"max_steps": None, "epochs": 50})
    job_id = world.cloud.create_job(spec)
    pause = Watcher(at_step=lambda info: world.cloud.pause(job_id) if info.step == 3 else None)
    with pytest.raises(JobPaused):
        run(world, spec, watcher=pause, job_id=job_id)
    wait_for(world, job_id, "paused")
    world.cloud.resume(job_id)
    cancel = Watcher(at_step=lambda info: world.cloud.cancel(job_id) if info.step == 9 else None)
    with pytest.raises(JobCancelled):
        run(world, spec, watcher=cancel, job_id=job_id)
    wait_for(world, job_id, "cancelled")
    with pytest.raises(JobConflict, match="cancelled"):
        run(world, spec, job_id=job_id)


def test_wrong_key(world):
    spec = world.spec()
    job_id = world.cloud.create_job(spec)
    with pytest.raises(Unauthenticated):
        run(world, spec, settings=world.device(api_key="pt-wrong"), job_id=job_id)
    assert world.cloud.status(job_id)[0] == "queued"


def test_cloud_unreachable(local_world):
    began = time.monotonic()
    with pytest.raises(CloudUnreachable, match="check that it runs"):
        run(local_world, local_world.spec(), settings=local_world.device(grpc_address="127.0.0.1:1"))
    assert time.monotonic() - began < 20


def test_another_model_on_the_device_is_refused(local_world):
    settings = local_world.device(local_model=str(local_world.models["dec"]))
    with pytest.raises(VersionMismatch, match="another shape"):
        run(local_world, local_world.spec(), settings=settings)


def test_other_data_can_not_continue_a_job(local_world):
    world, stop = local_world, threading.Event()
    spec = world.spec()
    job_id = world.cloud.create_job(spec)
    with pytest.raises(JobPaused):
        run(world, spec, watcher=Watcher(at_step=lambda _: stop.set()), stop=stop, job_id=job_id)
    write_sentences(world.folder / "train.tsv", 160, seed=9)
    with pytest.raises(JobConflict, match="differs from what job"):
        run(world, spec, job_id=job_id)


def test_too_large_a_micro_batch_is_refused_before_it_leaves(tmp_path):
    world = build_world(tmp_path, partial(InProcessCloud, max_tensor_bytes=4096))
    try:
        with pytest.raises(MessageTooLarge, match="--batch-size"):
            run(world, world.spec())
    finally:
        world.cloud.stop()


def test_training_that_diverges_fails_the_job_with_a_reason(local_world):
    world = local_world
    spec = world.spec(
        optim={"learning_rate": 1.0, "max_grad_norm": 0.0, "warmup_ratio": 0.0, "schedule": "constant"},
        tuning={"alpha": 1e18},
    )
    job_id = world.cloud.create_job(spec)
    with pytest.raises(NonFinite, match="--learning-rate"):
        run(world, spec, job_id=job_id)
    status, reason = world.cloud.status(job_id)
    assert status == "failed"
    assert "--learning-rate" in reason


def test_max_length_over_the_model_is_refused_and_the_job_says_why(local_world):
    world = local_world
    spec = world.spec(train={"max_length": 4096})
    job_id = world.cloud.create_job(spec)
    with pytest.raises(InvalidInput, match="4096"):
        run(world, spec, job_id=job_id)
    status, reason = world.cloud.status(job_id)
    assert status == "failed"
    assert "4096" in reason


def test_how_many_labels_the_data_has_stays_at_home(local_world):
    world = local_world
    spec = world.spec(num_labels=7)
    job_id = world.cloud.create_job(spec)
    with pytest.raises(InvalidInput, match="the data has 2 labels"):
        run(world, spec, job_id=job_id)
    status, reason = world.cloud.status(job_id)
    assert status == "failed"
    assert "labels" not in reason
    assert "terminal or log" in reason


def test_the_default_max_length_takes_the_positions_that_the_model_has(local_world, tmp_path):
    world = local_world
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps({"text": "w5 w6 " * (1 + 40 * n), "label": n % 2}) + "\n" for n in range(4)))
    spec = world.spec(train={"max_length": 128, "max_steps": 2})
    watcher = Watcher()
    job_id, result = run(world, spec, DataSource(path=str(file)), watcher=watcher)
    assert result.steps == 2
    assert any("48 tokens" in line for line in watcher.messages)
    assert len(predict(job_id, ["w5 " * 90], world.settings)) == 1
