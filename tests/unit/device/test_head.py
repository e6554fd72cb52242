"""The head's loss in pieces: the same loss and gradient as in one, whatever the size of the vocabulary."""

import pytest
import torch

import device.head
from device.head import HeadTrainer
from shared.config import OptimSpec
from shared.modeling.partition import Partition
from tests.unit.modeling.tiny import VOCAB, WIDTH, tiny_classifier, tiny_lm


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_pieces_add_up_to_the_whole(rows, monkeypatch):
    monkeypatch.setattr(device.head, "CHUNK_BYTES", rows * 4 * VOCAB)
    head = Partition(tiny_lm("llama")).head()
    trainer = HeadTrainer(head, OptimSpec(), seed=0, total_steps=1)
    assert trainer.rows_at_once == rows
    out_ND = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(0))
    targets_N = torch.arange(10)
    loss, gradient_ND = trainer.loss(out_ND.clone(), targets_N, step=0, micro_batch=0, items=20)
    whole_ND = out_ND.clone().requires_grad_(True)
    whole = torch.nn.functional.cross_entropy(head(whole_ND), targets_N, reduction="sum") / 20
    whole.backward()
    assert loss == pytest.approx(float(whole), rel=1e-6)
    torch.testing.assert_close(gradient_ND, whole_ND.grad, atol=1e-7, rtol=1e-6)


def test_the_pieces_of_a_large_vocabulary_stay_small():
    head = Partition(tiny_lm("llama", vocab_size=256_000)).head()
    trainer = HeadTrainer(head, OptimSpec(), seed=0, total_steps=1)
    assert trainer.rows_at_once * 256_000 * 4 <= device.head.CHUNK_BYTES
    classifier = HeadTrainer(Partition(tiny_classifier("bert")).head(), OptimSpec(), seed=0, total_steps=1)
    assert classifier.rows_at_once == device.head.CHUNK_ROWS
