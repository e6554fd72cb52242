"""The attacks on what real jobs really sent: recorded frames of both directions against their own truth."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from privtune.device.account.verify import check
from privtune.device.audit.attacks.attack import silent
from privtune.device.audit.jobs.transcript_audit import JobAudit, audit_job
from privtune.device.audit.report.page import render
from privtune.device.audit.sizes import QUICK
from privtune.device.cli import app
from privtune.device.home.run_request import RunRequest
from privtune.device.inference.predict import predict
from privtune.shared.errors import ArtifactCorrupt, InvalidInput, JobConflict, JobNotFound, JobPaused
from tests.support import running
from tests.support.running import transcript_folder
from tests.support.world import Watcher

# Two attacks and few iterations: what is tested here is what they are given.
SIZE = replace(QUICK, metrics=("euclidean", "bayes"), optimise=replace(QUICK.optimise, iterations=5))
SHORT = {"train": {"max_steps": 25, "epochs": 10}}


def run(world, spec, **options):
    return running.run(world, spec, **{"settings": world.device(record_frames=True)} | options)[0]


def audit(world, job_id, *, model="enc", **changes):
    request = JobAudit(
        job_id=job_id,
        model=str(world.models[model]) if model else None,
        sources=(world.data, world.validation),
        size=SIZE,
    )
    return audit_job(replace(request, **changes), world.settings.home, silent)


def finding(audited, name):
    (found,) = [one for one in audited.document["side_channels"] if one["name"].startswith(name)]
    return found["figure"]["value"], found["text"]


def test_clean_vectors_are_read_from_the_frames_and_every_frame_is_accounted_for(local_world):
    world = local_world
    job_id = run(world, world.spec(**SHORT))
    audited = audit(world, job_id)
    facts = audited.document
    attacks = {(row["name"], row["variant"], row["knowledge"]): row["figures"] for row in facts["attacks"]}
    assert attacks["EIA-1", "euclidean", "adaptive"]["top1"]["value"] >= 0.95
    assert facts["verdict"]["level"] == "most"
    assert facts["records"]["attacked"] == 66  # a third of 160 + 40
    sent = facts["transcript"]
    assert (sent["job"], sent["records_sent"]) == (job_id, 200)
    verified = check(job_id, transcript_folder(world, job_id), [], world.folder / "none")
    frames = Counter({kind: count["frames"] for kind, count in sent["frames"].items() if "(call)" not in kind})
    assert frames == Counter({kind: n for kind, n in verified.frames.items() if not kind.startswith("call")})
    assert {"up FORWARD", "up GRADIENT", "up STEP", "down OUTPUT", "down STEP"} <= set(frames)
    assert all(
        (count["kept_frames"], count["kept_bytes"]) == (count["frames"], count["bytes"])
        for kind, count in sent["frames"].items()
        if "(call)" not in kind
    )
    assert not any("only hashes" in line for line in facts["not_tested"])
    page = render(audited)
    assert f"attacks the recorded frames of job {job_id}" in page
    assert "sent: gradient" in page
    assert "came back: output" in page
    assert finding(audited, "labels from recorded head gradients")[0] > 0.9
    assert finding(audited, "the same, 2 epochs")[0] > 0.9
    assert finding(audited, "labels from the states")[0] > 0.5
    assert finding(audited, "records with the bytes of another")[0] == 0


def test_noise_in_the_frames_hides_what_noise_hides(local_world):
    world = local_world
    spec = world.spec(**SHORT, mechanism={"name": "dchi", "params": {"noise_ratio": 500.0}}, codec="bf16")
    audited = audit(world, run(world, spec))
    inversion = [row for row in audited.document["attacks"] if row["kind"] == "inversion"]
    assert max(row["figures"]["top1"]["value"] for row in inversion) < 0.3
    assert finding(audited, "labels from recorded head gradients")[0] > 0.9, "noise does not hide labels"


def test_ids_in_the_frames_are_read_by_their_table(local_world):
    """What is attacked are the targets of the clusters, of which each hides its words from one another."""
    world = local_world
    spec = world.spec(**SHORT, mechanism={"name": "shared", "params": {"cluster_size": 8, "epsilon_cluster": 1.0}})
    audited = audit(world, run(world, spec))
    assert audited.document["transcript"]["records_sent"] == 200
    assert "up TABLE" in audited.document["transcript"]["frames"]
    inversion = [row for row in audited.document["attacks"] if row["kind"] == "inversion"]
    assert 0 < max(row["figures"]["top1"]["value"] for row in inversion) < 0.5


def paused_and_resumed(world, between):
    spec = world.spec(**SHORT, mechanism={"name": "dchi"})
    job_id, stop = world.cloud.create_job(spec), threading.Event()
    pausing = Watcher(at_step=lambda info: stop.set() if info.step == 5 else None)
    with pytest.raises(JobPaused):
        run(world, spec, job_id=job_id, watcher=pausing, stop=stop)
    between()
    return run(world, spec, job_id=job_id)


def test_a_resumed_job_sent_the_same_bytes_again(local_world):
    job_id = paused_and_resumed(local_world, lambda: None)
    share, text = finding(audit(local_world, job_id), "records sent as two")
    assert share == 0
    assert "The bytes were the same every time" in text
    assert not text.startswith("0 of 200")


def test_second_draws_of_a_lost_store_are_found(local_world):
    def lose():
        for file in local_world.settings.home.glob("releases.sqlite*"):
            file.unlink()

    share, text = finding(audit(local_world, paused_and_resumed(local_world, lose)), "records sent as two")
    assert 0.3 < share < 1
    assert "can be averaged" in text


def test_what_other_jobs_and_predictions_sent_is_told_apart(local_world):
    world = local_world
    spec = world.spec(**SHORT, mechanism={"name": "dchi"})
    job_id = run(world, spec)
    assert finding(audit(world, job_id), "records whose bytes other jobs")[0] == 0
    run(world, world.spec(**SHORT, mechanism={"name": "dchi"}, optim={"learning_rate": 1e-3}), settings=world.settings)
    predict(job_id, ["w5 w6 w7"], world.settings)
    audited = audit(world, job_id)
    share, text = finding(audited, "records whose bytes other jobs")
    assert share == 1
    assert text.startswith("1 other job")
    others = audited.document["transcript"]["frames"]["up FORWARD (other records)"]
    assert others["kept_frames"] == 1
    assert audited.document["transcript"]["records_sent"] == 200


def test_a_language_models_gradients_give_its_text_away_whatever_the_noise(local_world):
    world = local_world
    as_plain_text(world)
    noise = {"name": "dchi", "params": {"noise_ratio": 500.0}}
    audited = audit(world, run(world, world.spec(**SHORT, model="dec", task="causal-lm", mechanism=noise)), model="dec")
    rows = {row["name"]: row["figures"]["top1"]["value"] for row in audited.document["attacks"]}
    assert rows["GIA"] > 0.8 > 0.3 > rows["EIA-1"]
    assert audited.document["verdict"]["level"] == "most"
    assert "More noise does not help" in audited.document["verdict"]["text"]


@pytest.mark.parametrize(("model", "task"), [("enc", "classification"), ("dec", "causal-lm")])
def test_with_a_tail_the_frames_hold_releases_and_no_gradient(local_world, model, task):
    world = local_world
    if task == "causal-lm":
        as_plain_text(world)
    noise = {"name": "dchi", "params": {"noise_ratio": 500.0}}
    audited = audit(
        world, run(world, world.spec(**SHORT, model=model, task=task, mechanism=noise, tail=1)), model=model
    )
    facts = audited.document
    assert (facts["tail"], facts["skip"]) == (1, "frozen")
    assert "up GRADIENT" not in facts["transcript"]["frames"]
    assert "GIA" not in {row["name"] for row in facts["attacks"]}
    assert ("language model" in {row["variant"] for row in facts["attacks"]}) == (task == "causal-lm")
    assert not [one["name"] for one in facts["side_channels"] if one["name"].startswith("labels")]
    assert facts["verdict"]["level"] != "most"


def as_plain_text(world):
    text = world.folder / "text.tsv"
    text.write_text("\n".join(["text", *(line.split("\t")[0] for line in _lines(world.data.path))]) + "\n")
    world.data, world.validation = replace(world.data, path=str(text)), None


def _lines(path):
    with open(path) as file:
        return file.read().splitlines()[1:]


def test_a_part_that_was_not_kept_is_said(local_world, monkeypatch):
    monkeypatch.setattr("privtune.device.account.transcript.FRAMES_MAX_BYTES", 50_000)
    world = local_world
    facts = audit(world, run(world, world.spec(**SHORT))).document
    assert any("no more frames are kept" in note for note in facts["transcript"]["notes"])
    assert any("frames up FORWARD: only hashes of them were kept" in line for line in facts["not_tested"])
    assert 0 < facts["records"]["attacked"] == facts["transcript"]["records_sent"] < 66


def test_what_cannot_be_audited_is_refused_with_what_to_do(local_world, tmp_path):
    world = local_world
    spec = world.spec(train={"max_steps": 2})
    with pytest.raises(JobNotFound, match="holds nothing of job"):
        audit(world, "ftjob-unknown")
    with pytest.raises(JobConflict, match="without --record-frames"):
        audit(world, run(world, spec, settings=world.settings))
    job_id = run(world, spec)
    with pytest.raises(InvalidInput, match="name your copy of it with --model"):
        audit(world, job_id, model=None)
    with pytest.raises(InvalidInput, match="was not started by `finetune` here"):
        audit(world, job_id, sources=None)
    changed = tmp_path / "changed.tsv"
    changed.write_text("\n".join(["sentence\tlabel", *_lines(world.data.path)[1:]]) + "\n")
    with pytest.raises(JobConflict, match=r"is not what job .* was trained on"):
        audit(world, job_id, sources=(replace(world.data, path=str(changed)), world.validation))
    with pytest.raises(JobConflict, match="held-out data is not what"):
        audit(world, job_id, sources=(world.data, None))
    (frames,) = transcript_folder(world, job_id).glob("*.frames")
    frames.write_bytes(frames.read_bytes()[:-40] + b"x" * 40)
    with pytest.raises(ArtifactCorrupt):
        audit(world, job_id)


def test_from_the_command_line_the_job_remembers_its_data(local_world, tmp_path):
    world = local_world
    spec = world.spec(train={"max_steps": 5})
    job_id = run(world, spec)
    page = tmp_path / "sent.html"
    command = ["audit", "--transcript", job_id, "--home", str(world.settings.home), "--out", str(page)]
    command += ["--model", str(world.models["enc"])]
    changed = tmp_path / "changed.tsv"
    changed.write_text("\n".join(["sentence\tlabel", *_lines(world.data.path)[1:]]) + "\n")
    agent = tmp_path / "agent.yaml"
    agent.write_text(f"datasets: {{sentences: {{path: {changed}}}}}\n")
    with pytest.raises(JobConflict, match="is not what job"):
        CliRunner().invoke(app, [*command, "--config", str(agent)], catch_exceptions=False)
    with pytest.raises(InvalidInput, match="--protect and --transcript contradict each other"):
        CliRunner().invoke(app, [*command, "--protect", "none"], catch_exceptions=False)
    RunRequest(cloud="any", spec=spec, train=world.data, validation=world.validation).save(world.settings.home, job_id)
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "Most of your text can be recovered" in done.output
    assert f"recorded frames of job {job_id}" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["transcript"]["job"] == job_id
