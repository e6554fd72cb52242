"""What a fine-tuning job is: one frozen, validated description that REST, CLI, device and cloud share.

`JobSpec` holds no private data: no text, no label names, no paths of the device. The cloud stores it as it is.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

Task = Literal["classification", "causal-lm"]
Labels = Literal["private", "shared"]
Codec = Literal["fp32", "bf16"]
Skip = Literal["none", "frozen", "tuned"]
Precision = Literal["auto", "fp32", "bf16"]

DEVICE_SCHEME = "device://"
# Beyond this a label is told truly in all but one of millions of records.
MAX_LABEL_EPSILON = 16.0
DataHandle = Annotated[str, StringConstraints(pattern=r"^device://[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TuningSpec(_Frozen):
    """How the top is trained."""

    method: Literal["lora", "full"] = Field("lora", description="LoRA through peft, or every weight of the top.")
    rank: int = Field(8, ge=1, le=512, description="LoRA rank.")
    alpha: float = Field(16.0, gt=0, description="LoRA alpha; updates are scaled by alpha / rank.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the LoRA branch.")
    targets: tuple[str, ...] = Field(
        (), description="Names of the linear layers that get LoRA; empty: every linear layer of each block."
    )
    gradient_checkpointing: bool = Field(
        False, description="The cloud computes each block twice and keeps only its input: less memory, a third slower."
    )


class OptimSpec(_Frozen):
    """AdamW and its schedule. The same settings drive the top (cloud) and the head (device)."""

    learning_rate: float = Field(5e-4, gt=0, le=1)
    head_learning_rate: float | None = Field(None, gt=0, le=1, description="For the head; None: learning_rate.")
    weight_decay: float = Field(0.0, ge=0, le=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(0.06, ge=0, le=1, description="Share of all steps spent warming up.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Gradient norm at which each side clips its own parameters; 0 turns clipping off."
    )


class TrainSpec(_Frozen):
    """Length and shape of the training."""

    epochs: int = Field(3, ge=1, le=1000)
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps; None: all epochs.")
    batch_size: int = Field(16, ge=1, le=4096, description="Records in a micro-batch.")
    accumulation: int = Field(1, ge=1, le=1024, description="Micro-batches in one optimiser step.")
    max_length: int = Field(128, ge=2, le=32768, description="Tokens a record; longer ones are cut and counted.")
    seed: int = Field(0, ge=0, lt=2**31, description="Data order, dropout and initial adapter; never the noise.")
    precision: Precision = Field(
        "auto",
        description="Of the cloud's compute; weights and optimiser stay fp32. auto: bf16 on a GPU that has it.",
    )
    in_flight: int = Field(2, ge=1, le=16, description="Micro-batches that may be under way at once.")
    checkpoint_every: int = Field(50, ge=1, description="Optimiser steps between checkpoints.")


class MechanismSpec(_Frozen):
    """Name and parameters of the noise mechanism; the device's registry validates the parameters."""

    name: str = Field("dchi", pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    params: dict[str, float | int | str | bool] = Field(default_factory=dict)


def _stored_skip(value: object) -> object:
    """Jobs that are stored from when a skip was yes or no stay readable."""
    return ("frozen" if value else "none") if isinstance(value, bool) else value


class JobSpec(_Frozen):
    """One fine-tuning job."""

    model: str = Field(min_length=1, max_length=512, description="A model that the cloud offers (`GET /v1/models`).")
    training_file: DataHandle = Field(description="`device://NAME`: a data set registered on the owner's device.")
    validation_file: DataHandle | None = None
    task: Task = "classification"
    cut: int = Field(1, ge=0, le=1024, description="Blocks that run on the device, after the embedding.")
    tail: int = Field(
        0,
        ge=0,
        le=1024,
        description="Last blocks that run and train on the device, on states that the cloud computes once a record: no "
        "gradient leaves the device. 0: the cloud trains every block above the cut.",
    )
    skip: Annotated[Skip, BeforeValidator(_stored_skip)] = Field(
        "frozen",
        description="With a tail: what goes past the cloud into it, by a map that is trained. frozen: the bottom's "
        "clean output; tuned: that of a copy of the bottom's blocks that is trained as well. It serves the task and "
        "tells the cloud nothing, but such a model can only be used here, not exported. none: nothing does.",
    )
    labels: Labels = Field("private", description="shared: labels go to the cloud (classification only).")
    label_epsilon: float | None = Field(
        None,
        gt=0,
        le=MAX_LABEL_EPSILON,
        description="Private labels train as one randomised draw a record, epsilon-private; None: gradients tell them.",
    )
    num_labels: int | None = Field(None, ge=2, le=100_000, description="Only for shared labels; else the device's.")
    suffix: str | None = Field(None, max_length=64)
    codec: Codec = Field("bf16", description="How vectors are encoded on the wire, after the noise.")
    mechanism: MechanismSpec = Field(default_factory=MechanismSpec)
    tuning: TuningSpec = Field(default_factory=TuningSpec)
    optim: OptimSpec = Field(default_factory=OptimSpec)
    train: TrainSpec = Field(default_factory=TrainSpec)

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> JobSpec:
        if self.label_epsilon is not None and self.task == "causal-lm":
            raise ValueError("label_epsilon is refused for causal-lm: its labels are the text, and can't be randomised")
        if self.label_epsilon is not None and self.labels == "shared":
            raise ValueError("label_epsilon is for private labels; with labels: shared the cloud gets them as they are")
        if self.tail:
            self._tail_keeps_everything_here()
        if self.labels == "shared":
            if self.task == "causal-lm":
                raise ValueError("labels: shared is refused for causal-lm: there the labels are the text itself")
            if self.num_labels is None:
                raise ValueError("labels: shared needs num_labels")
        return self

    def _tail_keeps_everything_here(self) -> None:
        if self.skip == "tuned" and self.cut == 0:
            raise ValueError("skip: tuned trains a copy of the blocks below the cut, and at cut 0 there are none")
        if self.labels == "shared":
            raise ValueError("labels: shared and a tail contradict each other: with a tail the loss is on the device")
        if self.label_epsilon is not None:
            raise ValueError("label_epsilon randomises labels against gradients, and with a tail none leaves: drop it")
        if self.tuning.gradient_checkpointing:
            raise ValueError("gradient_checkpointing is for the cloud's training, and with a tail it trains nothing")

    def fingerprint(self) -> str:
        """SHA-256 over the canonical JSON: both sides compare it at the handshake."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
