"""What a client sends to create a job: OpenAI's fields, and under `privtune` what OpenAI's API lacks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints, WithJsonSchema

from privtune.shared.job_spec import Codec, Labels, MechanismSpec, OptimSpec, Skip, Task, TrainSpec, TuningSpec


def _auto_is_none(value: Any) -> Any:
    return None if value == "auto" else value


def _auto_schema(kind: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": kind}, {"type": "null"}]})


AutoInt = Annotated[int | None, BeforeValidator(_auto_is_none), _auto_schema("integer")]
AutoFloat = Annotated[float | None, BeforeValidator(_auto_is_none), _auto_schema("number")]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Hyperparameters(_Request):
    """OpenAI's three hyperparameters; "auto" takes PrivTune's default."""

    n_epochs: AutoInt = Field(None, description="Same as `privtune.train.epochs`.")
    batch_size: AutoInt = Field(None, description="Records in a micro-batch; same as `privtune.train.batch_size`.")
    learning_rate_multiplier: AutoFloat = Field(
        None, description="Multiplies the default learning rate into `privtune.optim.learning_rate`."
    )


class SupervisedMethod(_Request):
    """Supervised fine-tuning."""

    hyperparameters: Hyperparameters | None = None


class Method(_Request):
    """How to tune. Only `supervised` is supported."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedMethod | None = None


class PrivTuneOptions(_Request):
    """What OpenAI's API has no field for. Everything is optional; `openai`'s client sends it through `extra_body`."""

    task: Task | None = Field(None, description="Default: classification.")
    cut: int | None = Field(None, description="Blocks that run on the device, after the embedding. Default: 1.")
    tail: int | None = Field(
        None, description="Last blocks that run and train on the device: no gradient leaves it. Default: 0."
    )
    skip: Skip | None = Field(
        None,
        description="With a tail, what goes past the cloud into it, on the device: nothing, the clean vectors of the "
        "frozen bottom, or of a tuned copy of it. Default: frozen.",
    )
    labels: Labels | None = Field(None, description="private (default): labels and loss stay on the device.")
    label_epsilon: float | None = Field(
        None, description="The device trains with randomised labels, this private. Default: gradients tell them."
    )
    num_labels: int | None = Field(None, description="Only with `labels: shared`.")
    codec: Codec | None = Field(None, description="How vectors are encoded on the wire, after the noise.")
    mechanism: MechanismSpec | None = Field(None, description="The noise that the device is asked to add.")
    tuning: TuningSpec | None = None
    optim: OptimSpec | None = None
    train: TrainSpec | None = None


_EXAMPLE: dict[str, JsonValue] = {
    "model": "minilm",
    "training_file": "device://reviews",
    "suffix": "reviews",
    "seed": 7,
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 16}}},
    "privtune": {"task": "classification", "cut": 1, "mechanism": {"name": "dchi", "params": {"eta": 100}}},
}


class CreateJobRequest(_Request):
    """A fine-tuning job on a data set that stays on its owner's device."""

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), title="CreateJobRequest", json_schema_extra={"examples": [_EXAMPLE]}
    )

    model: str = Field(min_length=1, max_length=512, description="A model of `GET /v1/models`.")
    training_file: str = Field(
        max_length=200, description="`device://NAME`: a data set registered on the owner's device, never an upload."
    )
    validation_file: str | None = Field(None, max_length=200, description="`device://NAME`; optional.")
    suffix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = Field(
        None, description="Part of the tuned model's name."
    )
    seed: int | None = Field(None, description="Same as `privtune.train.seed`. It never seeds the noise.")
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = Field(
        None, description="Up to 16 pairs of your own. The cloud reads them: put nothing private there."
    )
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(
        None, description="OpenAI's older place for `method.supervised.hyperparameters`."
    )
    integrations: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="None are supported.")
    privtune: PrivTuneOptions | None = None
