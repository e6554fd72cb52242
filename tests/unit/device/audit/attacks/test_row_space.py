"""A secret mixture of a record's rows hides none of its words; what replaces them does."""

import pytest
import torch

from privtune.device.audit.attacks.codebook import Codebook
from privtune.device.audit.attacks.row_space import row_space
from privtune.device.audit.metrics import InversionScore
from privtune.device.noise.base import Release
from privtune.device.noise.mechanisms.none import NoMechanism


class SecretMix(NoMechanism):
    """Y = M H with a fresh random matrix for each record."""

    def _release(self, ids_BT, h_BTD, mask_BT, importance_BT, generator):
        out_BTD = torch.zeros_like(h_BTD)
        for record, real_T in enumerate(mask_BT):
            count = int(real_T.sum())
            out_BTD[record, :count] = torch.randn(count, count) @ h_BTD[record, :count]
        return Release(h_BTD=out_BTD, mask_BT=mask_BT)


def test_a_secret_mixture_hides_nothing_from_it(make_lab, attacked):
    lab = make_lab(cut=0, kind=SecretMix)
    observed = lab.victim.observe(attacked)
    assert row_space(lab, observed).figure.value >= 0.95
    score, codebook = InversionScore(lab.public), Codebook("adaptive")
    codebook.fit(lab)
    score.add(codebook.attack(observed.seen), observed)
    assert score.figures()["top1"].value < 0.5, "row by row it is hidden"


@pytest.mark.parametrize("size", [2, 3])
def test_sums_of_neighbouring_words_are_read_above_the_floor(make_lab, attacked, size):
    """Fewer rows than words: the span holds no word any more, and those nearest to it are still its own."""
    lab = make_lab("pool", {"size": size, "clusters": False}, cut=0)
    figure = row_space(lab, lab.victim.observe(attacked)).figure
    assert figure.low > figure.floor + 0.1


@pytest.mark.parametrize(
    ("name", "params", "most"), [("shared", {"cluster_size": 8}, 0.7), ("gaussian", {"epsilon": 0.1}, 0.5)]
)
def test_what_replaces_or_drowns_words_holds(make_lab, attacked, name, params, most):
    lab = make_lab(name, params)
    assert row_space(lab, lab.victim.observe(attacked)).figure.value < most
