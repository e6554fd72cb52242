"""A pre-trained decoder with a trained adapter writes 64 tokens as plain transformers + peft do."""

import pytest

from privtune.device.inference.generate import generate_texts, open_writer
from privtune.device.inference.generation.sampling import Sampling
from tests.support.real import model_folder
from tests.support.world import InProcessCloud, build_world
from tests.support.writing import plain_model, plain_tokens, tune

pytestmark = pytest.mark.slow
TEXTS = ["Once upon a time", "The little dog ran to", "Lily said"]


@pytest.mark.parametrize("cut", [0, 2])
def test_babyllama(tmp_path, cut):
    folder = model_folder("babyllama-tok105")
    world = build_world(
        tmp_path, lambda place, models, **more: InProcessCloud(place, {**models, "baby": folder}, **more)
    )
    world.models["baby"] = folder
    try:
        job_id = tune(world, model="baby", cut=cut, train={"max_steps": 3})
        found = generate_texts(
            job_id, TEXTS, world.settings, sampling=Sampling(max_new_tokens=64, ignore_end=True), in_flight=3
        )
        with open_writer(job_id, world.settings) as writer:
            prompts = [writer.prompts.asked(text).ids for text in TEXTS]
        model = plain_model(world, job_id, "baby")
        expected = [plain_tokens(model, ids, 64, eos_token_id=None) for ids in prompts]
        assert [answer.tokens for answer in found] == expected
        with model.disable_adapter():
            assert [plain_tokens(model, ids, 64, eos_token_id=None) for ids in prompts] != expected
    finally:
        world.cloud.stop()
