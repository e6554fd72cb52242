"""Only what the export wrote may leave; everything else in the folder stops the upload."""

from __future__ import annotations

import json

import pytest

from privtune.device.export.export_folder import MADE_BY
from privtune.device.export.push import plan_upload
from privtune.shared.errors import ArtifactCorrupt, InvalidInput
from privtune.shared.manifest import write_manifest


@pytest.fixture
def folder(tmp_path):
    """What an export looks like to the uploader."""
    made = tmp_path / "export"
    made.mkdir()
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 10)
    (made / "README.md").write_text("---\ntags: []\n---\nA card.\n")
    (made / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "patient"}}))
    write_manifest(made, made_by=MADE_BY)
    return made


def test_the_list_is_the_folder(folder):
    upload = plan_upload(folder)
    assert dict(upload.files) == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert upload.size == sum(path.stat().st_size for path in folder.iterdir())
    assert upload.label_names == ("patient",)
    assert not upload.card_edited


@pytest.mark.parametrize("stranger", ["train.tsv", ".hidden", "notes/"])
def test_a_stranger(folder, stranger):
    path = folder / stranger.rstrip("/")
    path.mkdir() if stranger.endswith("/") else path.write_text("a text of the owner")
    with pytest.raises(InvalidInput, match=rf"holds {path.name}, which the export did not write"):
        plan_upload(folder)


def test_a_link_in_place_of_a_file(folder):
    real = folder.parent / "elsewhere"
    (folder / "model.safetensors").rename(real)
    (folder / "model.safetensors").symlink_to(real)
    with pytest.raises(InvalidInput, match=r"model\.safetensors"):
        plan_upload(folder)


def test_a_changed_or_missing_file(folder):
    (folder / "config.json").write_text('{"id2label": {"0": "Alice Smith"}}')
    with pytest.raises(ArtifactCorrupt, match=r"config\.json"):
        plan_upload(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ArtifactCorrupt, match=r"config\.json"):
        plan_upload(folder)


def test_an_edited_card_is_allowed_and_told(folder):
    (folder / "README.md").write_text("mine")
    assert plan_upload(folder).card_edited


def test_other_folders(folder, tmp_path):
    with pytest.raises(InvalidInput, match="not a folder that `privtune export` wrote"):
        plan_upload(tmp_path)
    with pytest.raises(InvalidInput, match="not a folder that `privtune export` wrote"):
        plan_upload(tmp_path / "nowhere")
    write_manifest(folder, made_by="somebody else")
    with pytest.raises(InvalidInput, match="not a folder that `privtune export` wrote"):
        plan_upload(folder)
    (folder / "manifest.json").write_text(
        json.dumps({"made_by": MADE_BY, "files": [{"name": "../../etc/passwd", "size": 0, "sha256": "0" * 64}]})
    )
    with pytest.raises(ArtifactCorrupt, match="outside the folder"):
        plan_upload(folder)
