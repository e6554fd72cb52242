"""Where the mechanism leaves only the cluster of a word, the best attacker is known: the codebook must match it."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from privtune.device.audit.attacks.codebook import Codebook, CodebookSettings
from privtune.device.audit.metrics import InversionScore


@pytest.fixture(scope="module")
def lab(make_lab):
    return make_lab("shared", {"cluster_size": 8}, records=300)


def accuracy(attack, lab, observed):
    attack.fit(lab)
    score = InversionScore(lab.public)
    score.add(attack.attack(observed.seen), observed)
    return score.figures()["top1"].value


def members(lab, token):
    """Candidates of the token's cluster, and the log prior of each."""
    cluster_V = lab.victim.mechanism.targets.cluster_V
    inside = cluster_V[lab.public.ids_V] == cluster_V[token]
    return lab.public.ids_V[inside], lab.public.log_prior_V[inside]


def exact_posterior(lab, row, before=2, after=3):
    """argmax P(id | all clusters of the record) a place under the bigram model: forward-backward, written plainly."""
    choices = [members(lab, token)[0] for token in row]
    law = lab.bigrams.log_prob
    forward = [law(torch.tensor(before), choices[0])]
    for one, other in pairwise(choices):
        forward.append(torch.logsumexp(forward[-1][:, None] + law(one[:, None], other[None]), dim=0))
    backward = [law(choices[-1], torch.tensor(after))]
    for one, other in zip(choices[-2::-1], choices[:0:-1], strict=True):
        backward.append(torch.logsumexp(law(one[:, None], other[None]) + backward[-1][None], dim=1))
    return [int(c[(f + b).argmax()]) for c, f, b in zip(choices, forward, backward[::-1], strict=True)]


def test_word_by_word_it_is_the_likeliest_word_of_the_cluster(lab, attacked):
    observed = lab.victim.observe(attacked)
    exact = []
    for token in observed.ids_N:
        ids, prior = members(lab, token)
        exact.append(int(ids[prior.argmax()]) == int(token))
    assert accuracy(Codebook("adaptive"), lab, observed) >= np.mean(exact) - 0.01


def test_with_the_language_it_is_the_exact_posterior(lab, attacked):
    observed = lab.victim.observe(attacked)
    truth = [row[1:-1].tolist() for row in attacked]
    right = [np.equal(exact_posterior(lab, row), row) for row in truth]
    exact = float(np.concatenate(right).mean())
    language = CodebookSettings(metric="language", beam=60)
    assert accuracy(Codebook("adaptive", language), lab, observed) >= exact - 0.01
