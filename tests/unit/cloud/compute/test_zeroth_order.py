"""The cloud's side of a zeroth-order job: both outputs, one number a step, and nothing of a gradient."""

import pytest
import torch

from privtune.cloud.compute.release_cache import ReleaseCache
from privtune.cloud.compute.zeroth_order import ZerothOrderMachine, ZerothOrderTop
from privtune.shared.errors import FrameCorrupt, NonFinite
from privtune.shared.modeling.lora import trainable_parameters
from privtune.shared.wire import FORWARD, GRADIENT, OUTPUT, STEP, Message, pack_positions, tensor_message
from privtune.split.v1 import split_pb2 as pb
from tests.support.adapters import exported
from tests.support.builders import least_spec

WIDTH, RECORDS, ROWS = 32, 6, 4
H_MD = torch.randn(RECORDS * ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).numpy()


def machine_of(host, folder, **changes):
    spec = least_spec(
        model="enc",
        codec="fp32",
        zeroth_order={"epsilon": 4.0, "scale": 1e-3},
        tuning={"rank": 2, "dropout": 0.3},
        optim={"learning_rate": 3e-3, "warmup_ratio": 0.0, "schedule": "constant"},
        **changes,
    )
    top = ZerothOrderTop(host, spec, 400, folder)
    return top, ZerothOrderMachine(top, ReleaseCache(WIDTH, "fp32", 1 << 20, None), lambda: None)


def forward(step, **header):
    message = tensor_message(FORWARD, step, 0, H_MD, "fp32")
    readout = pack_positions(torch.arange(0, RECORDS * ROWS, ROWS).numpy())
    facts = {"record_ids": range(RECORDS), "lengths": [ROWS] * RECORDS, "inlined": [True] * RECORDS}
    message.forward = pb.ForwardHeader(readout=readout, **facts, **header)
    return message


def tell(machine, message):
    return list(machine.handle(message))


def end(step, slope=None, **control):
    return Message(kind=STEP, step=step, control=pb.StepControl(slope=slope, **control))


def test_both_outputs_come_and_the_parameters_stay(host, tmp_path):
    top, machine = machine_of(host, tmp_path)
    before = [parameter.clone() for parameter in trainable_parameters(top._top)]
    (answer,) = tell(machine, forward(0))
    assert (answer.kind, answer.rows, answer.width, answer.codec) == (OUTPUT, 2 * RECORDS, WIDTH, "fp32")
    forwards, backwards = torch.from_numpy(answer.tensor()).chunk(2)
    (evaluated,) = tell(machine, forward(0, forward_only=True))
    assert not torch.equal(forwards, backwards)
    middle = torch.from_numpy(evaluated.tensor())
    assert torch.allclose((forwards + backwards) / 2, middle, atol=2e-3), "no dropout, and moved evenly either way"
    assert all(torch.equal(one, other) for one, other in zip(before, trainable_parameters(top._top), strict=True))
    assert tell(machine, forward(0)) == [], "a repeat counts once"


def test_exact_slopes_train_it(host, tmp_path):
    top, machine = machine_of(host, tmp_path)
    scale, losses = top.spec.zeroth_order.scale, []
    target = torch.randn(RECORDS, WIDTH, generator=torch.Generator().manual_seed(2))
    for step in range(120):
        (answer,) = tell(machine, forward(step))
        losses.append([float((out - target).square().mean()) for out in torch.from_numpy(answer.tensor()).chunk(2)])
        (report,) = tell(machine, end(step, (losses[-1][0] - losses[-1][1]) / (2 * scale)))
        assert report.report.grad_norm > 0
    assert sum(losses[-1]) < 0.95 * sum(losses[0])


def test_equal_slopes_give_equal_weights_and_another_number_gives_others(host, tmp_path):
    found = []
    for slopes in ((0.5, -0.2), (0.5, -0.2), (0.5, -0.3)):
        top, machine = machine_of(host, tmp_path / str(len(found)))
        for step, slope in enumerate(slopes):
            tell(machine, end(step, slope))
        found.append(exported(top))
    same, other = ([torch.equal(found[0][name], one[name]) for name in found[0]] for one in found[1:])
    assert all(same)
    assert not any(other)


def test_what_makes_no_sense_is_refused(host, tmp_path):
    _, machine = machine_of(host, tmp_path)
    tell(machine, forward(0))
    with pytest.raises(FrameCorrupt, match="without gradients"):
        tell(machine, tensor_message(GRADIENT, 0, 0, H_MD[:RECORDS], "fp32"))
    with pytest.raises(FrameCorrupt, match="without its slope"):
        tell(machine, end(0))
    with pytest.raises(NonFinite):
        tell(machine, end(0, float("nan")))
