"""A tiny real model and the laboratory of an attacker."""

from __future__ import annotations

import pytest

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.victim import Victim
from privtune.device.noise.params import NoneParams
from privtune.device.noise.registry import build
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.modeling.partition import Partition
from tests.support.noise_contexts import model_context
from tests.support.texts import token_rows
from tests.support.tiny_models import tiny_classifier


@pytest.fixture(scope="session")
def partition():
    return Partition(tiny_classifier("bert"))


@pytest.fixture(scope="session")
def make_lab(partition):
    """make_lab(mechanism, params, cut=1, records=200) -> Lab; kind: a class in place of a registered mechanism"""

    def make(name="none", params=None, cut=1, records=200, kind=None):
        bottom = partition.bottom(cut)
        context = model_context(bottom, cut=cut)
        spec = MechanismSpec(name=name, params=params or {})
        mechanism = kind(NoneParams(), context) if kind else build(spec, context)
        public = PublicText(token_rows(records, seed=0), context.special_ids, candidates=context.usable_ids)
        return Lab(public, Victim(bottom, mechanism, context.special_ids), partition.top(cut))

    return make


@pytest.fixture(scope="session")
def attacked():
    return token_rows(60, seed=1)
