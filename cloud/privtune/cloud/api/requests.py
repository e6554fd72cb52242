"""What a client may send to create a job: OpenAI's fields, and `privtune` for the job's fields that OpenAI lacks.

The job's own fields, with their bounds and descriptions, are those of `JobSpec`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    Strict,
    StringConstraints,
    WithJsonSchema,
    create_model,
)

from privtune.cloud.api.contradictions import contradictions
from privtune.shared.job_spec import DATA_HANDLE, JobSpec, OptimSpec, TrainSpec
from privtune.shared.teaching_spec import TeachingSpec
from privtune.shared.validation import Typed, whole

# Fields of JobSpec that a request has at its top level, as in OpenAI's API; all others are under `privtune`.
TOP_LEVEL = ("model", "training_file", "validation_file", "suffix")
_JOB = JobSpec.model_fields
# Documented here, checked by the job's own field, whose message says what a device's data set is.
_DEVICE: dict[str, Any] = {"json_schema_extra": {"pattern": DATA_HANDLE}}


def _auto_is_none(value: Any) -> Any:
    return None if value == "auto" else value


def _auto_schema(number: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"const": "auto"}, number, {"type": "null"}]})


_TRAIN: dict[str, Any] = TrainSpec.model_json_schema()["properties"]
_BOUNDS = ("type", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_EPOCHS, _BATCH, _SEED = (
    {k: v for k, v in _TRAIN[n].items() if k in _BOUNDS} for n in ("epochs", "batch_size", "seed")
)
_MOST_RATE = 1 / OptimSpec().learning_rate  # 1 is the highest learning rate
Epochs = Annotated[int | None, BeforeValidator(_auto_is_none), _auto_schema(_EPOCHS)]
BatchSize = Annotated[int | None, BeforeValidator(_auto_is_none), _auto_schema(_BATCH)]
_LEAST = 1e-300  # a product with less could be zero
Multiplier = Annotated[
    Annotated[float, Field(ge=_LEAST, le=_MOST_RATE)] | None,
    BeforeValidator(_auto_is_none),
    _auto_schema({"type": "number", "minimum": _LEAST, "maximum": _MOST_RATE}),
]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]


class StrictRequest(BaseModel):
    """A part of a request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class LineRequest(StrictRequest, Typed):
    """How much to send and to get, to see how long that takes."""

    padding: str = Field("", description="Anything; it is dropped. A body is at most as large as the cloud reads.")
    answer: int = Field(0, ge=0, le=1 << 20, description="Bytes of padding in the answer.")


class Hyperparameters(StrictRequest, Typed):
    """OpenAI's three hyperparameters; "auto" takes PrivTune's default."""

    n_epochs: Epochs = Field(None, description="Same as `privtune.train.epochs`.")
    batch_size: BatchSize = Field(None, description="Same as `privtune.train.batch_size`.")
    learning_rate_multiplier: Multiplier = Field(
        None, description="Sets `privtune.optim.learning_rate` to this multiple of its default."
    )


class SupervisedMethod(StrictRequest):
    """Supervised fine-tuning."""

    hyperparameters: Hyperparameters | None = None


class Method(StrictRequest):
    """How to tune. Only `supervised` is supported."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedMethod | None = None


def _optional(name: str) -> Any:
    """Type and description of a field of the job that may be left out or null; both take its default."""
    field = _JOB[name]
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    if field.default_factory is not None:
        return kind | None, Field(default_factory=field.default_factory, description=field.description)
    return kind | None, Field(field.default, description=field.description)


class _TypedRequest(StrictRequest, Typed):
    pass


_options: dict[str, Any] = {name: _optional(name) for name in _JOB if name not in TOP_LEVEL}
_Options = create_model("_Options", __base__=_TypedRequest, **_options)


class PrivTuneOptions(_Options):
    """The job's fields that OpenAI's API lacks. All are optional; `openai`'s client sends them through `extra_body`."""


_EXAMPLE: dict[str, JsonValue] = {
    "model": "minilm",
    "training_file": "device://reviews",
    "suffix": "reviews",
    "seed": 7,
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 16}}},
    "privtune": {"task": "classification", "cut": 1, "surrogates": {"replace": "identifying"}},
}


class CreateJobRequest(StrictRequest):
    """A fine-tuning job on a data set that stays on its owner's device."""

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        title="CreateJobRequest",
        json_schema_extra={"examples": [_EXAMPLE], "not": cast(JsonValue, contradictions())},
    )

    model: str = Field(min_length=1, max_length=512, description=_JOB["model"].description)
    training_file: str = Field(max_length=200, description=_JOB["training_file"].description, **_DEVICE)
    validation_file: str | None = Field(
        None, max_length=200, description=_JOB["validation_file"].description, **_DEVICE
    )
    suffix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = Field(
        None, description=_JOB["suffix"].description
    )
    seed: Annotated[int, BeforeValidator(whole), Strict(), WithJsonSchema(_SEED)] | None = Field(
        None, description=f"{TrainSpec.model_fields['seed'].description} Same as `privtune.train.seed`."
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = Field(
        None, description="Up to 16 pairs of your own. The cloud can read them: put nothing private here."
    )
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(
        None, description="OpenAI's older place for `method.supervised.hyperparameters`."
    )
    integrations: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="None are supported.")
    privtune: PrivTuneOptions | None = None


_TEACHING: dict[str, JsonValue] = {"model": "minilm", "corpus": "reviews", "cut": 1, "tail": 1, "max_pieces": 50000}
_LABELLED_TEXT: JsonValue = {
    "properties": {"label_column": {"type": "string"}, "task": {"const": "causal-lm"}},
    "required": ["label_column", "task"],
}


class CreateTeachingRequest(TeachingSpec):
    """Blocks to be taught on public text. Nothing private belongs here."""

    model_config = ConfigDict(
        title="CreateTeachingRequest", json_schema_extra={"examples": [_TEACHING], "not": _LABELLED_TEXT}
    )
