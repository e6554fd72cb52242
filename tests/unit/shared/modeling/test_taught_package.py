"""Taught blocks take the place of the device's own; what releases stays, and a package that does not fit is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from privtune.shared.errors import ArtifactCorrupt, VersionMismatch
from privtune.shared.manifest import write_manifest
from privtune.shared.modeling.bottom_package import bottom_from_model
from privtune.shared.modeling.lora import train_fully
from privtune.shared.modeling.taught_package import with_taught_blocks, write_taught_package
from tests.support.tiny_models import save_model, tiny_batch

NAMES = ("bad", "good")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model") / "enc", "mpnet", "classification", num_labels=2))


@pytest.fixture
def package(model):
    return bottom_from_model(model, "classification", 1, tail=1)


@pytest.fixture
def state(package):
    """Weights of the taught blocks and the head, each one more than before."""
    found = {}
    for top in (package.below, package.tail):
        train_fully(top)
        found |= {name: value.detach() + 1 for name, value in top.named_parameters() if value.requires_grad}
    return found | {name: value.detach() + 1 for name, value in package.head.named_parameters()}


def write(folder, package, state, **card):
    write_taught_package(folder, state, {"fingerprint": package.fingerprint, "labels": list(NAMES)} | card)
    return folder


def test_the_blocks_are_taught_and_what_leaves_is_the_same(tmp_path, model, package, state):
    plain = bottom_from_model(model, "classification", 1, tail=1)
    ids_BT, mask_BT = tiny_batch()
    before = plain.bottom(ids_BT, mask_BT)
    taught = with_taught_blocks(plain, write(tmp_path / "t", package, state), NAMES)
    for top in (taught.below, taught.tail):
        mine = {name: value for name, value in top.named_parameters() if name in state}
        assert mine
        assert all(torch.equal(value, state[name]) for name, value in mine.items())
    assert all(torch.equal(value, state[name]) for name, value in taught.head.named_parameters())
    assert torch.equal(taught.bottom(ids_BT, mask_BT), before), "the bottom that releases is not taught"
    assert taught.weights_sha256 == plain.weights_sha256, "the handshake still compares the model's own weights"
    assert taught.taught.card["labels"] == list(NAMES)


def test_the_classes_of_another_job_are_drawn_anew(tmp_path, model, package, state):
    plain = bottom_from_model(model, "classification", 1, tail=1)
    last = {name: value.clone() for name, value in plain.head.named_parameters() if "out_proj" in name}
    taught = with_taught_blocks(plain, write(tmp_path / "t", package, state), ("a", "b"))
    for name, value in taught.head.named_parameters():
        assert torch.equal(value, last.get(name, state[name]))


def test_a_control_character_of_the_card_does_not_reach_a_terminal(tmp_path, model, package, state):
    folder = write(tmp_path / "t", package, state, corpus={"name": "a\x1b[2J"})
    taught = with_taught_blocks(bottom_from_model(model, "classification", 1, tail=1), folder, NAMES)
    assert "\x1b" not in taught.taught.card["corpus"]["name"]


def spoilt(kind, state):
    name = next(iter(state))
    if kind == "missing":
        return {key: value for key, value in state.items() if key != name}
    if kind == "more":
        return state | {"mpnet.embeddings.word_embeddings.weight": torch.zeros(64, 32)}
    if kind == "float8":
        return state | {name: state[name].to(torch.float8_e4m3fn)}
    return state | {name: torch.full_like(state[name], torch.nan) if kind == "nan" else torch.zeros(3)}


@pytest.mark.parametrize("kind", ["missing", "more", "nan", "shape", "float8"])
def test_weights_that_do_not_fit_are_refused(tmp_path, package, state, kind):
    folder = write(tmp_path / "t", package, spoilt(kind, state))
    with pytest.raises(ArtifactCorrupt, match="do not use it"):
        with_taught_blocks(package, folder, NAMES)


def test_a_changed_file_and_another_model_are_refused(tmp_path, package, state):
    folder = write(tmp_path / "t", package, state)
    (folder / "card.json").write_text("{}")
    with pytest.raises(ArtifactCorrupt, match="does not match its hash"):
        with_taught_blocks(package, folder, NAMES)
    with pytest.raises(VersionMismatch, match="another model"):
        with_taught_blocks(package, write(tmp_path / "u", package, state, fingerprint="x"), NAMES)


@pytest.mark.parametrize("card", ["[]", "nonsense"])
def test_a_card_that_is_none_is_refused(tmp_path, package, card):
    folder = tmp_path / "t"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, folder / "taught.safetensors")
    (folder / "card.json").write_text(card)
    write_manifest(folder, format=1)
    with pytest.raises(ArtifactCorrupt, match="readable card"):
        with_taught_blocks(package, folder, NAMES)
