"""What the fields of a request may not say together, as JSON Schema, so that the document refuses what the code does.

The code is `convert.to_spec` and the validators of `JobSpec`; a test and the fuzzing of the API hold the two together.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_OLD, _NEW = "hyperparameters.", "method.supervised.hyperparameters."
_PLACES = (  # of one value
    (_OLD + "n_epochs", _NEW + "n_epochs", "privtune.train.epochs"),
    (_OLD + "batch_size", _NEW + "batch_size", "privtune.train.batch_size"),
    (_OLD + "learning_rate_multiplier", _NEW + "learning_rate_multiplier", "privtune.optim.learning_rate"),
    ("seed", "privtune.train.seed"),
)


def contradictions() -> Schema:
    """A schema that no request may fulfil."""
    twice = [
        _all(_given(first), _given(second))
        for places in _PLACES
        for number, first in enumerate(places)
        for second in places[number + 1 :]
    ]
    shared, decoder = _given("privtune.labels", {"const": "shared"}), _given("privtune.task", {"const": "causal-lm"})
    randomised, tail = _given("privtune.label_epsilon"), _given("privtune.tail", {"type": "integer", "minimum": 1})
    from_nothing = _given("privtune.cut", {"const": 0})
    tuned_from_nothing = (_given("privtune.skip", {"const": "tuned"}), from_nothing)
    taught = _given("privtune.taught", {"type": "string"})
    recomputed = _given("privtune.tuning.gradient_checkpointing", {"const": True})
    slopes = _given("privtune.zeroth_order.epsilon")
    coarse = _given("privtune.train.precision", {"const": "bf16"})
    found = [
        *twice,
        _all(randomised, decoder),
        _all(randomised, shared),
        _all(shared, decoder),
        _all(shared, {"not": _given("privtune.num_labels")}),
        _all(tail, shared),
        _all(tail, randomised),
        _all(tail, recomputed),
        _all(tail, *tuned_from_nothing),
        *(_all(slopes, other) for other in (decoder, tail, shared, randomised, recomputed, coarse)),
        _all(taught, {"not": tail}),
        _all(taught, {"not": from_nothing}, {"not": _given("privtune.skip", {"const": "tuned"})}),
        _all(taught, from_nothing, _given("privtune.skip", {"enum": ["none", "tuned"]})),
    ]
    return {"anyOf": found}


def _given(path: str, value: Schema | None = None) -> Schema:
    """Requests with this value at a dotted path; by default, any number."""
    head, _, rest = path.partition(".")
    inside = _given(rest, value) if rest else value or {"type": "number"}
    return {"type": "object", "properties": {head: inside}, "required": [head]}


def _all(*schemas: Schema) -> Schema:
    return {"allOf": list(schemas)}
