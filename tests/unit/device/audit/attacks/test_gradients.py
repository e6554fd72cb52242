import dataclasses

import numpy as np
import pytest
import torch

from privtune.device.audit.attacks import gradients
from privtune.device.audit.victim import Victim
from privtune.device.data.encode import EncodedDataset
from privtune.device.noise.registry import build
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.partition import Partition
from tests.support.noise_contexts import model_context
from tests.support.texts import token_rows
from tests.support.tiny_models import tiny_lm

PROMPT = 3  # first tokens that are not predicted


@pytest.fixture(scope="module")
def model():
    return Partition(tiny_lm("llama"))


@pytest.fixture(scope="module")
def observed(model):
    rows = token_rows(40, seed=3)
    masks = tuple(np.arange(len(row)) >= PROMPT for row in rows)
    bottom = model.bottom(1)
    context = model_context(bottom)
    noise = build(MechanismSpec(name="dchi", params={"noise_ratio": 500.0}), context)
    victim = Victim(bottom, noise, context.special_ids)
    return EncodedDataset(ids=tuple(rows), loss_masks=masks), victim.observe(rows)


@pytest.mark.parametrize(("states", "least"), [(True, 0.99), (False, 0.8)])
def test_gradients_name_what_is_predicted_and_nothing_of_the_prompt(model, observed, states, least):
    data, sent = observed
    batches = list(gradients.simulated(data, sent, model.top(1), model.head()))
    if not states:
        batches = [dataclasses.replace(batch, out_PD=None) for batch in batches]
    ids_NK = gradients.read_back(model.head(), batches, sent)
    place_N = sent.seen.place_R[sent.seen.row_N]
    predicted_N = place_N >= PROMPT
    right_N = ids_NK[:, 0] == sent.ids_N
    assert right_N[predicted_N].float().mean() >= least
    assert (ids_NK[~predicted_N] == -1).all()
    assert bool(predicted_N.any())
    assert not bool(predicted_N.all())


def test_the_scale_of_the_loss_does_not_matter_to_the_direction_but_a_wrong_one_is_no_help(model, observed):
    data, sent = observed
    (batch, *_) = gradients.simulated(data, sent, model.top(1), model.head())
    right = gradients.next_tokens(model.head(), batch)
    halved = dataclasses.replace(batch, gradient_PD=batch.gradient_PD / 2, items=batch.items * 2)
    assert torch.equal(gradients.next_tokens(model.head(), halved)[:, 0], right[:, 0])


def test_records_without_predicted_tokens_are_refused(model, observed):
    data, sent = observed
    with pytest.raises(InvalidInput, match="which tokens are predicted"):
        next(gradients.simulated(EncodedDataset(ids=data.ids), sent, model.top(1), model.head()))
