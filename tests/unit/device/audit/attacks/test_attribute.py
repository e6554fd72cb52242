"""Attribute inference finds a real attribute on clean vectors, and nothing where there is nothing."""

import numpy as np
import pytest
import torch

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.attribute import AttributeSettings, PooledAttribute, SequenceAttribute, TextAttribute
from privtune.device.audit.attacks.codebook import Codebook
from privtune.device.audit.metrics import AttributeScore
from privtune.shared.errors import InvalidInput

SETTINGS = AttributeSettings(epochs=25, learning_rate=3e-3, encoder_rate=1e-3, hidden=32)


def labelled(records, seed):
    """Records of which each second one has half of its words swapped for those of a topic."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=len(records))
    out = []
    for row, label in zip(records, labels, strict=True):
        row = row.copy()
        swapped = rng.random(len(row)) < 0.5
        swapped[[0, -1]] = False
        if label:
            row[swapped] = rng.integers(50, 60, size=int(swapped.sum()))
        out.append(row)
    return out, labels.astype(np.int64)


@pytest.fixture(scope="module")
def world(make_lab, attacked):
    plain = make_lab("none", cut=0, records=300)
    records, labels = labelled(plain.public.records, 0)
    public = PublicText(records, plain.public.special_ids, labels=labels)
    return Lab(public, plain.victim, plain.encoder), *labelled(attacked * 2, 1)


def attacks(knowledge, lab):
    inversion = Codebook(knowledge)
    inversion.fit(lab)
    return [
        PooledAttribute(knowledge, SETTINGS),
        SequenceAttribute(knowledge, SETTINGS),
        TextAttribute(knowledge, inversion, SETTINGS),
    ]


@pytest.mark.parametrize("knowledge", ["oblivious", "adaptive"])
def test_a_topic_is_told_from_clean_vectors(world, knowledge):
    lab, records, labels = world
    seen = lab.victim.observe(records).seen
    for attack in attacks(knowledge, lab):
        attack.fit(lab)
        score = AttributeScore(labels)
        score.add(attack.attack(seen))
        figures = score.figures()
        assert figures["accuracy"].value > figures["accuracy"].floor + 0.25, attack.name
        assert figures["auc"].value > 0.85, attack.name


def test_a_few_words_of_long_texts_tell_the_topic_of_few_records(make_lab):
    plain, rng = make_lab("none", cut=0), np.random.default_rng(4)

    def texts(count):
        labels = rng.integers(2, size=count)
        words = rng.integers(4, 50, size=(count, 36))
        words[:, :3] = rng.integers(50, 55, size=(count, 3)) + 5 * labels[:, None]
        rows = [np.array([2, *row, 3], dtype=np.int32) for row in words]
        return rows, labels.astype(np.int64)

    records, labels = texts(200)
    lab = Lab(PublicText(records, plain.public.special_ids, labels=labels), plain.victim)
    inversion = Codebook("oblivious")
    inversion.fit(lab)
    attack = TextAttribute("oblivious", inversion, AttributeSettings(epochs=30))
    attack.fit(lab)
    records, labels = texts(100)
    score = AttributeScore(labels)
    score.add(attack.attack(lab.victim.observe(records).seen))
    assert score.figures()["accuracy"].value > 0.9


def test_final_states_are_another_view(world):
    lab, records, labels = world
    attack = PooledAttribute("adaptive", AttributeSettings(epochs=25, learning_rate=3e-3, hidden=32, view="states"))
    attack.fit(lab)
    score = AttributeScore(labels)
    score.add(attack.attack(lab.victim.observe(records).seen))
    assert score.figures()["accuracy"].value > score.figures()["accuracy"].floor + 0.2
    with pytest.raises(InvalidInput, match="model above the cut"):
        attack.fit(Lab(lab.public, lab.victim))


def test_nothing_is_found_where_there_is_nothing(world):
    lab, records, _ = world
    rng = np.random.default_rng(3)
    public = PublicText(lab.public.records, lab.public.special_ids, labels=rng.integers(2, size=300))
    attack = PooledAttribute("adaptive", SETTINGS)
    attack.fit(Lab(public, lab.victim))
    score = AttributeScore(rng.integers(2, size=len(records)))
    score.add(attack.attack(lab.victim.observe(records).seen))
    assert abs(score.figures()["auc"].value - 0.5) < 0.2


def test_saved_and_loaded_it_scores_alike(world, tmp_path):
    lab, records, _ = world
    seen = lab.victim.observe(records).seen
    for attack in attacks("adaptive", lab):
        attack.settings = AttributeSettings(epochs=1, hidden=8)
        attack.fit(lab)
        attack.save(tmp_path / attack.name)
        before = attack.attack(seen)
        attack.load(tmp_path / attack.name, lab)
        assert torch.equal(before, attack.attack(seen))


def test_scores_by_hand():
    score = AttributeScore(np.array([0, 0, 0, 1]))
    score.add(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]))
    figures = score.figures()
    assert figures["accuracy"].value == 0.5
    assert figures["accuracy"].floor == 0.75
    assert figures["auc"].value == pytest.approx(2 / 3)  # the positive is above two of three negatives
    assert figures["macro_f1"].value == pytest.approx((2 * 2 / 6 + 0) / 2)
