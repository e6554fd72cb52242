"""A masked language model as prior: nothing is lost on clean vectors, and context adds to the bare likelihood."""

import pytest

from privtune.device.audit.attacks.masked import Masked, MaskedSettings
from privtune.device.audit.attacks.reader import Pretrained, ReaderSettings
from privtune.device.audit.attacks.substitution import Substitution
from privtune.device.audit.metrics import InversionScore
from privtune.shared.errors import InvalidInput

TUNING = ReaderSettings(epochs=6, batch=32, learning_rate=1e-2, encoder_rate=3e-3)


@pytest.fixture(scope="module")
def pretrained(partition):
    return Pretrained.of_model(partition.model)


def top1(attack, lab, observed):
    attack.fit(lab)
    score = InversionScore(lab.public)
    score.add(attack.attack(observed.seen), observed)
    return score.figures()["top1"].value


@pytest.mark.parametrize("knowledge", ["oblivious", "adaptive"])
def test_on_clean_vectors(make_lab, attacked, pretrained, knowledge):
    lab = make_lab("none", cut=0)
    settings = MaskedSettings(tuning=ReaderSettings(epochs=1), candidates=8, rounds=1)
    assert top1(Masked(knowledge, pretrained, settings), lab, lab.victim.observe(attacked)) >= 0.95


def test_context_adds_to_the_likelihood(make_lab, attacked, pretrained):
    lab = make_lab("shared", {"cluster_size": 8}, records=300)
    observed = lab.victim.observe(attacked)
    attack = Masked("adaptive", pretrained, MaskedSettings(tuning=TUNING))
    assert top1(attack, lab, observed) > top1(Substitution(), lab, observed) + 0.05


def test_sums_of_words_are_refused(make_lab, pretrained):
    with pytest.raises(InvalidInput, match="a released row for each token"):
        Masked("adaptive", pretrained).fit(make_lab("pool", {"size": 2}))
