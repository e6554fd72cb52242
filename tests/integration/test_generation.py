"""Private generation against plain transformers + peft, and what happens when it is disturbed."""

import pytest

from device.generate import generate_texts, open_writer
from device.generation.sampling import Sampling
from tests.integration.writing import PROMPTS, plain_model, plain_tokens, tune

NEW = 30
FREELY = Sampling(max_new_tokens=NEW, ignore_end=True)


@pytest.mark.parametrize("cut", [0, 2])
def test_greedy_tokens_equal_plain_transformers_and_peft(local_world, cut):
    world = local_world
    job_id = tune(world, cut=cut)
    found = generate_texts(job_id, PROMPTS, world.settings, sampling=FREELY, in_flight=2)
    short = generate_texts(job_id, PROMPTS, world.settings, sampling=Sampling(max_new_tokens=NEW))
    model = plain_model(world, job_id)
    with open_writer(job_id, world.settings) as writer:
        prompts = [writer.prompts.ids(prompt) for prompt in PROMPTS]
    for ids, freely, ended in zip(prompts, found, short, strict=True):
        assert freely.tokens == plain_tokens(model, ids, NEW, eos_token_id=None)
        assert ended.tokens == plain_tokens(model, ids, NEW)
        assert (freely.finish, freely.prompt_tokens) == ("length", len(ids))
    with model.disable_adapter():  # so that the adapter made a difference
        untouched = [plain_tokens(model, ids, NEW, eos_token_id=None) for ids in prompts]
    assert untouched != [answer.tokens for answer in found]
