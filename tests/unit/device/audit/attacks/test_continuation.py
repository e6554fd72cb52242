"""A language model's own next-token states name its text, as far as they predict it, whatever noise the rows carry."""

import numpy as np
import pytest
import torch

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.codebook import Codebook
from privtune.device.audit.attacks.continuation import Continuation, ContinuationSettings
from privtune.device.audit.attacks.optimise import Optimise, OptimiseSettings
from privtune.device.audit.metrics import InversionScore
from privtune.device.audit.victim import Victim
from privtune.device.noise.registry import build
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.partition import Partition
from tests.support.noise_contexts import model_context
from tests.support.texts import token_rows
from tests.support.tiny_models import VOCAB, tiny_lm


@pytest.fixture(scope="module")
def model():
    return Partition(tiny_lm("llama"))


def lab_of(model, name, params, cut):
    bottom = model.bottom(cut)
    context = model_context(bottom, cut=cut)
    mechanism = build(MechanismSpec(name=name, params=params), context)
    public = PublicText(token_rows(300, seed=0), context.special_ids, candidates=context.usable_ids)
    return Lab(public, Victim(bottom, mechanism, context.special_ids))


def top1(attack, lab, observed):
    attack.fit(lab)
    score = InversionScore(lab.public)
    score.add(attack.attack(observed.seen), observed)
    return score.figures()["top1"].value


@pytest.mark.parametrize("knowledge", ["oblivious", "adaptive"])
def test_on_clean_vectors(model, attacked, knowledge):
    lab = lab_of(model, "none", {}, 0)
    attack = Continuation(knowledge, model.top(0), model.head())
    assert top1(attack, lab, lab.victim.observe(attacked)) >= 0.95


class Writes(torch.nn.Module):
    """Stands for blocks above the cut that predict the text of these records: the next token, by its number."""

    def __init__(self, records):
        super().__init__()
        self._records = {len(ids_T): ids_T for ids_T in records}

    def forward(self, y_BTD, mask_BT, readout_N):
        width = mask_BT.shape[1]
        rows = [self._records[int(length)] for length in mask_BT.sum(1)]
        ids = [int(rows[place // width][place % width + 1]) for place in readout_N.tolist()]
        return torch.nn.functional.one_hot(torch.tensor(ids), VOCAB).float()


def test_a_text_that_the_model_itself_would_write_is_read_through_any_noise(model, attacked):
    lab = lab_of(model, "dchi", {"noise_ratio": 30.0}, 1)
    records = list({len(ids_T): ids_T for ids_T in attacked}.values())
    observed = lab.victim.observe(records)
    attack = Continuation("adaptive", Writes(records), lambda out_ND: 40 * out_ND)
    assert top1(attack, lab, observed) > top1(Codebook("adaptive"), lab, observed) + 0.4


def test_the_model_names_words_that_the_rows_do_not(model, attacked):
    lab = lab_of(model, "dchi", {"noise_ratio": 300.0}, 1)
    records = list({len(ids_T): ids_T for ids_T in attacked}.values())
    few = ContinuationSettings(candidates=8)
    attack = Continuation("adaptive", Writes(records), lambda out_ND: 40 * out_ND, few)
    assert top1(attack, lab, lab.victim.observe(records)) >= 0.8  # all but the first words


def test_where_clusters_are_all_that_leaves_no_word_outside_is_named(model, attacked):
    lab = lab_of(model, "shared", {"cluster_size": 8}, 1)
    observed, attack = lab.victim.observe(attacked), Continuation("adaptive", model.top(1), model.head())
    attack.fit(lab)
    cluster_V = lab.victim.mechanism.targets.cluster_V
    assert torch.equal(cluster_V[attack.attack(observed.seen)[:, 0]], cluster_V[observed.ids_N])


class Misled(Continuation):
    """Names the right candidates in a wrong order."""

    def candidates(self, seen, count):
        numbers_NK, score_NK = super().candidates(seen, count)
        return numbers_NK.roll(1, dims=1), score_NK * 0


def searched(lab, observed, warm, patch, iterations):
    settings = OptimiseSettings(iterations=iterations, candidates=60, learning_rate=0.1, patch=patch)
    return top1(Optimise("adaptive", warm, settings), lab, observed)


def test_in_patches_on_clean_vectors(model, attacked):
    lab = lab_of(model, "none", {}, 1)
    warm = Continuation("adaptive", model.top(1), model.head())
    assert searched(lab, lab.victim.observe(attacked[:6]), warm, 8, 50) >= 0.95


def test_patches_repair_a_wrong_beginning_of_long_texts_that_a_search_of_the_whole_does_not(model):
    lab, rng = lab_of(model, "none", {}, 1), np.random.default_rng(0)
    observed = lab.victim.observe([np.array([2, *rng.integers(4, VOCAB, 24), 3]) for _ in range(3)])
    warm = Misled("adaptive", model.top(1), model.head())
    assert searched(lab, observed, warm, 4, 25) > searched(lab, observed, warm, 0, 25) + 0.15


def test_sums_of_words_are_refused(model):
    with pytest.raises(InvalidInput, match="where a row is a token"):
        Continuation("adaptive", model.top(1), model.head()).fit(lab_of(model, "pool", {"size": 2}, 1))
