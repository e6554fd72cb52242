"""`privtune push` against a hub that keeps every byte: what the export wrote arrives, and no more."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from huggingface_hub import constants

from privtune.device.cli import main
from privtune.device.export.export_job import ExportOptions, export_job
from tests.support.hub import READ_ONLY, TOKEN, Repo, serving
from tests.support.running import train
from tests.support.world import build_world

REPO = "owner/reviews"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An adapter and a merged model of one job."""
    world = build_world(tmp_path_factory.mktemp("push"))
    try:
        job_id = train(world, world.spec(train={"max_steps": 2}))
        export_job(job_id, world.folder / "adapter", world.settings)
        settings = world.device(local_model=str(world.models["enc"]))
        export_job(job_id, world.folder / "merged", settings, ExportOptions(format="merged", label_names=False))
    finally:
        world.cloud.stop()
    return world.folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the adapter that a test may change."""
    copy = tmp_path / "adapter"
    copy.mkdir()
    for path in (exported / "adapter").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.fixture
def hub():
    with serving() as running:
        yield running


def as_process(hub, folder, *arguments, repo=REPO):
    """`privtune push` with a real environment; (exit code, stdout, stderr)."""
    home = folder.parent / "nobody"  # no login of this machine's own
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "privtune.device.cli", "push", str(folder), repo, *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def push(hub, capsys, monkeypatch, tmp_path):
    """The same in this process: huggingface_hub read its settings when it was imported, so they are set there."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))

    def run(folder, *arguments, token=TOKEN, repo=REPO):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(SystemExit) as ended:
            main(["push", str(folder), repo, *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return run


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bytes_that_arrive_are_the_export(hub, exported):
    for name in ("adapter", "merged"):
        code, out, err = as_process(hub, exported / name, "--yes", repo=f"owner/{name}")
        assert code == 0, err
        assert out.startswith(f"{hub.url}/owner/{name}/commit/")
        repo = hub.repos[f"owner/{name}"]
        assert repo.private
        assert repo.files == files_of(exported / name)
        assert repo.summaries == ["Upload a model tuned with PrivTune"]
        assert all(file in err for file in repo.files)
    assert {"model.safetensors", "config.json"} <= hub.repos["owner/merged"].files.keys()
    assert len(hub.blobs) == 2  # the weights went the way of large files
    home = str(exported.parent).encode()
    assert not any(home in body for body in hub.bodies)


def test_names_of_classes_are_shown_before_they_leave(hub, push, exported):
    _, _, told = push(exported / "adapter", "--yes")
    assert "Names of your classes that readers will see: high, low" in told
    _, _, silent = push(exported / "merged", "--yes")
    assert "Names of your classes" not in silent


def test_without_a_yes_nothing_is_sent(hub, push, folder):
    code, _, err = push(folder)
    assert code == 2
    assert "adapter_model.safetensors" in err
    assert "owner/reviews at http://127.0.0.1" in err
    assert "private" in err
    assert err.splitlines()[-1].startswith("privtune: Nothing was uploaded.")
    assert hub.bodies == []


def test_a_file_that_the_export_did_not_write_stays_here(hub, push, folder):
    (folder / "train.tsv").write_text("a text of the owner")
    code, _, err = push(folder, "--yes")
    assert code == 2
    assert "train.tsv" in err
    assert hub.bodies == []


def test_an_edited_card_is_uploaded_and_said_to_be(hub, push, folder):
    with (folder / "README.md").open("a") as card:
        card.write("\nMade for film reviews.\n")
    code, _, err = push(folder, "--yes")
    assert code == 0, err
    assert "README.md  (edited since the export)" in err
    assert hub.repos[REPO].files["README.md"].endswith(b"Made for film reviews.\n")


def test_a_card_that_the_hub_refuses(hub, push, folder):
    (folder / "README.md").write_text("---\nbase_model: [\n---\nx")
    code, _, err = push(folder, "--yes")
    assert code == 2
    assert "Invalid metadata in README.md" in err
    assert hub.repos[REPO].files == {}


def test_a_public_repository_needs_the_word(hub, push, folder):
    hub.repos[REPO] = Repo(private=False)
    code, _, err = push(folder, "--yes")
    assert code == 5
    assert "is public on the hub; nothing was uploaded" in err
    assert hub.repos[REPO].files == {}
    code, _, err = push(folder, "--yes", "--public", "--message", "v2")
    assert code == 0, err
    assert "PUBLIC" in err
    assert hub.repos[REPO].files == files_of(folder)
    assert hub.repos[REPO].summaries == ["v2"]


@pytest.mark.parametrize(
    ("token", "code", "said"),
    [("", 5, "set HF_TOKEN"), ("hf_wrong", 5, "does not accept the token"), (READ_ONLY, 5, "may not write")],
)
def test_tokens(hub, push, folder, token, code, said):
    ended, _, err = push(folder, "--yes", token=token)
    assert ended == code
    assert said in err
    assert hub.blobs == {}


def test_other_failures_are_one_line_each(hub, push, folder, monkeypatch):
    code, _, err = push(folder, "--yes", repo="not/a/name")
    assert (code, "not/a/name" in err) == (2, True)
    hub.broken_uploads = True
    code, _, err = push(folder, "--yes")
    assert (code, "connection broke" in err) == (8, True)
    assert hub.repos[REPO].files == {}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, err = push(folder, "--yes")
    assert (code, "can't be reached" in err) == (8, True)
