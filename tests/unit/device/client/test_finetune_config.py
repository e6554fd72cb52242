"""Options by name: what help shows is the job's own description."""

import inspect

import pytest

from privtune.device import FineTuneConfig
from privtune.device.client.finetune_config import NAMES
from privtune.device.client.job_options import JOB_OPTIONS, field_at, help_of
from privtune.shared.errors import InvalidInput


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described_and_completed(name):
    assert f"{name}: {help_of(field_at(JOB_OPTIONS[name].path))}" in FineTuneConfig.__doc__
    assert name in inspect.signature(FineTuneConfig).parameters


def test_options_are_set_changed_and_taken_back():
    config = FineTuneConfig(epochs=2, cut=None, params={"codes": 16})
    assert (dict(config.given), dict(config.params)) == ({"epochs": 2}, {"codes": 16})
    other = config.but(epochs=None, seed=1, params={"levels": 2})
    assert other == FineTuneConfig(seed=1, params={"codes": 16, "levels": 2})
    assert repr(other) == "FineTuneConfig(seed=1, params={'codes': 16, 'levels': 2})"
    with pytest.raises(AttributeError):
        config.given = {}


@pytest.mark.parametrize(
    ("name", "words"), [("epoch", "did you mean epochs"), ("model", "an argument of its own"), ("zzz", "help")]
)
def test_an_unknown_option_is_named(name, words):
    with pytest.raises(InvalidInput, match=f"There is no option {name}; .*{words}"):
        FineTuneConfig(**{name: 1})
