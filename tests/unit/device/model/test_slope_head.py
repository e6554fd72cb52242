"""The head that slopes are taken with: it moves with the top, and nothing but released slopes changes it."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from privtune.device.model.slope_head import SlopeHead
from privtune.shared.errors import FrameCorrupt
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.random_directions import direction, moved
from tests.support.builders import least_spec
from tests.support.tiny_models import WIDTH, tiny_classifier

SPEC = least_spec(zeroth_order={"epsilon": 4.0, "scale": 1e-3}, optim={"learning_rate": 1e-2})
TARGETS = torch.tensor([0, 1, 1, 0, 1])


@pytest.fixture(scope="module")
def head():
    return Partition(tiny_classifier("bert")).head()


def outputs():
    return torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(3))


def test_a_slope_is_the_derivative_of_each_loss_along_the_direction_of_top_and_head(head):
    out_2ND, scale = outputs(), SPEC.zeroth_order.scale
    middle_ND, half_ND = out_2ND[:5], out_2ND[5:] * scale  # the top's own part of the movement
    found = SlopeHead(head, SPEC, 10, []).slopes(torch.cat([middle_ND + half_ND, middle_ND - half_ND]), TARGETS)
    exact = copy.deepcopy(head).eval()
    parameters = list(exact.parameters())
    z = direction(parameters, "head", SPEC.train.seed, 0)
    inputs = middle_ND.clone().requires_grad_()
    for place in range(5):
        loss = cross_entropy(exact(inputs[place : place + 1]), TARGETS[place : place + 1])
        *gradients, into_ND = torch.autograd.grad(loss, [*parameters, inputs])
        along = sum(float((one * other).sum()) for one, other in zip(gradients, z, strict=True))
        along += float((into_ND[place] * out_2ND[5 + place]).sum())
        assert float(found[place]) == pytest.approx(along, abs=2e-3)


def test_only_slopes_change_it_and_they_change_it_the_same_way_after_a_resume(head):
    before = {name: value.clone() for name, value in head.state_dict().items()}
    straight = SlopeHead(head, SPEC, 10, [])
    for slope in (0.3, -1.2, 0.7):
        straight.slopes(outputs(), TARGETS)
        straight.learn(slope)
    resumed = SlopeHead(head, SPEC, 10, [0.3, -1.2, 0.7])
    assert torch.equal(straight.slopes(outputs(), TARGETS), resumed.slopes(outputs(), TARGETS))
    untaught = SlopeHead(head, SPEC, 10, [])
    assert not torch.equal(straight.slopes(outputs(), TARGETS), untaught.slopes(outputs(), TARGETS))
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items()), "the owner's own"


def test_moved_parameters_come_back_bit_for_bit(head):
    parameters = list(copy.deepcopy(head).parameters())
    before = [parameter.clone() for parameter in parameters]
    z = direction(parameters, "head", 0, 0)
    with moved(parameters, z, 0.1):
        assert not torch.equal(parameters[0], before[0])
    assert all(torch.equal(one, other) for one, other in zip(parameters, before, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_outputs_that_no_top_has_are_refused_whatever_the_labels(head, value):
    """A cloud that makes one class overflow would learn from the failure which records have it."""
    out_2ND = outputs()
    out_2ND[3, 2] = value
    for targets_N in (TARGETS, 1 - TARGETS):
        with pytest.raises(FrameCorrupt, match="larger than any"):
            SlopeHead(head, SPEC, 10, []).slopes(out_2ND, targets_N)
    assert torch.isfinite(SlopeHead(head, SPEC, 10, []).slopes(outputs().sign() * 1e6, TARGETS)).all()
