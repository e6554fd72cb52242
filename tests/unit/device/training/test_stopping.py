"""Early stopping: the decisions are those of transformers, from the evaluations alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from privtune.device.training.stopping import best_step, has_ended, kept_line
from privtune.shared.job_spec import TrainSpec


def of_transformers(values, train):
    """Where transformers' callback stops, and the best evaluation so far."""
    callback, state, control = EarlyStoppingCallback(train.early_stopping), TrainerState(), TrainerControl()
    greater = train.best_by != "loss"
    arguments = SimpleNamespace(greater_is_better=greater, metric_for_best_model="eval_x")
    for number, value in enumerate(values, start=1):
        callback.on_evaluate(arguments, state, control, {"eval_x": value})
        if state.best_metric is None or (value > state.best_metric if greater else value < state.best_metric):
            state.best_metric, state.best_global_step = value, number
        if control.should_training_stop:
            break
    return number, state.best_global_step


@pytest.mark.parametrize("best_by", ["loss", "accuracy"])
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_it_stops_where_transformers_does_and_keeps_the_same_state(best_by, patience):
    train = TrainSpec(early_stopping=patience, best_by=best_by)
    rng = np.random.default_rng(patience)
    for _ in range(200):
        values = rng.integers(0, 6, 12).tolist()  # with many equal ones
        known: dict[int, dict[str, float]] = {}
        for number, value in enumerate(values, start=1):
            known[number] = {"loss": value, "accuracy": value}
            if has_ended(known, train):
                break
        assert (number, best_step(known, train)) == of_transformers(values, train)


def test_without_patience_it_never_stops():
    assert not has_ended({1: {"loss": 1.0}, 2: {"loss": 2.0}, 3: {"loss": 3.0}}, TrainSpec())


def test_what_is_not_a_number_is_never_the_best():
    known = {1: {"loss": float("nan")}, 2: {"loss": 2.0}}
    assert best_step(known, TrainSpec(early_stopping=1)) == 2
    assert kept_line(known, TrainSpec(early_stopping=1), 5) == (
        "stopped after step 2 of 5: keeps the state of step 2, the best by loss; 0 evaluations after it no better"
    )
    assert best_step({4: {"token_accuracy": 0.1}, 8: {"token_accuracy": 0.2}}, TrainSpec(best_by="accuracy")) == 8
