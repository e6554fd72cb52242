"""The cloud teaches a device's blocks on public text, and a job begins with them; no record is needed for it."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from privtune.cloud.cli import app as cloud_app
from privtune.device.account.ledger import Ledger
from privtune.device.inference.predict import predict
from privtune.shared.errors import ArtifactCorrupt, JobConflict
from privtune.shared.modeling.taught_package import write_taught_package
from privtune.shared.teaching_spec import TeachingSpec
from tests.support.owner import TINY, job_id_of
from tests.support.running import run, wait_until
from tests.support.world import ProcessCloud, build_world

START = (
    "teachings",
    "start",
    "--model",
    "enc",
    "--corpus",
    "sentences",
    "--set",
    "max_length=16",
    "--set",
    "max_pieces=150",
)
TEACHING = TeachingSpec(model="enc", corpus="sentences", max_length=16, max_pieces=150)
CODES = ("--protect", "words", "--cut", "1", "--param", "codes=4", "--another-noise")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("teachings"), ProcessCloud)
    yield built
    built.cloud.stop()


def taught(owner, *more):
    """A finished teaching of block 0 and the last one."""
    done = owner(*START, "--label-column", "label", "--follow", "--json", *more)
    assert done.code == 0, done.err
    teaching = json.loads(done.out)
    assert teaching["status"] == "succeeded", teaching["reason"]
    return teaching


def test_a_job_begins_with_the_taught_blocks_and_says_so(owner):
    assert owner("teachings", "corpora").out.split() == ["sentences"]
    teaching = taught(owner)
    card = teaching["card"]
    assert card["taught"]["states"] < card["untaught"]["states"]
    assert card["labels"] == ["high", "low"]
    assert card["corpus"]["name"] == "sentences"
    listed = owner("teachings", "list")
    assert teaching["id"] in listed.out
    data = str(owner.world.data.path)
    done = owner("finetune", "--model", "enc", "--data", data, *TINY, *CODES, "--taught", "sentences")
    assert done.code == 0, done.err
    job_id = job_id_of(done)
    assert f"begins with the blocks of {teaching['id']}, taught on sentences" in done.out
    report = json.loads((owner.home / "jobs" / job_id / "report.json").read_text())
    assert report["taught"]["card"]["corpus"] == card["corpus"]
    with Ledger(owner.home) as ledger:
        notes = [row for row in ledger.entries() if row["kind"] == "taught"]
    assert [(row["job"], row["teaching"]) for row in notes] == [(job_id, teaching["id"])]
    assert "nothing was released for it" in owner("ledger").out
    checked = owner("teachings", "check", job_id, "--text", data, "--local-model", str(owner.world.models["enc"]))
    assert checked.code == 0, checked.err
    untaught, nearer = (float(line.split()[-1]) for line in checked.out.splitlines() if "distance" in line)
    assert nearer < untaught
    told = owner("predict", job_id, "--text", "w5 w6 w50")
    assert told.code == 0, told.err


def test_the_same_teaching_again_is_ready_at_once(owner):
    assert taught(owner)["id"] == taught(owner)["id"], "found, not taught a second time"


def test_a_job_of_other_blocks_is_refused_before_anything_is_sent(owner):
    teaching = taught(owner)
    data = ("finetune", "--model", "enc", "--data", str(owner.world.data.path), *TINY, "--another-noise")
    other = owner(*data, "--protect", "words", "--cut", "0", "--skip", "frozen", "--taught", teaching["id"])
    assert (other.code, "is for cut 1, and this job has cut 0" in other.line) == (2, True)
    without = owner(*data, "--protect", "none", "--taught", teaching["id"])
    assert (without.code, "needs a tail" in without.line) == (2, True)
    none = owner(*data, "--protect", "words", "--cut", "0", "--skip", "frozen", "--taught", "auto")
    assert (none.code, "privtune teachings start" in none.line) == (6, True)


def test_an_operator_teaches_at_a_terminal(owner):
    place = owner.world.folder
    command = ["teach", "--data", str(place / "cloud"), "--model", f"enc={owner.world.models['enc']}"]
    command += ["--corpus", f"sentences={place / 'public.tsv'}", "--set", "max_length=12", "--set", "max_pieces=150"]
    done = CliRunner().invoke(cloud_app, command)
    assert done.exit_code == 0, done.output
    assert "teaching: 5 of 5, loss" in done.output
    teaching_id = next(word for word in done.output.split() if word.startswith("teach-"))
    assert owner("teachings", "show", teaching_id).code == 0
    wrong = CliRunner().invoke(cloud_app, [*command, "--set", "epochs=none"])
    assert "epochs" in str(wrong.exception)


def test_mistakes_are_one_line(owner):
    assert "no corpus 'other'" in owner("teachings", "start", "--model", "enc", "--corpus", "other").line
    assert "cut must be from 0 to 2" in owner(*START, "--cut", "9").line
    failed = json.loads(owner(*START, "--text-column", "body", "--follow", "--json").out)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "DATA_INVALID")
    assert 'no column "body" for text' in failed["reason"]
    assert owner("teachings", "cancel", failed["id"]).code == 6
    assert owner("teachings", "delete", failed["id"]).out.strip() == f"deleted {failed['id']}"
    assert owner("teachings", "delete", failed["id"]).code == 6


@pytest.mark.slow
def test_a_cloud_that_is_killed_continues_to_the_same_weights(tmp_path):
    """kill -9 in the middle; the weights are those of a teaching that nothing has disturbed."""
    world = build_world(tmp_path, ProcessCloud)
    spec = {"model": "enc", "corpus": "sentences", "max_length": 16, "epochs": 12, "checkpoint_every": 5}
    path = "/v1/privtune/teachings"
    try:
        first = world.cloud.control.call("POST", path, json=spec)["id"]

        def step():
            return world.cloud.control.call("GET", f"{path}/{first}")["progress"]

        wait_until(lambda: step()["stage"] == "teaching" and step()["step"] > 6, step, seconds=60)
        world.cloud.kill()
        world.cloud = ProcessCloud(tmp_path / "cloud", world.models, corpora={"sentences": tmp_path / "public.tsv"})

        def ended(teaching_id):
            wait_until(
                lambda: world.cloud.control.call("GET", f"{path}/{teaching_id}")["status"] == "succeeded", seconds=90
            )
            found = world.cloud.control.call("GET", f"{path}/{teaching_id}")["card"]
            return found["taught"], found["untaught"]

        disturbed = ended(first)
        for folder in (tmp_path / "cloud" / "teachings").iterdir():
            if folder.is_dir():
                weights = (folder / "taught.safetensors").read_bytes()
                folder.rename(tmp_path / folder.name)
        calm = ended(world.cloud.control.call("POST", path, json=spec)["id"])
        assert calm == disturbed
        (again,) = (tmp_path / "cloud" / "teachings").glob("*/taught.safetensors")
        assert again.read_bytes() == weights
    finally:
        world.cloud.stop()


def test_other_taught_blocks_under_a_running_job_are_refused(local_world):
    world = local_world
    made = world.cloud.teachings.create("alice", TEACHING)
    wait_until(lambda: world.cloud.teachings.get(made.id).status == "succeeded", seconds=60)
    spec = world.spec(tail=1, skip="tuned", taught=made.id, train={"max_steps": 4})
    job_id, result = run(world, spec)
    assert result.taught is not None
    folder = world.folder / "cloud" / "teachings" / (world.cloud.teachings.get(made.id).result or "")
    card = json.loads((folder / "card.json").read_text())
    write_taught_package(folder, load_file(folder / "taught.safetensors"), card | {"version": "another"})
    assert predict(job_id, ["w1"], world.settings), "the device has its own copy of what the job began with"
    shutil.rmtree(world.settings.home / "taught")
    with pytest.raises(JobConflict, match="taught blocks"):
        predict(job_id, ["w1"], world.settings)
    weights = bytearray((folder / "taught.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "taught.safetensors").write_bytes(weights)
    with pytest.raises(ArtifactCorrupt):
        run(world, spec, settings=world.device(home=world.folder / "another"))
