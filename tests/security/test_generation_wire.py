"""Only noised rows leave the device while a tuned model writes: a proxy records every byte of it."""

import json

import numpy as np
import pytest
import torch

from privtune.device.data.messages import ChatMessage
from privtune.device.inference.generate import generate_texts, open_writer
from privtune.device.inference.generation.sampling import Sampling
from privtune.shared.modeling.bottom_package import bottom_from_model
from tests.support.proxy import Proxy
from tests.support.world import InProcessCloud
from tests.support.writing import chat_world, tune_chat

QUESTIONS = ["my secret is zebra-42", "nobody may know of quince jam"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Answers to two questions and a conversation, through a recording proxy."""
    world = chat_world(tmp_path_factory.mktemp("wire"), InProcessCloud)
    job_id = tune_chat(world, mechanism={"name": "dchi"})
    talk = [ChatMessage("system", "be brief"), ChatMessage("user", "where is the treasure?")]
    with Proxy(world.settings.grpc_address) as proxy:
        settings = world.device(grpc_address=proxy.address, local_model=str(world.models["chatty"]))
        sampling = Sampling(max_new_tokens=24, ignore_end=True)
        prompts = [*QUESTIONS, talk]
        found = generate_texts(job_id, prompts, settings, sampling=sampling)
        with open_writer(job_id, settings) as writer:
            sequences = [
                np.array([*writer.prompts.asked(prompt).ids, *answer.tokens])
                for prompt, answer in zip(prompts, found, strict=True)
            ]
        yield world, proxy, found, sequences
    world.cloud.stop()


def test_the_recording_is_of_a_real_generation(recorded):
    _, proxy, found, sequences = recorded
    rows = sum(len(ids) - 1 for ids in sequences)
    assert len(proxy.bytes_from(device=True)) > rows * 32 * 4
    assert all(len(answer.tokens) == 24 for answer in found)


def test_no_text_of_prompt_or_answer(recorded):
    _, proxy, found, _ = recorded
    words = ["zebra", "secret", "quince", "nobody", "treasure", "be brief", "assistant", "im_start"]
    for device in (True, False):
        raw = proxy.bytes_from(device=device)
        for text in words:
            assert text.encode() not in raw
        for answer in found:
            assert answer.text[:8].encode() not in raw


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<i4", "<i8"])
def test_no_token_ids(recorded, dtype):
    _, proxy, _, sequences = recorded
    for device in (True, False):
        raw = proxy.bytes_from(device=device)
        for ids in sequences:
            for start in range(len(ids) - 6):
                window = ids[start : start + 6]
                if dtype != "u1" or window.max() < 256:
                    assert window.astype(dtype).tobytes() not in raw


@pytest.mark.parametrize("injection", ["embed", "cut"])
def test_no_clean_vector(recorded, injection):
    world, proxy, _, sequences = recorded
    raw = proxy.bytes_from(device=True)
    parts = bottom_from_model(str(world.models["chatty"]), "causal-lm", 1)
    for ids in sequences:
        ids_1T = torch.from_numpy(ids)[None].long()
        mask_1T = torch.ones_like(ids_1T)
        with torch.no_grad():
            h_1TD = (parts.bottom.embed if injection == "embed" else parts.bottom)(ids_1T, mask_1T)
        for row_D in h_1TD[0].numpy():
            assert row_D[:4].astype("<f4").tobytes() not in raw


def test_one_state_a_token_comes_back(recorded):
    """Never logits: every answer of the cloud to a row is one vector of width D."""
    world, _, found, _ = recorded
    paths = (world.settings.home / "jobs").glob("*/transcript/*.jsonl")
    lines = [json.loads(text) for path in paths for text in path.read_text().splitlines()]
    trained = min(line["session"] for line in lines if line.get("kind") == "OUTPUT")
    shapes = [line["shape"] for line in lines if line.get("kind") == "OUTPUT" and line["session"] > trained]
    assert {width for _, width in shapes} == {32}
    assert sum(rows for rows, _ in shapes) == sum(len(answer.tokens) for answer in found)
    assert max(rows for rows, _ in shapes) == len(found)  # in rounds
