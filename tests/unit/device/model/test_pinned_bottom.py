"""Under one name, the cloud's bottom stays what this device first got, or nothing is released."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from privtune.device.model.pinned_bottom import hold_to_first
from privtune.shared.errors import DataInvalid, JobConflict
from privtune.shared.modeling.bottom_package import load_bottom_package, write_bottom_package
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.partition import Partition
from tests.support.tiny_models import save_model


@pytest.fixture
def served(tmp_path):
    """Packages of one model, as the cloud would serve them; `change` edits the model's folder before."""
    model = save_model(tmp_path / "enc", "bert", "classification", num_labels=2)

    def package(name, *, cut=1, task="classification", change=None):
        if change is not None:
            change(model)
        partition = Partition(load_task_model(str(model), task, num_labels=2, seed=0))
        folder = tmp_path / name
        write_bottom_package(partition, load_tokenizer(str(model)), cut=cut, task=task, name="enc", folder=folder)
        return load_bottom_package(folder), folder

    return package


def one_weight(model):
    file = model / "model.safetensors"
    state = load_file(file)
    name = next(name for name in state if name.endswith("word_embeddings.weight"))
    state[name][7, 3] += 1e-6
    save_file(state, file, metadata={"format": "pt"})


def one_setting(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1.000001e-12}))


def one_token(model):
    text = (model / "tokenizer.json").read_text()
    assert '"w5"' in text
    (model / "tokenizer.json").write_text(text.replace('"w5"', '"w6x"', 1))


def test_the_same_model_passes_at_every_cut(tmp_path, served):
    for name, cut in (("a", 1), ("b", 2), ("c", 0), ("d", 1)):
        hold_to_first(tmp_path / "home", "enc", *served(name, cut=cut))


@pytest.mark.parametrize(
    ("change", "part"),
    [(one_weight, "word_embeddings"), (one_setting, "layer_norm_eps"), (one_token, "tokenizer.json")],
)
def test_a_small_change_is_refused_with_what_to_do(tmp_path, served, change, part):
    home = tmp_path / "home"
    hold_to_first(home, "enc", *served("a"))
    changed = served("b", cut=2, change=change)
    for _ in range(2):
        with pytest.raises(JobConflict, match=rf"{part}.* differs.*--local-model.*delete"):
            hold_to_first(home, "enc", *changed)
    hold_to_first(home, "another", *changed)
    (pins,) = [file for file in (home / "models").iterdir() if json.loads(file.read_text())["model"] == "enc"]
    pins.unlink()
    hold_to_first(home, "enc", *changed)


def test_a_damaged_file_of_pins_is_one_clear_error(tmp_path, served):
    package = served("a")
    hold_to_first(tmp_path / "home", "enc", *package)
    (pins,) = (tmp_path / "home" / "models").iterdir()
    pins.write_text("[]")
    with pytest.raises(DataInvalid, match="damaged"):
        hold_to_first(tmp_path / "home", "enc", *package)


def test_a_tensor_of_any_dtype_is_hashed(served, tmp_path):
    package, folder = served("a")
    package.bottom.to(torch.bfloat16)
    hold_to_first(tmp_path / "home", "enc", package, folder)
