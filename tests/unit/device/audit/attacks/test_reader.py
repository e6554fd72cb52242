"""The reader finds nearly everything on clean vectors, keeps to the cluster, and learns what context adds."""

import pytest
import torch

from privtune.device.audit.attacks.codebook import Codebook, CodebookSettings
from privtune.device.audit.attacks.reader import Pretrained, Reader, ReaderSettings
from privtune.device.audit.metrics import InversionScore
from privtune.shared.errors import InvalidInput

SETTINGS = ReaderSettings(epochs=8, batch=32, learning_rate=1e-2, encoder_rate=3e-3)


@pytest.fixture(scope="module")
def pretrained(partition):
    return Pretrained.of_model(partition.model)


def top1(attack, lab, observed):
    if not attack.fitted:
        attack.fit(lab)
    score = InversionScore(lab.public)
    score.add(attack.attack(observed.seen), observed)
    return score.figures()["top1"].value


@pytest.mark.parametrize("knowledge", ["oblivious", "adaptive"])
def test_on_clean_vectors(make_lab, attacked, pretrained, knowledge):
    lab = make_lab("none", cut=0)
    attack = Reader(knowledge, pretrained, ReaderSettings(epochs=1))
    assert top1(attack, lab, lab.victim.observe(attacked)) >= 0.95


@pytest.mark.parametrize(
    ("name", "params"), [("shared", {"cluster_size": 8}), ("codes", {"codes": 8, "dims": 4, "task": "none"})]
)
def test_it_reads_more_from_context_than_word_by_word(make_lab, attacked, pretrained, name, params):
    lab = make_lab(name, params, records=300)
    observed = lab.victim.observe(attacked)
    alone = top1(Codebook("adaptive", CodebookSettings(metric="bayes")), lab, observed)
    assert top1(Reader("adaptive", pretrained, SETTINGS), lab, observed) > alone + 0.03


def test_it_names_only_words_of_the_cluster(make_lab, attacked, pretrained):
    lab = make_lab("shared", {"cluster_size": 8})
    observed = lab.victim.observe(attacked)
    attack = Reader("adaptive", pretrained, ReaderSettings(epochs=1))
    attack.fit(lab)
    cluster_V = lab.victim.mechanism.targets.cluster_V
    assert torch.equal(cluster_V[attack.attack(observed.seen)[:, 0]], cluster_V[observed.ids_N])


def test_an_interrupted_training_continues_where_it_was(make_lab, attacked, pretrained):
    lab = make_lab("shared", {"cluster_size": 8}, records=64)
    settings = ReaderSettings(epochs=2, batch=16)
    attack = Reader("adaptive", pretrained, settings)
    attack.prepare(lab)
    steps = [done for done, _ in attack.train(lab, lab.public.records, 0)]
    assert [done for done, _ in attack.train(lab, lab.public.records, 0, start=5)] == steps[5:]


def test_sums_of_words_are_refused(make_lab, pretrained):
    with pytest.raises(InvalidInput, match="a released row for each token"):
        Reader("adaptive", pretrained).prepare(make_lab("pool", {"size": 2}))
