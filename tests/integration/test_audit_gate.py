"""The gate before a job: what attacks would read of the owner's own data decides whether anything of it is sent."""

from __future__ import annotations

import json
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from privtune.device.account.ledger import outcomes
from privtune.device.account.verify import check
from privtune.device.agent.agent import Agent
from privtune.device.agent.agent_config import AgentConfig, DataSetting
from privtune.device.audit.jobs import gate
from privtune.device.audit.sizes import QUICK
from privtune.device.home.policy import AuditRule, Policy
from privtune.device.link.rest import ControlPlane
from privtune.shared.errors import AuditRefused, InvalidInput, JobPaused, PolicyRefused
from tests.support import running
from tests.support.owner import Owner, job_id_of
from tests.support.running import ledger_entries, train, transcript_folder
from tests.support.world import ProcessCloud, Watcher, build_world

pytestmark = pytest.mark.timeout(600)
RULE = AuditRule()
LOUD = {"name": "dchi", "params": {"noise_ratio": 500.0}}
# Few iterations: what is tested here is what becomes of the figures.
SMALL = replace(QUICK, metrics=("euclidean",), optimise=replace(QUICK.optimise, iterations=2))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(gate.SIZES, "quick", SMALL)


@pytest.fixture
def owner(tmp_path, capsys):
    built = build_world(tmp_path, ProcessCloud)
    yield Owner(world=built, capsys=capsys)
    built.cloud.stop()


def run(world, spec, watcher=None, **settings):
    return train(world, spec, watcher=watcher, settings=world.device(**{"audit": RULE} | settings))


def verdicts(world):
    return sorted((world.settings.home / gate.FOLDER).glob("*"))


def frames(world, job_id):
    return [
        kind
        for kind in check(job_id, transcript_folder(world, job_id), [], world.folder / "none").frames
        if not kind.startswith("call")
    ]


def test_clean_vectors_are_refused_before_a_frame_leaves_and_noise_passes_once(local_world):
    world = local_world
    with pytest.raises(AuditRefused, match=r"up to 100.0% of all words \(allowed: 30%; EIA-") as refused:
        run(world, world.spec())
    assert refused.value.exit_code == PolicyRefused.exit_code
    (job,) = (world.settings.home / "jobs").iterdir()
    assert frames(world, job.name) == []
    assert outcomes(ledger_entries(world)) == [], "what was not admitted is not entered"
    watcher = Watcher()
    rule = AuditRule(max_content_top1=0.5, max_top1=0.5)
    spec = world.spec(mechanism=LOUD, train={"max_steps": 2})
    run(world, spec, watcher, audit=rule)
    assert any(line.startswith("audit passed: the attacks name at most") for line in watcher.messages)
    assert any("auditing this data" in line for line in watcher.messages)
    again = Watcher()
    run(world, spec, again, audit=rule, local_model=None)
    assert any(
        "reusing the audit of" in line and "same data, noise, size and thresholds" in line for line in again.messages
    )
    assert not any("auditing this data" in line for line in again.messages)
    assert len(verdicts(world)) == 2
    kept = json.loads(verdicts(world)[0].read_text())
    assert 0 <= kept["top1"]["low"] <= kept["top1"]["value"] <= kept["top1"]["high"] <= 1
    assert {stat.S_IMODE(file.stat().st_mode) for file in verdicts(world)} == {0o600}
    with pytest.raises(AuditRefused, match=r"allowed: 0%"):  # another threshold is another question
        run(world, spec, audit=AuditRule(max_content_top1=0.0, max_top1=0.0))


def test_ctrl_c_in_the_audit_leaves_nothing_and_the_job_goes_on_later(local_world):
    world, stop = local_world, threading.Event()
    watcher = Watcher()
    watcher.message = lambda text: stop.set() if "auditing" in text else None
    spec = world.spec(mechanism=LOUD, train={"max_steps": 2})
    job_id = world.cloud.create_job(spec)
    loose = AuditRule(max_content_top1=1.0, max_top1=1.0)
    settings = world.device(audit=loose)
    with pytest.raises(JobPaused, match="stopped during the audit"):
        train(world, spec, settings=settings, watcher=watcher, stop=stop, job_id=job_id)
    assert verdicts(world) == []
    assert frames(world, job_id) == []
    _, result = running.run(world, spec, validation=False, settings=settings, job_id=job_id)
    assert result.steps == 2


def test_a_language_model_needs_its_top_and_is_refused_for_its_gradients(local_world):
    world = local_world
    text = world.folder / "text.tsv"
    lines = [line.split("\t")[0] for line in Path(world.data.path).read_text().splitlines()][1:]
    text.write_text("\n".join(["text", *lines]) + "\n")
    world.data = replace(world.data, path=str(text))
    spec = world.spec(model="dec", task="causal-lm", mechanism=LOUD)
    with pytest.raises(InvalidInput, match="--local-model"):
        run(world, spec)
    with pytest.raises(AuditRefused, match=r"GIA head gradients.*without a tail \(--tail\)"):
        run(world, spec, local_model=str(world.models["dec"]))
    rule = AuditRule(max_content_top1=0.5, max_top1=0.5)
    watcher = Watcher()
    tailed = world.spec(model="dec", task="causal-lm", mechanism=LOUD, tail=1, train={"max_steps": 2})
    run(
        world, tailed, watcher, audit=rule
    )  # no gradient leaves, so noise is enough, and a copy of the top is not needed
    assert any("audit passed" in line for line in watcher.messages)


def test_the_agents_policy_audits_and_the_cloud_never_sees_a_figure(owner):
    world = owner.world
    job_id = world.cloud.create_job(world.spec())
    screen = Watcher()
    agent = Agent(
        control=ControlPlane(world.cloud.http_url, world.cloud.api_key),
        config=AgentConfig(
            datasets={"sentences": DataSetting(path=world.data.path)},
            policy=Policy(protections=("none",), audit=RULE),
        ),
        settings=world.device(grpc_address=""),
        screen=screen,
        stop=threading.Event(),
        once=True,
        poll_s=0.1,
    )
    with pytest.raises(AuditRefused):
        agent.run()
    told = next(line for line in screen.messages if "[POLICY_REFUSED]" in line)
    assert "% of all words" in told
    status, reason = world.cloud.status(job_id)
    assert status == "failed"
    assert "audit of its own data refuses the job" in reason
    assert "%" not in reason
    shown = json.dumps(world.cloud.control.get_job(job_id))
    assert "EIA" not in shown
    assert "%" not in shown


def test_finetune_audit_from_the_command_line(owner):
    help_text = owner("finetune", "--help").out
    assert "--audit" in help_text
    assert "20% of content words" in " ".join(help_text.replace("│", " ").split())
    refused = owner.finetune("--audit", "--local-model", str(owner.world.models["enc"]))
    assert refused.code == 7
    last = refused.err.strip().splitlines()[-1]
    assert last.startswith("privtune: The audit refuses the job: an attacker may name up to 100.0% of all words")
    assert "reusing the audit" in owner.finetune("--audit", "--local-model", str(owner.world.models["enc"])).out
    assert "audit" not in owner.world.cloud.status(job_id_of(refused))[1].replace("audit of its own data", "")
    (owner.home / "policy.yaml").write_text("protections: [none]\naudit: {max_content_top1: 1, max_top1: 1}\n")
    passed = owner.finetune()
    assert passed.code == 0, passed.err
    assert "audit passed" in passed.out
    (owner.home / "policy.yaml").write_text("audit: {max_top5: 1}\n")
    assert "unknown key policy.audit.max_top5; known here: max_content_top1" in owner.finetune().line
