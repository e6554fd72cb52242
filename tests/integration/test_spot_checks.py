"""A cloud that cheats is noticed by spot checks; an honest one never is, in either precision and every codec."""

import json
from dataclasses import replace

import pytest
import torch

from privtune.cloud.compute import step_machine, top_session
from privtune.cloud.compute.passes import Passes
from privtune.cloud.compute.top_session import TopSession
from privtune.device.home.policy import Policy
from privtune.device.training import spot_checks
from privtune.device.training.spot_report import SpotReport, kept_report
from privtune.device.training.submit import check_spot_checks
from privtune.shared.errors import CloudCheated, CloudUnreachable, InvalidInput
from privtune.shared.modeling.lora import adapter_state
from tests.support.proxy import Proxy
from tests.support.running import once, run
from tests.support.world import Watcher, build_world

SHORT = {"max_steps": 3, "checkpoint_every": 2, "batch_size": 4}
CODES = {"mechanism": {"name": "codes", "params": {"codes": 8, "dims": 2}}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("checked"))
    yield built
    built.cloud.stop()


@pytest.fixture
def device(world, tmp_path):
    return world.device(home=tmp_path, local_model=str(world.models["enc"]), spot_checks=1.0)


HONEST = {
    "fp32": {"train": {"precision": "fp32"}},
    "bf16": {"codec": "bf16", "train": {"precision": "bf16"}},
    "auto": {"codec": "bf16", "optim": {"weight_decay": 0.1, "schedule": "cosine"}},
    "dropout": {"tuning": {"dropout": 0.3}, "train": {"precision": "fp32"}},
    "full": {"tuning": {"method": "full"}, "optim": {"learning_rate": 1e-4}, "train": {"precision": "fp32"}},
    "tail": {"tail": 1, "train": {"precision": "fp32"}},
    "tail-bf16": {"tail": 1, "codec": "bf16", "train": {"precision": "bf16"}},
    "tail-int8": {"tail": 1, "states": "int8"},
    "tail-ids": {"tail": 1, "codec": "bf16"} | CODES,
}


