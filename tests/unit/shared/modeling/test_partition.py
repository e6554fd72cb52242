"""Bottom + Top + Head is the original, for every architecture, cut, mask and length."""

from __future__ import annotations

import pytest
import torch
from transformers import BertModel, T5Config, T5ForSequenceClassification

from privtune.shared.errors import CutOutOfRange, ModelUnsupported
from privtune.shared.modeling.partition import Partition, classification_readout
from tests.support.tiny_models import CONFIGS, DECODERS, ENCODERS, LAYERS, WIDTH, tiny_batch, tiny_classifier, tiny_lm

CUTS = (0, 1, LAYERS - 1)
LENGTHS = ((7, 1, 4), (6, 6), (1,), (12, 3, 5, 9))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", CONFIGS)
def test_classifier_split_equals_whole(kind):
    model = tiny_classifier(kind)
    partition = Partition(model)
    head = partition.head()
    for lengths in LENGTHS:
        ids_BT, mask_BT = tiny_batch(lengths)
        whole_BC = model(input_ids=ids_BT, attention_mask=mask_BT).logits
        readout_B = classification_readout(partition.readout, mask_BT.sum(1), ids_BT.shape[1])
        for cut in CUTS:
            h_BTD = partition.bottom(cut)(ids_BT, mask_BT)
            assert torch.isfinite(h_BTD).all()
            split_BC = head(partition.top(cut)(h_BTD, mask_BT, readout_B))
            torch.testing.assert_close(split_BC, whole_BC, atol=1e-5, rtol=1e-5)
        every_row = torch.arange(ids_BT.numel())
        for cut, tail in ((0, 1), (0, LAYERS - 1), (1, 1)):
            h_BTD = partition.bottom(cut)(ids_BT, mask_BT)
            z_BTD = partition.top(cut, tail)(h_BTD, mask_BT, every_row).view_as(h_BTD)
            split_BC = head(partition.tail(tail)(z_BTD, mask_BT, readout_B))
            torch.testing.assert_close(split_BC, whole_BC, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_causal_lm_split_equals_whole(kind):
    model = tiny_lm(kind)
    partition = Partition(model)
    head = partition.head()
    for lengths in LENGTHS:
        ids_BT, mask_BT = tiny_batch(lengths)
        readout_N = mask_BT.flatten().nonzero().flatten()
        whole_NV = model(input_ids=ids_BT, attention_mask=mask_BT).logits.flatten(0, 1)[readout_N]
        for cut in CUTS:
            split_NV = head(partition.top(cut)(partition.bottom(cut)(ids_BT, mask_BT), mask_BT, readout_N))
            torch.testing.assert_close(split_NV, whole_NV, atol=1e-5, rtol=1e-5)


def test_a_tail_holds_its_own_blocks_and_leaves_the_cloud_some():
    partition = Partition(tiny_classifier("bert"))
    middle, tail = partition.top(0, 1), partition.tail(1)
    assert middle.block_names == tuple(f"bert.encoder.layer.{index}" for index in range(LAYERS - 1))
    assert tail.block_names == (f"bert.encoder.layer.{LAYERS - 1}",)
    assert {name for name, _ in middle.named_parameters()}.isdisjoint(name for name, _ in tail.named_parameters())
    for cut, count in ((0, LAYERS), (1, LAYERS - 1), (0, -1)):
        with pytest.raises(CutOutOfRange, match=f"Cut {cut} and a tail of {count} leave none"):
            partition.top(cut, count)


@pytest.mark.parametrize("kind", CONFIGS)
def test_bottom_is_its_embedding_then_its_blocks(kind):
    partition = Partition(tiny_classifier(kind))
    ids_BT, mask_BT = tiny_batch()
    for cut in CUTS:
        bottom = partition.bottom(cut)
        bottom.train()
        h0_BTD = bottom.embed(ids_BT, mask_BT)
        assert h0_BTD.shape == (*ids_BT.shape, WIDTH)
        assert torch.equal(bottom.blocks(h0_BTD, mask_BT), bottom(ids_BT, mask_BT))
        assert not bottom.training
        assert not any(p.requires_grad for p in bottom.parameters())


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_reach_the_cut_and_the_read_out(kind):
    model = tiny_classifier(kind)
    partition = Partition(model)
    ids_BT, mask_BT = tiny_batch()
    bottom, top, head = partition.bottom(1), partition.top(1), partition.head()
    readout_B = classification_readout(partition.readout, mask_BT.sum(1), ids_BT.shape[1])
    h_BTD = bottom(ids_BT, mask_BT).requires_grad_()
    out_BD = top(h_BTD, mask_BT, readout_B).detach().requires_grad_()
    head(out_BD).square().sum().backward()
    top(h_BTD, mask_BT, readout_B).backward(out_BD.grad)
    assert out_BD.grad.abs().sum() > 0
    assert h_BTD.grad.abs().sum() > 0
    assert torch.isfinite(h_BTD.grad).all()


def test_embedding_table_is_what_the_model_looks_up():
    ids_BT, mask_BT = tiny_batch()
    for kind in ("llama", "gemma", "gemma3_text"):  # nothing but the lookup before block 0
        bottom = Partition(tiny_lm(kind)).bottom(0)
        assert torch.allclose(bottom.embedding_VD[ids_BT], bottom.embed(ids_BT, mask_BT))
    bottom = Partition(tiny_classifier("bert")).bottom(0)
    assert bottom.embedding_VD.data_ptr() == bottom.bert.embeddings.word_embeddings.weight.data_ptr()


def test_slices_share_one_frozen_base():
    model = tiny_lm("llama")
    partition = Partition(model)
    whole = {name: p.data_ptr() for name, p in model.named_parameters()}
    held = {}
    for part in (partition.bottom(1), partition.top(1), partition.top(2), partition.head()):
        for name, p in part.named_parameters():
            assert name == "lm_head.weight" or p.data_ptr() == whole[name]
            held[name] = p.data_ptr()
    assert held.pop("lm_head.weight") == whole["model.embed_tokens.weight"]
    assert set(held) == set(whole)


@pytest.mark.parametrize("kind", CONFIGS)
def test_slices_hold_only_what_is_theirs(kind):
    model = tiny_classifier(kind)
    partition = Partition(model)
    names = [
        {n for n, _ in part.named_parameters()} for part in (partition.bottom(1), partition.top(1), partition.head())
    ]
    assert set.union(*names) == {n for n, _ in model.named_parameters()}
    relative = ("relative_attention_bias", "rel_embeddings", "encoder.LayerNorm")  # MPNet's and DeBERTa's positions
    assert not {n for n in names[0] & names[1] if not any(part in n for part in relative)}
    assert not names[2] & (names[0] | names[1])


def test_a_layer_between_the_blocks_can_not_be_split():
    with pytest.raises(ModelUnsupported, match="'conv' between its blocks"):
        Partition(tiny_classifier("deberta-v2", conv_kernel_size=3))


@pytest.mark.parametrize("kind", ["phi"])
def test_dropout_on_the_embedding_is_not_done_again_by_the_top(kind):
    model = tiny_lm(kind, embd_pdrop=0.9)
    ids_BT, mask_BT = tiny_batch()
    partition = Partition(model)
    top = partition.top(1).train()
    h_BTD = partition.bottom(1)(ids_BT, mask_BT)
    first, second = (top(h_BTD, mask_BT, torch.tensor([0])) for _ in range(2))
    assert torch.equal(first, second)


def test_classifier_head_is_trainable_and_own_but_an_lm_head_is_frozen_and_tied():
    model = tiny_classifier("bert")
    head = Partition(model).head()
    assert set(dict(head.named_parameters())) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert all(p.requires_grad for p in head.parameters())
    assert head.classifier.weight.data_ptr() != model.classifier.weight.data_ptr()
    lm = Partition(tiny_lm("gpt2")).head()
    assert [n for n, _ in lm.named_parameters()] == ["lm_head.weight"]
    assert not any(p.requires_grad for p in lm.parameters())


def test_slices_move_as_one():
    model = tiny_classifier("electra")
    bottom = Partition(model).bottom(1)
    bottom.to(torch.float64)
    ids_BT, mask_BT = tiny_batch()
    assert bottom(ids_BT, mask_BT).dtype == torch.float64


@pytest.mark.parametrize("cut", [-1, LAYERS, 99])
def test_cut_out_of_range(cut):
    with pytest.raises(CutOutOfRange, match=f"0 to {LAYERS - 1}"):
        Partition(tiny_classifier("bert")).bottom(cut)


def test_models_that_are_no_single_stack_with_a_head_are_refused():
    config = T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=32)
    with pytest.raises(ModelUnsupported, match="'t5' is an encoder-decoder"):
        Partition(T5ForSequenceClassification(config))
    with pytest.raises(ModelUnsupported, match="head"):
        Partition(BertModel(tiny_classifier("bert").config))


def test_fingerprint_follows_the_base_and_not_the_head():
    first = Partition(tiny_classifier("bert", num_labels=2, seed=0)).fingerprint()
    assert first == Partition(tiny_classifier("bert", num_labels=5, seed=1)).fingerprint()
    assert first != Partition(tiny_classifier("bert", hidden_act="relu")).fingerprint()
    assert first != Partition(tiny_classifier("bert", intermediate_size=64)).fingerprint()
    prints = {Partition(tiny_classifier(kind)).fingerprint() for kind in CONFIGS}
    assert len(prints) == len(CONFIGS)


def test_encoders_read_the_first_token_and_decoders_the_last():
    assert {Partition(tiny_classifier(k)).readout for k in ENCODERS} == {"first"}
    assert {Partition(tiny_classifier(k)).readout for k in DECODERS} == {"last"}
    lengths_B = torch.tensor([3, 1])
    assert classification_readout("first", lengths_B, 5).tolist() == [0, 5]
    assert classification_readout("last", lengths_B, 5).tolist() == [2, 5]
