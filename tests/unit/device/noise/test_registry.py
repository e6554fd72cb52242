"""The registry: what it lists, what it refuses, and that listing stays light."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from privtune.device.noise.params import Params
from privtune.device.noise.registry import REGISTRY, check_job, listing, validate
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import JobSpec, MechanismSpec


def test_listing_is_complete_json() -> None:
    rows = json.loads(json.dumps(listing()))
    assert [row["name"] for row in rows][:3] == ["none", "dchi", "gaussian"]
    for row in rows:
        assert row["paper"]
        assert row["summary"]
        assert row["statement"]
        for parameter in row["params"].values():
            assert parameter["description"]
    ratio = next(row for row in rows if row["name"] == "dchi")["params"]["noise_ratio"]
    assert ratio["default"] == 6.0
    assert ratio["above"] == 0


@pytest.mark.parametrize("name", list(REGISTRY))
def test_classes_and_settings_agree(name: str) -> None:
    row = REGISTRY[name]
    assert row.load().name == name
    assert row.params.model_config["frozen"]
    assert issubclass(row.params, Params)


@pytest.mark.parametrize(
    ("mechanism", "fields", "words"),
    [
        ({"name": "pool"}, {"task": "causal-lm", "tail": 1}, "shortens records and can't serve causal-lm"),
        ({"name": "pool"}, {"tail": 1, "skip": "frozen"}, "use --skip none"),
        ({"name": "codes", "params": {"task": "private"}}, {"task": "causal-lm"}, "task=private needs records with"),
        ({"name": "shared", "params": {"groups": "both"}}, {"task": "causal-lm"}, "groups=both needs records with"),
        ({"name": "codes", "params": {"task_use": "hide"}}, {}, "needs to know what is hidden"),
    ],
)
def test_what_can_not_serve_a_job_is_refused_without_a_model(mechanism, fields, words) -> None:
    job = {"model": "m", "training_file": "device://texts", "mechanism": mechanism}
    with pytest.raises(InvalidInput, match=words):
        check_job(JobSpec.model_validate(job | fields))
    check_job(JobSpec.model_validate(job | {"mechanism": {"name": mechanism["name"]}}))


def test_defaults_are_valid() -> None:
    for name in REGISTRY:
        validate(MechanismSpec(name=name))


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "none"])
def test_every_mechanism_can_be_tuned_over_settings_that_it_takes(name: str) -> None:
    strength = REGISTRY[name].strength
    assert strength is not None
    assert strength.param in REGISTRY[name].params.model_fields
    assert len(strength.values) >= 3
    assert list(strength.values) in (sorted(strength.values), sorted(strength.values, reverse=True))
    for value in strength.values:
        validate(MechanismSpec(name=name, params={strength.param: value}))
    described = REGISTRY[name].describe()
    assert json.loads(json.dumps(described["strength"])) == {"param": strength.param, "values": list(strength.values)}


def test_clean_vectors_have_nothing_to_tune() -> None:
    assert REGISTRY["none"].strength is None


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("fog", {}, "there are: none, dchi, gaussian"),
        ("dchi", {"sigma": 1.0}, "no parameter 'sigma'; it has: injection"),
        ("dchi", {"noise_ratio": -1}, "noise_ratio"),
        ("dchi", {"noise_ratio": 1, "eta": 1}, "not both"),
        ("dchi", {"clip": 1, "clip_ratio": 1}, "not both"),
        ("dchi", {"injection": "middle"}, "injection"),
        ("dchi", {"eta": float("nan")}, "eta"),
        ("dchi", {"eta": float("inf")}, "eta"),
        ("gaussian", {"clip_ratio": 0}, "can't be 0"),
        ("gaussian", {"delta": 1.5}, "delta"),
        ("none", {"x": 1}, "it has no parameters"),
    ],
)
def test_bad_settings_are_named(name: str, params: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        validate(MechanismSpec(name=name, params=params))


def test_listing_does_not_load_torch() -> None:
    code = "import sys; from privtune.device.noise.registry import listing; listing(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
