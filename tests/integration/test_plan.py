"""Before a job: `privtune plan` predicts what then happens, and `privtune doctor` finds the way to the cloud."""

import json
from itertools import pairwise

import pytest

from privtune.device.data.encode import encode_causal_lm, encode_classification
from privtune.device.link.download import fetch_manifest
from privtune.device.link.rpc import Link
from privtune.device.plan.workload import Lengths, Sent, workload_of
from privtune.shared.errors import CutOutOfRange, InvalidInput, ModelNotFound
from privtune.shared.modeling.load import load_tokenizer
from privtune.split.v1 import split_pb2 as pb
from tests.support.owner import TINY
from tests.support.proxy import Proxy
from tests.support.running import run
from tests.support.world import ProcessCloud, build_world

TRAIN = {"batch_size": 8, "accumulation": 2, "max_length": 16, "max_steps": 12, "epochs": 3}
FORMS = {
    "gradients": {},
    "a tail": {"tail": 1, "states": "int8", "codec": "bf16"},
    "shared labels": {"labels": "shared", "num_labels": 2},
    "slopes": {"zeroth_order": {"epsilon": 8.0}},
    "a language model": {"model": "dec", "task": "causal-lm"},
    "padded lengths": {"train": TRAIN | {"pad_to": (8,)}, "tail": 1},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("plan"), ProcessCloud)
    yield built
    built.cloud.stop()


@pytest.fixture
def world(both):
    return both


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_those_of_the_job(world, form):
    spec = world.spec(**{"train": TRAIN} | FORMS[form])
    _, result = run(world, spec)
    tokenizer = load_tokenizer(str(world.models[spec.model]))
    encode = encode_classification if spec.task == "classification" else encode_causal_lm
    train, held_out = (
        Lengths.of(encode(source.load(spec.task), tokenizer, 16), padded=spec.train.padded(None))
        for source in (world.data, world.validation)
    )
    planned = workload_of(spec, train, held_out, Sent(hidden=32, width=32, codec=spec.codec))
    assert planned.steps == result.steps
    assert planned.up == pytest.approx(result.bytes_up, rel=0.05)
    assert planned.down == pytest.approx(result.bytes_down, rel=0.05)