def some(names, *, rarely):
    """All of them; those of `rarely` with `make test-slow` only."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in rarely else []) for name in names]


@pytest.mark.parametrize("kind", some(HONEST, rarely=("auto", "tail-int8", "full")))
def test_an_honest_cloud_is_never_accused(world, device, kind):
    changes = HONEST[kind]
    spec = world.spec(**changes | {"train": SHORT | changes.get("train", {})})
    _, result = run(world, spec, settings=device, validation=False)
    report = result.spot_checks
    assert report.checked == report.answered >= 3
    assert report.worst < 0.5  # of what is tolerated
    assert kept_report(result.folder) == report  # what `jobs show` reads
    assert f"{report.checked} of" in report.line()


def _trains_nothing(patch):
    patch.setattr(TopSession, "_advance", lambda self: setattr(self, "step", self.step + 1))


def _answers_from_a_smaller_model(patch):
    def smaller(self, part, **options):
        h_BTD, out_ND = run_whole(self, part, **options)
        return h_BTD, out_ND * 0 + h_BTD.flatten(0, 1)[part.readout_N]

    run_whole = Passes._run
    patch.setattr(Passes, "_run", smaller)


def _answers_stale_states(patch):
    def stale(self, message, out_ND):
        return output(self, message, kept.setdefault(len(out_ND), out_ND))

    output, kept = step_machine.StepMachine._output, {}
    patch.setattr(step_machine.StepMachine, "_output", stale)


def _trains_on_other_gradients(patch):
    backward = TopSession.backward
    patch.setattr(TopSession, "backward", lambda self, number, dout_ND: backward(self, number, dout_ND.flip(-1)))


def _takes_smaller_steps(patch):
    build = top_session.build_schedule
    patch.setattr(top_session, "build_schedule", lambda optimizer, spec, total: build(optimizer, spec, 2 * total))


def _begins_with_another_adapter(patch):
    attach = top_session.attach_lora
    patch.setattr(top_session, "attach_lora", lambda top, spec, seed: attach(top, spec, seed + 1))


def _swaps_the_adapter_between_steps(patch):
    def swap(self):
        begin(self)
        with torch.no_grad():
            for value in adapter_state(self._top).values():
                value.mul_(1.1)

    begin = TopSession.begin_step
    patch.setattr(TopSession, "begin_step", swap)


def _shows_another_state(patch):
    shown = TopSession.training_state
    patch.setattr(TopSession, "training_state", lambda self: {k: v * 1.01 for k, v in shown(self).items()})


def _shows_nothing(patch):
    patch.setattr("privtune.cloud.compute.artifacts.Artifacts.keep_shown", lambda *_: None)


def _hands_over_another_adapter(patch):
    def other(self, folder):
        with torch.no_grad():
            for value in adapter_state(self._top).values():
                value.mul_(1.1)
        export(self, folder)

    export = TopSession.export
    patch.setattr(TopSession, "export", other)


CHEATS = [
    _hands_over_another_adapter,
    _trains_nothing,
    _answers_from_a_smaller_model,
    _answers_stale_states,
    _trains_on_other_gradients,
    _takes_smaller_steps,
    _begins_with_another_adapter,
    _swaps_the_adapter_between_steps,
    _shows_another_state,
    _shows_nothing,
]


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.__name__.strip("_"))
def test_a_cloud_that_cheats_in_training_is_noticed(world, device, monkeypatch, cheat):
    cheat(monkeypatch)
    _noticed(world, device, world.spec(codec="bf16", train=SHORT))


@pytest.mark.parametrize("cheat", [_answers_from_a_smaller_model, _answers_stale_states])
def test_a_cloud_that_answers_other_states_is_noticed(world, device, monkeypatch, cheat):
    cheat(monkeypatch)
    _noticed(world, device, world.spec(tail=1, codec="bf16", train=SHORT))


def _noticed(world, device, spec):
    job_id = world.cloud.create_job(spec)
    with pytest.raises(CloudCheated, match="evidence") as raised:
        run(world, spec, settings=device, validation=False, job_id=job_id)
    assert str(device.home) not in raised.value.message
    # An adapter is handed over after the end, when the cloud has closed the job.
    assert world.cloud.status(job_id)[0] == ("succeeded" if "hands over" in raised.value.message else "failed")
    folder = device.home / "jobs" / job_id / "evidence"
    assert json.loads((folder / "cheated.json").read_text())["message"] in raised.value.message
    assert (folder / "cheated.safetensors").exists()


def test_a_drawn_step_is_checked_after_a_lost_connection(world, device, monkeypatch):
    def lost_once(*arguments, **options):
        if lost:
            lost.pop()()
            raise CloudUnreachable("the connection was lost while the cloud showed a step")
        return fetch(*arguments, **options)

    fetch = spot_checks.fetch_folder
    monkeypatch.setattr(spot_checks, "fetch_folder", lost_once)
    with Proxy(world.cloud.grpc_address) as proxy:
        lost, settings = [], replace(device, grpc_address=proxy.address)
        watcher = Watcher(at_step=once({2}, lambda: lost.append(proxy.cut)))
        _, result = run(world, world.spec(train=SHORT), settings=settings, validation=False, watcher=watcher)
    assert result.spot_checks.checked == result.spot_checks.answered == 4  # step 3 is done a second time
    assert len(watcher.starts) == 2


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_step_whose_dropout_is_drawn_elsewhere_is_counted_apart(world, device, monkeypatch, dropout):
    monkeypatch.setattr("privtune.cloud.gateway.split_service.dropout_sha256", lambda _: "another processor's")
    spec = world.spec(tuning={"dropout": dropout}, train={"max_steps": 1})
    report = run(world, spec, settings=device, validation=False)[1].spot_checks
    assert (report.checked, report.unrepeatable) == ((0, 1) if dropout else (1, 0))
    assert ("so says the cloud" in report.line()) == bool(dropout)


def test_without_a_copy_of_the_model_a_job_says_that_nothing_is_checked(world, device):
    watcher, spec = Watcher(), world.spec(train={"max_steps": 1})
    _, result = run(world, spec, settings=world.device(home=device.home), validation=False, watcher=watcher)
    assert result.spot_checks is None
    assert any(line.startswith("Spot checks: none") for line in watcher.messages)


def test_a_policy_asks_for_a_share_where_there_is_a_copy(world, device):
    policy = Policy(spot_checks=0.2)
    assert replace(device, spot_checks=0.1, policy=policy).spot_share == 0.2
    assert replace(device, spot_checks=0.3, policy=policy).spot_share == 0.3
    assert replace(device, local_model=None, policy=policy).spot_share == 0


def test_checks_that_are_not_possible_are_refused(world):
    copy = str(world.models["enc"])
    with pytest.raises(InvalidInput, match="--local-model"):
        check_spot_checks(world.spec(), None)
    with pytest.raises(InvalidInput, match="tail"):
        check_spot_checks(world.spec(labels="shared", num_labels=2), copy)


def test_a_drawn_share_has_the_stated_chance_to_notice():
    report = SpotReport(share=0.1, unit="step", answered=100, checked=10)
    assert report.chance(1) == pytest.approx(0.1)
    assert report.chance(20) == pytest.approx(1 - 0.9**20)
    assert "29 of them" in report.line()  # 0.9 ** 29 < 5%
    assert SpotReport(share=0.1, unit="step", answered=100, unrepeatable=10).chance(50) == 0
