"""Answers of the evaluation's tuned language models are those of the whole model, and of a job under noise."""

import numpy as np
import pytest
import torch

from privtune.device.release.noising import build_noise
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.bottom_package import bottom_from_model
from privtune.shared.modeling.partition import Partition
from research.paper.perplexity import TunedLanguageModel
from research.paper.written_answers import prompt_of, write_answers
from tests.support.tiny_models import VOCAB, tiny_lm, tiny_tokenizer

PROMPTS = [np.array(ids, dtype=np.int32) for ids in ([2, 9, 17, 30, 8], [2, 40], [2, 11, 12, 13, 14, 15, 16, 21])]
LONGEST = 12


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request, tmp_path_factory):
    """The model, its partition, and the folder that it lies in."""
    folder, model = tmp_path_factory.mktemp("model"), tiny_lm(request.param)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model.eval(), Partition(model), str(folder)


def answers(family, home, mechanism="none", cut=1, prompts=PROMPTS, longest=LONGEST, **params):
    _, whole, folder = family
    parts = bottom_from_model(folder, "causal-lm", cut, num_labels=2)
    noise = build_noise(parts, MechanismSpec(name=mechanism, params=params), cut, home)
    tuned = TunedLanguageModel(whole.top(cut), whole.head(), "float32")
    return parts, write_answers(parts, noise, tuned, prompts, longest=longest)


@pytest.mark.parametrize("cut", [0, 1])
def test_without_noise_they_are_the_whole_models(family, tmp_path, cut):
    model = family[0]
    parts, texts = answers(family, tmp_path, cut=cut)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = torch.tensor(prompt[None].astype(np.int64))
        told = model.generate(
            ids, do_sample=False, max_new_tokens=LONGEST, eos_token_id=sorted(parts.end_ids), pad_token_id=0
        )
        new = told[0, len(prompt) :].tolist()
        assert text == parts.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert text  # the comparison is of something


def test_the_context_length_bounds_them(family, tmp_path):
    parts, _ = answers(family, tmp_path)
    rng = np.random.default_rng(0)
    prompt = rng.integers(5, VOCAB, size=parts.max_positions - 3).astype(np.int32)
    _, (text,) = answers(family, tmp_path, prompts=[prompt])
    assert len(parts.tokenizer(text, add_special_tokens=False)["input_ids"]) <= 3


def test_the_rows_of_an_answer_are_noised_as_well(family, tmp_path):
    """With next to no signal two answers to one prompt differ, and neither is the clean one."""
    prompts = [PROMPTS[0]]
    _, clean = answers(family, tmp_path, prompts=prompts)
    noised = {answers(family, tmp_path, "dchi", prompts=prompts, noise_ratio=50.0)[1][0] for _ in range(4)}
    assert len(noised) > 1
    assert noised != set(clean)


def test_a_mechanism_that_shortens_is_refused(family, tmp_path):
    with pytest.raises(InvalidInput, match="shortens"):
        answers(family, tmp_path, "pool")


def test_a_prompt_ends_where_the_first_token_is_predicted():
    ids, mask = np.arange(6, dtype=np.int32), np.array([False, False, True, False, True, True])
    assert prompt_of(ids, mask).tolist() == [0, 1]
