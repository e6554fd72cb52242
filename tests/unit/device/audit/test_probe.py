"""The estimate of use before a job: from the cloud's states, and with a skip from the clean vectors as well."""

import pytest

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.attribute import AttributeSettings
from privtune.device.audit.probe import use_for_training
from privtune.shared.errors import InvalidInput
from tests.support.texts import half_labels, token_rows

SETTINGS = AttributeSettings(epochs=25, learning_rate=3e-3, hidden=32)


def labelled(count, seed):
    rows = token_rows(count, seed)
    return rows, half_labels(rows)


def test_a_skip_makes_use_of_what_a_mute_cloud_can_not(make_lab):
    texts, labels = labelled(300, 3)
    records, truth = labelled(150, 4)
    majority = max(truth.mean(), 1 - truth.mean())

    def use(lab, *, skip):
        lab = Lab(PublicText(texts, lab.public.special_ids, labels=labels), lab.victim, lab.encoder)
        return use_for_training(lab, SETTINGS, records, lab.victim.observe(records).seen, truth, skip=skip).value

    mute = make_lab("codes", {"codes": 2, "dims": 1})
    assert use(mute, skip=False) < majority + 0.05
    assert use(mute, skip=True) > majority + 0.15
    assert use(make_lab(), skip=False) > majority + 0.08


def test_it_needs_labels(make_lab):
    lab = make_lab()
    records, truth = labelled(10, 4)
    with pytest.raises(InvalidInput, match="labelled"):
        use_for_training(lab, SETTINGS, records, lab.victim.observe(records).seen, truth, skip=True)
