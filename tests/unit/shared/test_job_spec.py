import pytest

from privtune.shared.job_spec import JobSpec, MechanismSpec, OptimSpec, TrainSpec, TuningSpec
from privtune.shared.teaching_spec import TeachingSpec


@pytest.mark.parametrize("spec", [JobSpec, MechanismSpec, OptimSpec, TrainSpec, TuningSpec, TeachingSpec])
def test_every_field_has_a_description_for_the_help_and_the_reference(spec):
    for name, field in spec.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"task": "causal-lm"}, "for classification"),
        ({"tail": 1}, "a tail freezes them"),
        ({"labels": "shared", "num_labels": 2}, "keeps labels and losses"),
        ({"label_epsilon": 1.0}, "against gradients"),
        ({"tuning": {"gradient_checkpointing": True}}, "there are none"),
        ({"train": {"precision": "bf16"}}, "too coarse"),
    ],
)
def test_slopes_are_refused_where_they_make_no_sense(other, words):
    asked = {"model": "m", "training_file": "device://a", "zeroth_order": {"epsilon": 1.0}}
    assert not JobSpec.model_validate(asked).gradients_leave
    with pytest.raises(ValueError, match=words):
        JobSpec.model_validate(asked | other)


@pytest.mark.parametrize("fields", [{"tuning": {"targets": ["\ud83d"]}}, {"mechanism": {"params": {"\udc00": 1}}}])
def test_half_of_a_character_is_in_no_job(fields):
    with pytest.raises(ValueError, match=r"half of a character \(U\+D"):
        JobSpec.model_validate({"model": "m", "training_file": "device://a"} | fields)


@pytest.mark.parametrize("field", ["model", "corpus", "text_column", "label_column"])
def test_half_of_a_character_is_in_no_teaching(field):
    with pytest.raises(ValueError, match=rf"{field}\n.*unicode string"):
        TeachingSpec.model_validate({"model": "m", "corpus": "c", field: "\ud83d"})
