"""What pydantic found, in the words of every surface."""

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from privtune.shared.validation import first_problem


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: int = 8

    @field_validator("rank")
    @classmethod
    def _even(cls, value):
        if value % 2:
            raise ValueError("Rank must be even.")
        return value


class Document(BaseModel):
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("value", "kind", "sentence"),
    [
        ({"inner": {"rank": "x"}}, "int_parsing", "inner.rank: input should be a valid integer"),
        ({"inner": {"rank": 3}}, "value_error", "inner.rank: Rank must be even"),
        ({"inner": {"rnak": 3}}, "extra_forbidden", "inner.rnak: extra inputs are not permitted"),
        ([], "model_type", "fields by name are expected"),
        ({"inner": "x"}, "model_type", "inner: fields by name are expected"),
    ],
)
def test_the_first_problem_names_the_field_and_what_is_wrong(value, kind, sentence):
    with pytest.raises(ValidationError) as caught:
        Document.model_validate(value)
    problem = first_problem(caught.value.errors())
    assert problem.kind == kind
    assert problem.sentence.startswith(sentence)
    assert not problem.sentence.endswith(".")
