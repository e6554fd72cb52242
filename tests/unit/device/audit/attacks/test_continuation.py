"""A language model's own next-token states name its text, as far as they predict it, whatever noise the rows carry."""

import pytest
import torch

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.codebook import Codebook
from privtune.device.audit.attacks.continuation import Continuation
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


def test_sums_of_words_are_refused(model):
    with pytest.raises(InvalidInput, match="where a row is a token"):
        Continuation("adaptive", model.top(1), model.head()).fit(lab_of(model, "pool", {"size": 2}, 1))
