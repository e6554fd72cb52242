"""The head's loss in pieces: the same loss and gradient as in one, whatever the size of the vocabulary."""

import pytest
import torch

from privtune.device.model import head as head_module
from privtune.device.model.head import HeadTrainer
from privtune.device.model.tail import States, Tail
from privtune.shared.job_spec import JobSpec, OptimSpec
from privtune.shared.modeling.checkpoint import load_parameters
from privtune.shared.modeling.partition import Partition
from tests.support.tiny_models import VOCAB, WIDTH, tiny_classifier, tiny_lm


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_pieces_add_up_to_the_whole(rows, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_BYTES", rows * 4 * VOCAB)
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
    assert trainer.rows_at_once * 256_000 * 4 <= head_module.CHUNK_BYTES
    classifier = HeadTrainer(Partition(tiny_classifier("bert")).head(), OptimSpec(), seed=0, total_steps=1)
    assert classifier.rows_at_once == head_module.CHUNK_ROWS


@pytest.mark.parametrize("tuned", [False, True], ids=["head", "tail"])
def test_what_a_lost_connection_left_half_done_is_forgotten(tuned, tmp_path):
    """A rewound step is learnt from its own micro-batches alone."""

    def learnt(*, interrupted):
        partition = Partition(tiny_classifier("bert"))
        spec = JobSpec(model="enc", training_file="device://x", tail=1, tuning={"method": "full"})
        tail = Tail(partition.tail(1), spec) if tuned else None
        trainer = HeadTrainer(partition.head(), OptimSpec(), seed=0, total_steps=4, tail=tail)
        draw = torch.Generator().manual_seed(0)
        states = States(
            z_BTD=torch.randn(2, 3, WIDTH, generator=draw),
            clean_BTD=torch.randn(2, 3, WIDTH, generator=draw),
            mask_BT=torch.ones(2, 3, dtype=torch.long),
        )

        def learn(step, micro_batch):
            at = {"step": step, "micro_batch": micro_batch, "items": 2}
            if tuned:
                trainer.learn(states, torch.tensor([0, 3]), torch.tensor([0, 1]), **at)
            else:
                trainer.loss(states.z_BTD[:, 0].clone(), torch.tensor([0, 1]), **at)

        learn(0, 0)
        trainer.step()
        folder = tmp_path / str(interrupted)
        trainer.save(folder, 1)
        if interrupted:
            learn(1, 0)
            trainer.rewind(folder, 1)
        learn(1, 0)
        trainer.step()
        trainer.save(folder, 2)
        return load_parameters(folder, 2)

    calm, resumed = learnt(interrupted=False), learnt(interrupted=True)
    assert all(torch.equal(calm[name], resumed[name]) for name in calm)
