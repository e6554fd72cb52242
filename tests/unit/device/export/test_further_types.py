"""Exports of models that no list names: what the split pipeline answers, in plain peft, merged and read again."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from privtune.device.export.gguf_file import check_gguf
from privtune.device.export.merge import merge_into
from privtune.shared.errors import ModelUnsupported
from privtune.shared.job_spec import TuningSpec
from privtune.shared.modeling.adapter_folder import add_head_to_adapter
from privtune.shared.modeling.architectures import tasks_of
from privtune.shared.modeling.load import load_task_model
from privtune.shared.modeling.lora import attach_lora, save_adapter, train_fully, trainable_parameters
from privtune.shared.modeling.partition import Partition, classification_readout
from privtune.shared.modeling.small_copy import small_config
from tests.support.adapters import disturb
from tests.support.tiny_models import tiny_batch

# Fused queries, keys and values; experts in one tensor; no positions; a tied head; scaled states; a prediction head.
KINDS = {
    "modernbert": {},
    "nomic_bert": {},
    "opt": {"word_embed_proj_dim": 512, "hidden_size": 1024, "do_layer_norm_before": False},
    "qwen3_moe": {},
    "mixtral": {},
    "gpt_neox": {},
    "bloom": {},
    "falcon": {},
    "granite": {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},
    "deepseek_v3": {},
}
CUT = 1
IDS_BT, MASK_BT = tiny_batch()


def factory(task):
    return AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification


def logits(model, task):
    """Of each text, or of each token that is not padding."""
    with torch.no_grad():
        found = model.eval()(input_ids=IDS_BT, attention_mask=MASK_BT).logits
    return found[MASK_BT.bool()] if task == "causal-lm" else found


def split(base, task, folder, tune):
    """Tune every layer above the cut by chance; the adapter's folder, and the split pipeline's answers."""
    partition = Partition(base)
    top, head = partition.top(CUT), partition.head()
    tune(top)
    fresh = [] if task == "causal-lm" else head.parameters()
    disturb([*trainable_parameters(top), *fresh])
    save_adapter(top, folder)
    add_head_to_adapter(folder, head, task=task, base_model="base")
    rows_N = MASK_BT.flatten().nonzero().flatten()
    if task == "classification":
        rows_N = classification_readout(partition.readout, MASK_BT.sum(1), IDS_BT.shape[1])
    with torch.no_grad():
        return head(top.eval()(partition.bottom(CUT)(IDS_BT, MASK_BT), MASK_BT, rows_N))


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_exports_answer_as_the_split_pipeline(kind, tuning, tmp_path):
    task = tasks_of(kind)[-1]
    torch.manual_seed(0)
    made = factory(task).from_config(small_config(AutoConfig.for_model(kind, **KINDS[kind])))
    made.save_pretrained(tmp_path / "base")
    base = load_task_model(str(tmp_path / "base"), task, num_labels=3)
    before = logits(base, task)
    tune = train_fully if tuning == "full" else lambda top: attach_lora(top, TuningSpec(rank=2, dropout=0.0), seed=1)
    answers = split(base, task, tmp_path / "adapter", tune)
    assert not torch.allclose(answers, before, atol=1e-2)
    if tuning == "lora":
        plain = factory(task).from_pretrained(tmp_path / "base", **({} if task == "causal-lm" else {"num_labels": 3}))
        tuned = PeftModel.from_pretrained(plain, tmp_path / "adapter")
        torch.testing.assert_close(logits(tuned, task), answers, atol=1e-3, rtol=1e-3)
    whole = load_task_model(str(tmp_path / "base"), task, num_labels=3)
    if (kind, tuning) == ("deepseek_v3", "lora"):  # peft moves the targets to the tensors of the experts
        with pytest.raises(ModelUnsupported, match=r"target_parameters.*use peft's merge_and_unload"):
            merge_into(whole, tmp_path / "adapter")
        return
    merge_into(whole, tmp_path / "adapter")
    whole.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits(factory(task).from_pretrained(tmp_path / "merged"), task), answers, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("kind", [*KINDS, "gemma3_text", "phi3"])
def test_what_a_gguf_file_can_not_hold_is_refused_by_type(kind):
    with pytest.raises(ModelUnsupported, match=f"type '{kind}' can't be written as GGUF here; .*--format merged"):
        check_gguf(AutoConfig.for_model(kind))
