"""Whole jobs with the mechanisms that learn from the records or shorten them, and predictions afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from privtune.device.inference.predict import predict
from privtune.shared.errors import JobConflict
from tests.support.running import run

FAST = {"train": {"max_steps": 6, "checkpoint_every": 3}}


@pytest.mark.parametrize(
    ("mechanism", "row"),
    [
        ({"name": "privtune", "params": {"importance": "gain", "steps": 3}}, "fitted"),
        ({"name": "sap"}, "scale"),
        ({"name": "shared", "params": {"groups": "private", "cluster_size": 8, "group_size": 3}}, "cluster"),
        ({"name": "pool", "params": {"cluster_size": 8, "epsilon_cluster": 2.0}}, "randomised"),
        ({"name": "custext", "params": {"set_size": 6}}, "cluster"),
    ],
)
def test_a_job_trains_and_predicts(local_world, mechanism, row):
    job_id, result = run(local_world, local_world.spec(mechanism=mechanism, **FAST))
    assert result.steps == 6
    assert result.statement.row == row
    if mechanism["name"] == "shared":
        assert result.statement.fitted_epsilon == 1.0
    predictions = predict(job_id, ["w50 w51 w52 w53", "w1 w2 w3"], local_world.settings)
    assert {p.label for p in predictions} <= {"high", "low"}
    assert np.isfinite(list(predictions[0].probabilities.values())).all()


def test_a_resumed_job_whose_public_texts_changed_is_refused(local_world):
    mechanism = {"name": "shared", "params": {"cluster_size": 8}}
    job_id, _ = run(local_world, local_world.spec(mechanism=mechanism, **FAST))
    public = local_world.settings.home / "public"
    public.mkdir()
    (public / "texts.txt").write_text("w1 w2 w3\nw4 w5 w6 w7\n")
    with pytest.raises(JobConflict, match="released a second time"):
        predict(job_id, ["w1 w2"], local_world.settings)
