import pytest

from privtune.shared.job_spec import JobSpec, MechanismSpec, OptimSpec, TrainSpec, TuningSpec


@pytest.mark.parametrize("spec", [JobSpec, MechanismSpec, OptimSpec, TrainSpec, TuningSpec])
def test_every_field_has_a_description_for_the_help_and_the_reference(spec):
    for name, field in spec.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
