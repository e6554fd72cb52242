"""Ledger, policy, transcript and kept frames of real jobs: what the cloud was sent, and what it was refused."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from privtune.device.account.ledger import outcomes, spent
from privtune.device.account.run_account import TRANSCRIPT, source_of
from privtune.device.account.verify import check
from privtune.device.agent.agent import Agent
from privtune.device.agent.agent_config import AgentConfig
from privtune.device.cli import app, main
from privtune.device.inference.predict import predict
from privtune.shared.errors import ArtifactCorrupt, JobPaused, PolicyRefused
from tests.support.running import cost, fixed_noise_seed, ledger_entries, run, transcript_folder
from tests.support.transcripts import recorded_frames
from tests.support.world import ProcessCloud, Watcher, build_world

NOISY = {"mechanism": {"name": "dchi"}, "train": {"max_steps": 20, "epochs": 20}}


def checked(world, job_id):
    return check(
        job_id, transcript_folder(world, job_id), ledger_entries(world), world.settings.home / "releases.sqlite"
    )


def test_a_job_is_entered_verified_and_shown(local_world):
    world = local_world
    job_id, result = run(world, world.spec(**NOISY))
    train, validation = outcomes(ledger_entries(world))
    assert (train["records"], validation["records"]) == (160, 40)
    assert train["epsilon"] > 0
    assert train["bytes"] == train["rows"] * 32 * 4
    assert (train["seed"], train["labels"], train["part"]) == ("os", "private", "train")
    found = checked(world, job_id)
    assert found.problems == found.notes == []
    assert found.records == 200
    assert found.bytes["up FORWARD"] + found.bytes["up GRADIENT"] + found.bytes["up STEP"] == result.bytes_up
    assert sum(found.bytes[kind] for kind in found.bytes if kind.startswith("down")) == result.bytes_down
    assert found.recomputed == found.frames["up FORWARD"] + found.frames["up STEP"]
    assert dict(found.open) == {"GRADIENT": found.frames["up GRADIENT"]}
    home = str(world.settings.home)
    shown = CliRunner().invoke(app, ["ledger", "--home", home, "--data-set", "train.tsv"]).output
    assert job_id in shown
    assert "160 of 160" in shown
    assert "dev.tsv" not in shown
    listed = json.loads(CliRunner().invoke(app, ["ledger", "--json", "--home", home]).output)
    assert listed["spent"][source_of(world.data.path)]["releases"] == 160
    verified = CliRunner().invoke(app, ["transcript", "verify", job_id, "--home", home])
    assert verified.exit_code == 0
    assert "labels: none" in verified.output
    shown = CliRunner().invoke(app, ["transcript", "show", job_id, "--limit", "0", "--home", home]).output
    assert ["up", "FORWARD"] in [line.split()[1:3] for line in shown.splitlines()]
    head = CliRunner().invoke(app, ["ledger", "verify", "--home", home]).output.split("last hash ")[1][:64]
    assert CliRunner().invoke(app, ["ledger", "verify", "--head", head, "--home", home]).exit_code == 0


def test_the_same_again_costs_nothing_and_other_noise_adds_up(local_world):
    world = local_world
    run(world, world.spec(**NOISY))
    first = cost(world)
    run(world, world.spec(**NOISY, optim={"learning_rate": 1e-3}))
    assert cost(world) == first
    job_id, _ = run(world, world.spec(**NOISY | {"mechanism": {"name": "dchi", "params": {"noise_ratio": 12.0}}}))
    assert cost(world).jobs == 2
    assert cost(world).nats == pytest.approx(1.5 * first.nats)
    predict(job_id, ["w5 w6 w7", "w50 w51 w52"], world.settings)
    assert spent(ledger_entries(world), "predictions").releases == 2
    assert cost(world).nats == pytest.approx(1.5 * first.nats)
    assert checked(world, job_id).problems == []


def test_over_twenty_epochs_and_resumes_the_cloud_gets_one_draw(local_world):
    """The averaging attack on what really left: every upload of a record had the same bytes."""
    world = local_world
    world.settings = world.device(record_frames=True)
    spec = world.spec(**NOISY | {"train": {"max_steps": 200, "epochs": 20}})
    job_id, stop = world.cloud.create_job(spec), threading.Event()
    pausing = Watcher(at_step=lambda info: stop.set() if info.step == 15 else None)
    with pytest.raises(JobPaused):
        run(world, spec, job_id=job_id, watcher=pausing, stop=stop)
    _, result = run(world, spec, job_id=job_id)
    assert result.steps == 200
    uploads: dict[int, list[bytes]] = {}
    payload, header = bytearray(), None
    for line, frame in recorded_frames(transcript_folder(world, job_id), job_id):
        if line["kind"] != "FORWARD":
            continue
        payload, header = (bytearray(), frame.forward) if frame.chunk_index == 0 else (payload, header)
        payload += frame.payload
        if frame.chunk_index + 1 == frame.chunk_count:
            at = 0
            for handle, rows, now in zip(header.record_ids, header.lengths, header.inlined, strict=True):
                size = rows * 32 * 4 if now else 0
                if now:
                    uploads.setdefault(handle, []).append(bytes(payload[at : at + size]))
                at += size
            assert at == len(payload)
    assert set(uploads) == set(range(200))
    assert max(len(sent) for sent in uploads.values()) > 1, "the second session uploads again"
    for sent in uploads.values():
        single = np.frombuffer(sent[0], "<f4")
        average = np.mean([np.frombuffer(one, "<f4") for one in sent], axis=0, dtype=np.float64)
        assert np.array_equal(average.astype("<f4"), single)
    found = checked(world, job_id)
    assert found.problems == []
    assert not found.open, "with the frames kept, every payload is there"
    assert found.kept == sum(count for kind, count in found.frames.items() if not kind.startswith("call"))
    assert cost(world).releases == 160


def test_tampering_shows(local_world, tmp_path):
    world = local_world
    job_id, _ = run(world, world.spec(**NOISY), settings=world.device(record_frames=True))
    log, frames = (transcript_folder(world, job_id) / f"0001.{end}" for end in ("jsonl", "frames"))
    whole, kept = log.read_bytes(), frames.read_bytes()
    log.write_bytes(whole.replace(b'"kind":"STEP"', b'"kind":"OUTPUT"', 1))
    assert "chain breaks" in checked(world, job_id).problems[0]
    log.write_bytes(b"".join(whole.splitlines(keepends=True)[:-5]))
    assert "does not end as the ledger says" in checked(world, job_id).problems[0]
    log.write_bytes(whole)
    frames.write_bytes(kept[:5000] + bytes([kept[5000] ^ 1]) + kept[5001:])
    assert (
        "is not the one that left" in checked(world, job_id).problems[0]
        or "can't be read" in checked(world, job_id).problems[0]
    )
    frames.write_bytes(kept)
    import sqlite3
    import zlib

    with sqlite3.connect(world.settings.home / "releases.sqlite") as db:
        record, data = db.execute("SELECT record, data FROM releases LIMIT 1").fetchone()
        other = bytes(len(data))
        db.execute("UPDATE releases SET data = ?, crc = ? WHERE record = ?", (other, zlib.crc32(other), record))
    assert "other bytes than the store" in checked(world, job_id).problems[0]
    with pytest.raises(SystemExit) as end:
        main(["transcript", "verify", job_id, "--home", str(world.settings.home)])
    assert end.value.code == ArtifactCorrupt.exit_code


def test_a_fixed_seed_is_marked_claims_nothing_and_is_never_reused(local_world):
    world = local_world
    with fixed_noise_seed():
        run(world, world.spec(**NOISY))
    assert {row["seed"] for row in outcomes(ledger_entries(world))} == {"fixed"}
    assert cost(world).nats is None
    run(world, world.spec(**NOISY))
    assert outcomes(ledger_entries(world))[-2]["records"] == 160, "what the fixed seed drew is not taken for real noise"


def test_a_lost_store_is_noticed_and_counted_again(local_world):
    world = local_world
    run(world, world.spec(**NOISY))
    first = cost(world)
    import sqlite3

    with sqlite3.connect(world.settings.home / "releases.sqlite") as db:  # as from an older copy
        db.execute("DELETE FROM releases WHERE record IN (SELECT record FROM releases LIMIT 30)")
    watcher = Watcher()
    run(world, world.spec(**NOISY), watcher=watcher)
    assert any("lost 30 releases" in text for text in watcher.messages)
    assert cost(world).nats > first.nats
    (world.settings.home / "releases.sqlite").unlink()
    run(world, world.spec(**NOISY))
    assert cost(world).releases >= 320


@pytest.mark.parametrize(
    ("policy", "why", "cloud_sees"),
    [
        ({"bounds": {"dchi": {"noise_ratio": {"min": 8}}}}, "below the 8", "below the 8"),
        ({"datasets": ["reviews*"]}, "data set sentences", "data set sentences"),
        ({"budget": {"releases": 150}}, r"160 new releases \(150 left\)", "the owner's terminal or log"),
        ({"budget": {"nats_per_record": 1}}, "nats", "the owner's terminal or log"),
        ({"budget": {"jobs": 0}}, "0 jobs", "the owner's terminal or log"),
    ],
)
def test_the_device_refuses_before_anything_is_sent_and_the_cloud_sees_why(tmp_path, policy, why, cloud_sees):
    """The budget counts records, so only the owner sees what is left of it."""
    world = build_world(tmp_path, ProcessCloud)
    try:
        policy = {"mechanisms": ["dchi"], **policy}
        config = AgentConfig.model_validate({"datasets": {"sentences": {"path": world.data.path}}, "policy": policy})
        job_id = world.cloud.create_job(world.spec(**NOISY))
        with world.cloud.control as control:
            agent = Agent(
                control=control,
                config=config,
                settings=world.settings,
                screen=Watcher(),
                stop=threading.Event(),
                once=True,
                poll_s=0.1,
            )
            with pytest.raises(PolicyRefused, match=why):
                agent.run()
            job = control.get_job(job_id)
            assert job["status"] == "failed"
            assert job["error"]["code"] == PolicyRefused.reason
            assert cloud_sees in job["error"]["message"]
            assert cloud_sees == why or why not in job["error"]["message"]
            assert not any(why in event["message"] for event in control.events(job_id) if cloud_sees != why)
        sent = checked(world, job_id).frames
        assert not [kind for kind in sent if kind.startswith("up")], "no frame has left"
        assert "call Open" not in sent
        assert world.settings.home.joinpath("jobs", job_id, TRANSCRIPT).exists(), (
            "the refusal itself is in the transcript"
        )
    finally:
        world.cloud.stop()


def test_finetune_obeys_the_policy_of_the_device(tmp_path, monkeypatch, capsys):
    world = build_world(tmp_path, ProcessCloud)
    try:
        home = world.settings.home
        home.mkdir()
        (home / "policy.yaml").write_text("mechanisms: [gaussian]\nbudget: {releases: 100}\n")
        monkeypatch.setenv("PRIVTUNE_API_KEY", world.cloud.api_key)
        command = ["finetune", "--model", "enc", "--data", world.data.path, "--cloud", world.cloud.http_url]
        command += ["--home", str(home), "--max-length", "16", "--max-steps", "4", "--protect", "none"]

        def ends(*more):
            with pytest.raises(SystemExit) as end:
                main([*command, *more])
            return end.value.code

        assert ends() == PolicyRefused.exit_code
        assert world.cloud.control.list_jobs() == [], "refused before a job was made"
        assert ends("--mechanism", "gaussian") == PolicyRefused.exit_code
        assert "160 new releases (100 left)" in capsys.readouterr().err
        (job,) = world.cloud.control.list_jobs()
        assert job["status"] == "failed"
        assert "160" not in job["error"]["message"], "counts stay on the device"
        assert ends("--mechanism", "gaussian", "--limit", "90") in (0, None)
        foreign = world.cloud.create_job(world.spec(**NOISY))
        assert ends("--job", foreign, "--data", world.data.path) != 0
        assert PolicyRefused.reason == world.cloud.control.get_job(foreign)["error"]["code"]
        (home / "policy.yaml").write_text("budget: {nats: 3}\n")
        assert ends() == 2
    finally:
        world.cloud.stop()


RUNNER = """
    import sys, threading, json
    from pathlib import Path
    from privtune.device.data.source import DataSource
    from privtune.device.training.job import run_job
    from privtune.device.session.run_settings import RunSettings
    from privtune.shared.job_spec import JobSpec
    from tests.support.world import Watcher
    job, spec, address, key, home, data = sys.argv[1:]
    settings = RunSettings(grpc_address=address, api_key=key, home=Path(home))
    watcher = Watcher(at_step=lambda info: print(info.step, flush=True))
    run_job(job, JobSpec.model_validate_json(spec), DataSource(path=data), None, settings, watcher, threading.Event())
"""


def test_a_killed_device_has_no_frame_out_that_is_not_in_its_transcript(local_world):
    import textwrap

    world = local_world
    spec = world.spec(**NOISY | {"train": {"max_steps": 60, "epochs": 20}})
    job_id = world.cloud.create_job(spec)
    parts = [job_id, spec.model_dump_json(), world.settings.grpc_address, world.settings.api_key]
    command = [sys.executable, "-c", textwrap.dedent(RUNNER), *parts, str(world.settings.home), world.data.path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(4):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert cost(world).releases == 160, "until it is known, all that it might have drawn counts"
    time.sleep(0.5)
    found = checked(world, job_id)
    assert "no end in the ledger" in found.notes[0]
    assert found.problems == []
    assert found.recomputed >= 8
    settings = replace(world.settings, no_progress_timeout=60)
    run(world, spec, validation=False, settings=settings, job_id=job_id)
    first, second = outcomes(ledger_entries(world))
    assert first["recovered"]
    assert first["records"] + second["records"] == 160
    assert first["records"] > 0
    assert cost(world).releases == 160
    assert checked(world, job_id).problems == []
