"""Models in GGUF files: what a reading would lose is refused, and a file is converted once."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from privtune.device.export.gguf_file import write_gguf
from privtune.shared.errors import ModelUnsupported
from privtune.shared.modeling import gguf_source
from privtune.shared.modeling.gguf_source import converted_gguf
from privtune.shared.modeling.load import load_task_model
from tests.support.gguf_models import RULES, byte_level, gguf_lm


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVTUNE_CACHE", str(tmp_path / "cache"))


def written(path):
    tokenizer = byte_level(RULES["gpt-2"])
    write_gguf(path, gguf_lm("llama", tokenizer), tokenizer, "fp32", name="tiny", source=None)
    return path


@pytest.mark.parametrize("lost", ["factors", "type"])
def test_scaled_positions_are_refused(tmp_path, monkeypatch, lost):
    """transformers reads neither Llama 3's factors nor the settings of rope scaling."""
    plain = gguf.GGUFWriter.write_header_to_file

    def with_scaling(self, *args):
        if lost == "factors":
            self.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))
        else:
            self.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        plain(self, *args)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_scaling)
    file = written(tmp_path / "long.gguf")
    with pytest.raises(ModelUnsupported, match=r"long\.gguf' scales its positions"):
        converted_gguf(str(file))


def test_a_file_of_a_hub_is_converted_again_when_it_changes(tmp_path, monkeypatch):
    """The hub's cache gives each version of a file a path of its own."""
    versions = [written(tmp_path / "first.gguf"), written(tmp_path / "second.gguf")]
    monkeypatch.setattr(gguf_source, "cached_file", lambda *_: versions[-1])
    monkeypatch.setattr(gguf_source, "_convert", lambda *args: (args[-1] / "config.json").write_text("{}"))
    newer = converted_gguf("owner/model::file.gguf")
    assert converted_gguf("owner/model::file.gguf") == newer
    versions.pop()
    assert converted_gguf("owner/model::file.gguf") != newer


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_are_in_memory_once_and_as_in_the_file(tmp_path, monkeypatch, tied):
    tokenizer = byte_level(RULES["gpt-2"])
    model = gguf_lm("llama", tokenizer, tie_word_embeddings=tied)
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer, "fp32", name="tiny", source=None)
    read, held = PreTrainedModel.save_pretrained, []

    def save(self, *args, **options):
        held.extend(parameter.data_ptr() for parameter in self.parameters())
        return read(self, *args, **options)

    load, loaded = AutoModelForCausalLM.from_pretrained, []

    def remembered(*args, **options):
        loaded.append(load(*args, **options))
        return loaded[0]

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", save)
        patched.setattr(AutoModelForCausalLM, "from_pretrained", remembered)
        folder = converted_gguf(str(tmp_path / "tiny.gguf"))
    assert set(held) == {parameter.data_ptr() for parameter in loaded[0].parameters()}
    found = load_task_model(str(folder), "causal-lm").state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value)
