"""Where symbols stand for words, the law of the mechanism gives the best guess there is."""

import numpy as np
import pytest
import torch

from privtune.device.audit.attacks.codebook import Codebook, CodebookSettings
from privtune.device.audit.attacks.frequency import Frequency
from privtune.device.audit.attacks.substitution import Substitution, SubstitutionSettings
from privtune.device.audit.metrics import InversionScore
from privtune.shared.errors import InvalidInput

LANGUAGE = SubstitutionSettings(language=True, beam=60)


def top1(attack, lab, observed):
    attack.fit(lab)
    score = InversionScore(lab.public)
    score.add(attack.attack(observed.seen), observed)
    return score.figures()["top1"].value


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize("settings", [SubstitutionSettings(), LANGUAGE])
def test_words_that_are_hardly_replaced_are_named(make_lab, attacked, settings, cut):
    lab = make_lab("custext", {"epsilon": 200.0}, cut=cut)
    assert top1(Substitution(settings=settings), lab, lab.victim.observe(attacked)) >= 0.95


def test_it_is_the_likeliest_word_under_the_exact_chances(make_lab, attacked):
    """Against the mechanism itself, drawn for every word of the vocabulary many times."""
    lab = make_lab("custext", {"epsilon": 3.0, "set_size": 8}, cut=0)
    mechanism, public = lab.victim.mechanism, lab.public
    ids_V, channel = public.ids_V, lab.channel
    drawn = torch.zeros(len(ids_V), len(ids_V))
    for _ in range(300):
        out_V = mechanism.sanitise(ids_V.unsqueeze(0), torch.ones(1, len(ids_V), dtype=torch.bool), _noise())[0]
        drawn[torch.arange(len(ids_V)), public.index(out_V)] += 1 / 300
    exact = channel.log_likelihood(torch.arange(len(ids_V))).exp().T  # word, symbol
    assert float((exact - drawn).abs().max()) < 0.15
    assert exact.sum(1).numpy() == pytest.approx(np.ones(len(ids_V)), abs=1e-4)


def _noise():
    from privtune.device.noise.randomness import noise_source

    return noise_source()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("custext", {"epsilon": 3.0, "set_size": 8}),
        ("shared", {"cluster_size": 8, "epsilon_cluster": 2.0}),
        ("shared", {"cluster_size": 8, "target": "mixture"}),
    ],
)
def test_no_estimated_attack_on_single_words_does_better(make_lab, attacked, name, params):
    lab = make_lab(name, params)
    observed = lab.victim.observe(attacked * 3)
    exact = top1(Substitution(), lab, observed)
    for metric in ("euclidean", "bayes", "channel"):
        assert exact >= top1(Codebook("adaptive", CodebookSettings(metric=metric)), lab, observed) - 0.02, metric
    assert top1(Substitution(settings=LANGUAGE), lab, observed) > exact


def test_vectors_have_no_such_law(make_lab):
    with pytest.raises(InvalidInput, match="vectors"):
        Substitution().fit(make_lab("dchi"))


def test_frequencies_alone_name_many_words_of_a_substitution_whose_table_is_unknown(make_lab, attacked):
    lab = make_lab("custext", {"epsilon": 200.0}, cut=0)
    observed = lab.victim.observe(attacked * 3)
    found = top1(Frequency(), lab, observed)
    score = InversionScore(lab.public)
    score.add(torch.full((len(observed.ids_N), 1), -1), observed)
    assert found > score.figures()["top1"].floor + 0.05