def plan_of(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_plan_knows_the_cloud_and_starts_nothing(owner, world):
    before = owner.jobs()
    given = ("plan", "--model", "enc", "--data", world.data.path, *TINY, "--gpu-hour", "2", "--json")
    found = plan_of(owner(*given, "--protect", "none"))
    assert found["cloud"]["source"] == "the cloud, of its own steps"  # of the jobs before
    assert found["cloud"]["shared"]
    assert found["line"]["up"] > 0
    assert found["steps"] == 4
    assert found["seconds"]["total"] > found["seconds"]["run"]["cloud"] > 0
    assert found["limits"] in ("device", "cloud", "line")
    assert found["cost"]["held"] >= found["cost"]["computing"] > 0
    assert owner.jobs() == before
    assert not (owner.home / "ledger.jsonl").exists() or "plan" not in (owner.home / "ledger.jsonl").read_text()
    assert list(owner.home.glob("plan-*")) == []


def test_padding_has_its_price_and_what_it_hides(owner, world):
    given = ("plan", "--model", "enc", "--data", world.data.path, *TINY, "--protect", "none")
    plain, padded = (plan_of(owner(*given, *more, "--json")) for more in ((), ("--pad-to", "16")))
    assert plain["padding"] is None
    assert padded["padding"]["without"] == plain["lengths"]
    assert padded["lengths"] == {"different": 1, "bits": 0.0, "alone": 0}
    assert plain["lengths"]["bits"] > 2
    assert padded["bytes"]["up"] - plain["bytes"]["up"] == padded["padding"]["up"] > 0
    shown = owner(*given, "--pad-to", "16").out
    assert "1 different length of records: 0.0 bits" in shown
    assert "--pad-to 16" in shown  # in the command that runs it
    refused = owner(*given, "--pad-to", "64")
    assert refused.line == "--pad-to [64]: 64 is not a length from 2 to max_length, 16."


def test_nothing_of_the_data_leaves(owner, world, tmp_path):
    rest, grpc = (Proxy(one) for one in (world.cloud.http_url.removeprefix("http://"), world.cloud.grpc_address))
    with rest, grpc:
        given = (
            "--model",
            "enc",
            "--data",
            world.data.path,
            *TINY,
            "--protect",
            "none",
            "--grpc-address",
            grpc.address,
        )
        changes = {"PRIVTUNE_CLOUD": f"http://{rest.address}", "PRIVTUNE_HOME": str(tmp_path / "home")}
        assert owner("plan", *given, **changes).code == 0
    sent = rest.bytes_from(device=True) + grpc.bytes_from(device=True)
    assert b"/v1/privtune/line" in sent
    assert grpc.bytes_from(device=False), "the bottom package did not come this way"
    texts = [record.text for record in world.data.load("classification")]
    phrases = {" ".join(pair) for text in texts for pair in pairwise(text.split())}
    assert len(phrases) > 10
    assert not [phrase for phrase in phrases if phrase.encode() in sent]


def test_without_a_cloud_this_machine_stands_in(owner, world):
    model = str(world.models["enc"])
    done = owner("plan", "--local-model", model, "--data", world.data.path, "--protect", "words", "--holdout", "0.2",
                 "--tuning", "full", PRIVTUNE_CLOUD="")  # fmt: skip
    assert done.code == 0, done.err
    assert "this machine, as if it were the cloud" in done.out
    assert "cut 1 of `words`" in done.out  # of a model of three blocks, whose middle one is left to the cloud
    assert "privtune finetune" in done.out


def test_more_batches_in_a_step_where_the_line_is_long(owner, world, monkeypatch):
    from privtune.device.plan import planning
    from privtune.device.plan.line import Line

    monkeypatch.setattr(planning, "probe_line", lambda control: Line(up=1e8, down=1e8, round_trip=1.0))
    given = ("plan", "--model", "enc", "--data", world.data.path, "--protect", "none", "--epochs", "40", "--json")
    found = plan_of(owner(*given))
    assert found["job"]["train"]["batch_size"] == 64
    assert "faster than 16" in found["picks"][-1]
    assert plan_of(owner(*given, "--batch-size", "8"))["job"]["train"]["batch_size"] == 8


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        (("--data", "x.tsv"), {"PRIVTUNE_CLOUD": ""}, "for which cloud"),
        (("--model", "enc"), {}, "--data is missing"),
        (("--data", "x.tsv"), {}, "--model is missing"),
        (("--model", "nope", "--data", "x.tsv"), {}, "nope"),
    ],
)
def test_what_is_missing_is_one_line(owner, options, changes, said):
    done = owner("plan", *options, **changes)
    assert done.code in (2, 4)
    assert said in done.line


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "nope", "task": "classification", "cut": 1}, ModelNotFound),
        ({"model": "enc", "task": "poetry", "cut": 1}, InvalidInput),
        ({"model": "enc", "task": "classification", "cut": 3}, CutOutOfRange),
        ({}, InvalidInput),
    ],
)
def test_a_bottom_that_no_job_could_have_is_refused(world, fields, error):
    with Link(world.settings.endpoint) as link, pytest.raises(error):
        fetch_manifest(link, pb.FetchRequest(kind=pb.ARTIFACT_KIND_BOTTOM, **fields))


def test_the_doctor_finds_the_way_to_the_cloud(owner, world):
    done = owner("doctor", "--json")
    found = {one["check"]: one for one in json.loads(done.out)}
    assert done.code == 0, found
    assert {found[check]["status"] for check in ("cloud", "clock", "gateway", "home")} == {"ok"}
    wrong = owner("doctor", "--json", PRIVTUNE_API_KEY="pt-wrong")
    assert wrong.code == 5
    shut = owner("doctor", "--json", "--grpc-address", "127.0.0.1:9")
    assert shut.code == 8
    assert {one["check"]: one["status"] for one in json.loads(shut.out)}["gateway"] == "failed"
