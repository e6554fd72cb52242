import pytest

from privtune.device.audit.attacks.learned import LearnedSettings, Tokenwise
from privtune.device.audit.attacks.optimise import Optimise, OptimiseSettings
from privtune.device.audit.metrics import InversionScore
from privtune.shared.errors import InvalidInput


def top1(attack, lab, observed):
    score = InversionScore(lab.public)
    score.add(attack.attack(observed.seen), observed)
    return score.figures()["top1"].value


@pytest.mark.parametrize("knowledge", ["oblivious", "adaptive"])
def test_the_text_whose_release_fits_best_is_the_text(make_lab, attacked, knowledge):
    lab = make_lab("none", cut=1)
    warm = Tokenwise(knowledge, LearnedSettings(epochs=1, hidden=16))
    warm.fit(lab)
    attack = Optimise(knowledge, warm, OptimiseSettings(iterations=30))
    attack.fit(lab)
    assert top1(attack, lab, lab.victim.observe(attacked[:20])) >= 0.95


def test_it_repairs_a_warm_start_that_is_wrong(make_lab, attacked):
    lab = make_lab("none", cut=1)
    observed = lab.victim.observe(attacked[:20])

    class Shuffled(Tokenwise):
        """Names the right candidates in a wrong order."""

        def candidates(self, seen, count):
            numbers_NK, logits_NK = super().candidates(seen, count)
            return numbers_NK.roll(1, dims=1), logits_NK * 0

    warm = Shuffled("adaptive", LearnedSettings(epochs=1, hidden=16))
    warm.fit(lab)
    assert top1(warm, lab, observed) < 0.1
    attack = Optimise("adaptive", warm, OptimiseSettings(iterations=150, candidates=8, learning_rate=0.05))
    attack.fit(lab)
    assert top1(attack, lab, observed) > 0.9


def test_rows_of_several_tokens_are_refused(make_lab):
    lab = make_lab("pool", {"size": 2, "clusters": False})
    with pytest.raises(InvalidInput, match="a released row for each token"):
        Optimise("adaptive", Tokenwise("adaptive")).fit(lab)
