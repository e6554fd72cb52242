"""A tail trains on a piece of a micro-batch at a time, and computes each block again: the gradients of the whole."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from privtune.device.model import tail as tail_module
from privtune.device.model.head import HeadTrainer
from privtune.device.model.tail import States, Tail, pieces
from privtune.shared.job_spec import JobSpec, OptimSpec
from privtune.shared.modeling.partition import Partition
from tests.support.tiny_models import WIDTH, tiny_lm


def batch():
    """Records of 9, 4 and 7 tokens; every place but the last of a record is read."""
    mask_BT = (torch.arange(9)[None] < torch.tensor([9, 4, 7])[:, None]).long()
    draw = torch.Generator().manual_seed(1)
    z_BTD, clean_BTD = (torch.randn(3, 9, WIDTH, generator=draw) * mask_BT[..., None] for _ in range(2))
    readout_N = torch.cat([torch.arange(8), 9 + torch.arange(3), 18 + torch.arange(6)])
    return States(z_BTD=z_BTD, clean_BTD=clean_BTD, mask_BT=mask_BT), readout_N, torch.arange(len(readout_N)) % 7


def trainer(method, skip):
    mechanism = {"model": "dec", "task": "causal-lm", "cut": 1, "tail": 1, "skip": skip, "mechanism": {"name": "none"}}
    spec = JobSpec.model_validate(
        mechanism | {"training_file": "device://x", "tuning": {"method": method, "rank": 4, "dropout": 0.0}}
    )
    partition = Partition(tiny_lm("llama"))
    blocks = partition.tail(1)
    return HeadTrainer(
        partition.head(), OptimSpec(), seed=0, total_steps=1, tail=Tail(blocks, spec, partition.below(1))
    )


@pytest.mark.parametrize("rows", [1, 14, 16])
def test_pieces_hold_every_record_and_read_out_once(monkeypatch, rows):
    monkeypatch.setattr(tail_module, "PIECE_ROWS", rows)
    states, readout_N, targets_N = batch()
    found = list(pieces(states, readout_N, targets_N))
    assert [len(part.mask_BT) for part, _, _ in found] == {1: [1, 1, 1], 14: [1, 2], 16: [1, 2]}[rows]
    assert all(part.mask_BT.shape[1] == part.mask_BT.sum(1).max() for part, _, _ in found)
    read = torch.cat([part.z_BTD.flatten(0, 1)[places] for part, places, _ in found])
    assert torch.equal(read, states.z_BTD.flatten(0, 1)[readout_N])
    assert torch.equal(torch.cat([targets for _, _, targets in found]), targets_N)


@pytest.mark.parametrize(
    ("method", "skip"), [("lora", "frozen"), ("lora", "none"), ("lora", "tuned"), ("full", "tuned")]
)
def test_the_gradients_are_those_of_the_whole(monkeypatch, method, skip):
    found = []
    for rows in (1000, 1):
        monkeypatch.setattr(tail_module, "PIECE_ROWS", rows)
        one = trainer(method, skip)
        states, readout_N, targets_N = batch()
        states = states if skip != "none" else replace(states, clean_BTD=None)
        out_ND = one.out(states, readout_N)
        loss = one.learn(states, readout_N, targets_N, step=0, micro_batch=0, items=len(targets_N))
        found.append((loss, out_ND, [parameter.grad for parameter in one.tail.parameters]))
    (whole, out_ND, expected), (parts, in_parts_ND, gradients) = found
    torch.testing.assert_close(out_ND, in_parts_ND, rtol=1e-4, atol=1e-5)
    assert parts == pytest.approx(whole, rel=1e-5)
    for one, other in zip(expected, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_training_loads_no_symbolic_algebra():
    """In a process of its own, as a command's: torch's compiler and sympy are 70 MB of its memory."""
    code = (
        "from privtune.device.runtime.memory import keep_lean; keep_lean()\n"
        "from tests.unit.device.model.test_tail_pieces import batch, trainer\n"
        "states, readout, targets = batch()\n"
        "one = trainer('lora', 'tuned')\n"
        "import sys; before = 'sympy' in sys.modules\n"
        "one.learn(states, readout, targets, step=0, micro_batch=0, items=17)\n"
        "print(before, 'sympy' in sys.modules, 'torch._dynamo.eval_frame' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-3:] == ["False", "False", "False"]
