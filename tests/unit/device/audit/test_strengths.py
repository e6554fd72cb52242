import pytest

from privtune.device.audit.strengths import strengths
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import MechanismSpec


def values(name, knob, **params):
    return [one.params[knob] for one in strengths(MechanismSpec(name=name, params=params))]


def test_strengths_go_from_weaker_to_stronger_whatever_the_setting_is_called():
    assert values("dchi", "noise_ratio") == [1.5, 3.0, 12.0, 24.0]
    assert values("gaussian", "epsilon", epsilon=8.0) == [32.0, 16.0, 4.0, 2.0]
    assert values("dchi", "eta", eta=2.0) == [8.0, 4.0, 1.0, 0.5]
    assert values("shared", "cluster_size", cluster_size=40) == [10, 20, 80, 160]


def test_other_settings_stay_and_what_is_out_of_range_is_left_out():
    (first, *_) = strengths(MechanismSpec(name="dchi", params={"clip_ratio": 2.0}))
    assert first.params == {"clip_ratio": 2.0, "noise_ratio": 1.5}
    assert values("dchi", "noise_ratio", noise_ratio=9000.0) == [2250.0, 4500.0]


def test_a_mechanism_without_a_strength_is_refused():
    with pytest.raises(InvalidInput, match="needs a mechanism with a strength"):
        list(strengths(MechanismSpec(name="none")))
