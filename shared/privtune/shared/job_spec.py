"""A fine-tuning job: one frozen, validated description that REST, command line, device and cloud share.

The fields' descriptions, defaults and bounds are the only source of the REST reference and the command line's help.
The defaults are those of the protection `names`: what identifies is replaced, and the cloud trains on the rest.
`JobSpec` holds no private data: no text, no label names, no paths of the device. The cloud stores it as it is.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from privtune.shared.validation import Strict, Typed, half_character

Task = Literal["classification", "causal-lm"]
Labels = Literal["private", "shared"]
Codec = Literal["fp32", "bf16"]
Skip = Literal["none", "frozen", "tuned"]
Precision = Literal["auto", "fp32", "bf16"]

DEVICE_SCHEME = "device://"
MAX_LABEL_EPSILON = 16.0  # beyond it, fewer than one binary label in eight million is flipped
DATA_HANDLE = r"^device://[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
TEACHING_ID = r"^teach-[0-9a-f]{24}$"
DataHandle = Annotated[str, StringConstraints(pattern=DATA_HANDLE)]


class Described(Strict, Typed):
    """A part of a job's description."""


class TuningSpec(Described):
    """What is trained in the blocks: the cloud's, or with a tail the device's last ones."""

    method: Literal["lora", "full"] = Field(
        "lora", description="lora: low-rank adapters on linear layers. full: every weight of the trained blocks."
    )
    rank: int = Field(8, ge=1, le=512, description="Rank of the LoRA adapters.")
    alpha: float = Field(16.0, gt=0, description="Scale of the LoRA adapters: updates are multiplied by alpha / rank.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout rate on the input of the LoRA adapters.")
    targets: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Names of the linear layers that get LoRA adapters. By default, every linear layer of the trained "
        "blocks.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Keep only each block's input in the cloud and recompute the rest for the backward pass: less "
        "memory, about a third slower.",
    )


class OptimSpec(Described):
    """AdamW and its schedule. The same settings drive the blocks that are trained and the head."""

    learning_rate: float = Field(5e-4, gt=0, le=1, description="Peak learning rate of AdamW.")
    head_learning_rate: float | None = Field(
        None, gt=0, le=1, description="Peak learning rate of the head. By default, the same as learning_rate."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay of AdamW.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Learning rate after warm-up: decays to zero along a line or a cosine, or stays constant."
    )
    warmup_ratio: float = Field(
        0.06, ge=0, le=1, description="Fraction of all steps over which the learning rate rises linearly from zero."
    )
    max_grad_norm: float = Field(
        1.0,
        ge=0,
        description="L2 norm to which device and cloud each clip their own gradients. 0 turns clipping off.",
    )


DEFAULT_LENGTH = 128


class TrainSpec(Described):
    """Length and shape of the training."""

    epochs: int = Field(3, ge=1, le=1000, description="Passes over the training data.")
    max_steps: int | None = Field(
        None, ge=1, description="Stop after this many optimiser steps. By default, all epochs are trained."
    )
    batch_size: int = Field(16, ge=1, le=4096, description="Records per micro-batch.")
    accumulation: int = Field(1, ge=1, le=1024, description="Micro-batches per optimiser step.")
    max_length: int = Field(
        DEFAULT_LENGTH,
        ge=2,
        le=32768,
        description="Maximum tokens per record. Longer records are truncated, and counted. The default becomes the "
        "model's own limit where that is less.",
    )
    pad_to: tuple[int, ...] = Field(
        (),
        strict=False,
        max_length=16,
        examples=[[32, 64]],
        description="Lengths in tokens that records are padded to with random words, each record to the first that "
        "holds it, and max_length after these: the cloud sees which of them a record has, and no other length. "
        "max_length alone: all look alike. By default, every length is visible.",
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of data order, dropout and initial weights. It never seeds the noise."
    )
    precision: Precision = Field(
        "auto",
        description="Compute precision in the cloud; weights and optimiser state stay fp32. auto: bf16 on a GPU that "
        "supports it, else fp32.",
    )
    in_flight: int = Field(
        2, ge=1, le=16, description="Micro-batches that the device sends ahead before it waits for an answer."
    )
    checkpoint_every: int = Field(50, ge=1, description="Optimiser steps between checkpoints.")
    evaluate_every: int | None = Field(
        None, ge=1, description="Optimiser steps between evaluations on held-out records. By default, once an epoch."
    )
    early_stopping: int | None = Field(
        None,
        ge=1,
        le=20,
        description="Stop after this many evaluations without a better one, and keep the state of the best. The device "
        "evaluates and decides; the cloud learns at the end which state is kept. By default, all steps are trained and "
        "the last state is kept.",
    )
    best_by: Literal["loss", "accuracy", "macro_f1"] = Field(
        "loss",
        description="With early_stopping: what says which evaluation is better (accuracy: of tokens for causal-lm).",
    )

    def longest(self, positions: int | None) -> int:
        """`max_length` for a model of this many positions; None: no limit. Above them only if asked for."""
        if positions is None or self.max_length != DEFAULT_LENGTH:
            return self.max_length
        return min(self.max_length, positions)

    @property
    def candidates(self) -> int:
        """Checkpoints of evaluations that both sides keep, since the best of them may become the model."""
        return 0 if self.early_stopping is None else self.early_stopping + 1

    def padded(self, positions: int | None) -> tuple[int, ...]:
        """The lengths that records are padded to, ascending; none: records keep their own."""
        longest = self.longest(positions)
        return tuple(sorted({longest, *(min(length, longest) for length in self.pad_to)})) if self.pad_to else ()

    @field_validator("pad_to")
    @classmethod
    def _within_the_limit(cls, lengths: tuple[int, ...], given: ValidationInfo) -> tuple[int, ...]:
        longest = given.data.get("max_length", DEFAULT_LENGTH)
        for length in lengths:
            if not 2 <= length <= longest:
                raise ValueError(f"{length} is not a length from 2 to max_length, {longest}")
        return lengths


class MechanismSpec(Described):
    """Name and parameters of the noise mechanism; the device's registry validates the parameters."""

    name: str = Field(
        "none",
        pattern=r"^[a-z][a-z0-9_-]{0,31}$",
        examples=["dchi", "codes"],
        description="Mechanism that perturbs every vector before it leaves the device; `privtune mechanisms` lists "
        "them. none: clean vectors, from which every word can be read that is not replaced.",
    )
    params: dict[str, float | int | str | bool] = Field(
        default_factory=dict,
        description="Parameters of the mechanism by name. Those left out take the mechanism's defaults.",
    )


class SurrogateSpec(Described):
    """What is replaced in a text before the bottom reads it, and restored on the device in what the model writes."""

    replace: Literal["nothing", "identifying"] = Field(
        "identifying",
        description="identifying: names, places, organisations, numbers, dates, addresses and rare words are replaced "
        "by random surrogates before the model reads a text; all other words leave as they are. nothing: no word is "
        "replaced.",
    )
    rank: int = Field(
        200_000,
        ge=1_000,
        le=300_000,
        description="Words beyond this rank of frequency in public text are replaced too; those of no dictionary, "
        "which may be names, sooner (10,000; 20,000 in languages other than English).",
    )
    language: str = Field(
        "en",
        pattern=r"^[a-z]{2,3}$",
        examples=["en", "de"],
        description="Language of the texts (ISO 639): chooses the word frequencies, and the recognisers where there "
        "are any; without them, rules and word frequencies decide.",
    )

    @property
    def on(self) -> bool:
        """Whether anything is replaced."""
        return self.replace != "nothing"


class ZerothOrderSpec(Described):
    """Training in the cloud without any gradient of the records: the device answers each step with one noised number.

    DP-ZO (arXiv 2401.04343): the cloud moves its parameters forwards and backwards along a public random direction, and
    learns how the loss changes.
    """

    epsilon: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Train the cloud's blocks by slopes: the device returns no gradient, but one number a step, the "
        "noised mean slope of its records' losses along a public direction. All numbers together reveal at most this "
        "epsilon of each record and its label, besides its released vectors. By default, gradients train.",
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="Delta of that epsilon.")
    clip: float = Field(
        1.0, gt=0, le=1e6, description="Largest slope of a record's loss that counts; larger ones are cut to it."
    )
    scale: float = Field(
        1e-2, gt=0, le=1, description="How far the parameters are moved either way along a standard normal direction."
    )
    support: Literal["whole", "rectified", "truncated"] = Field(
        "whole",
        description="Which noised sums of slopes there are. whole: all. rectified: one outside a public box moves to "
        "its edge. truncated: the noise is drawn so that the sum falls into the box. All have one worst case.",
    )
    support_ratio: float = Field(
        3.0, gt=0, le=1000, description="Half the width of that box, in standard deviations of the noise."
    )

    @property
    def on(self) -> bool:
        """Whether the job trains by slopes."""
        return self.epsilon is not None


class JobSpec(Described):
    """One fine-tuning job."""

    model: str = Field(
        min_length=1, max_length=512, description="Base model, by its name in the cloud's list (`GET /v1/models`)."
    )
    training_file: DataHandle = Field(
        description="Training data, as `device://NAME`: a data set registered on its owner's device, never an upload."
    )
    validation_file: DataHandle | None = Field(
        None, description="Held-out data to evaluate on, as `device://NAME`. By default there is none."
    )
    task: Task = Field(
        "classification", description="classification: a label per record. causal-lm: next-token prediction."
    )
    cut: int = Field(
        1,
        ge=0,
        le=1024,
        description="Number of blocks that run on the device, after the embedding; their output is perturbed and sent. "
        "0: the embedding alone.",
    )
    tail: int = Field(
        0,
        ge=0,
        le=1024,
        description="Number of last blocks that run and train on the device, on states that the cloud computes once "
        "per record: no gradient leaves the device. 0: the cloud trains every block above the cut.",
    )
    skip: Skip = Field(
        "frozen",
        description="With a tail: skip connection, through a trained map, from the device's clean vectors into the "
        "tail. frozen: the vectors of the frozen bottom; tuned: those of a copy of it that is trained too; none: no "
        "connection. It helps the task and reveals nothing to the cloud, but only a model with none can be exported.",
    )
    taught: str | None = Field(
        None,
        pattern=TEACHING_ID,
        examples=["teach-5f0f6c2e9d7a4b1c8e3d2a10"],
        description="Begin with the blocks of this teaching (`POST /v1/privtune/teachings`; on the command line "
        "`auto` is the newest that fits, the name of a corpus the newest with that text): those of the tail and of a "
        "tuned skip. What leaves is made by the untaught blocks, as without.",
    )
    labels: Labels = Field(
        "private",
        description="private: labels and loss stay on the device. shared: labels go to the cloud, which computes the "
        "loss (classification only).",
    )
    label_epsilon: float | None = Field(
        None,
        gt=0,
        le=MAX_LABEL_EPSILON,
        description="Train on private labels randomised once per record, so that gradients reveal at most this many "
        "nats of each. By default, labels are not randomised and gradients reveal them.",
    )
    num_labels: int | None = Field(
        None, ge=2, le=100_000, description="Number of classes. Needed for shared labels; else the device counts them."
    )
    suffix: str | None = Field(None, max_length=64, description="Becomes part of the tuned model's name.")
    codec: Codec = Field(
        "bf16", description="Encoding of vectors on the wire, after the noise: 2 (bf16) or 4 (fp32) bytes per element."
    )
    states: Literal["codec", "int8"] = Field(
        "codec",
        description="With a tail: encoding of the states that the cloud sends back. codec: as vectors are. int8: 1 "
        "byte per element, rounded to 127ths of the row's largest.",
    )
    mechanism: MechanismSpec = Field(
        default_factory=MechanismSpec, strict=False, description="Noise that the device adds."
    )
    surrogates: SurrogateSpec = Field(
        default_factory=SurrogateSpec,
        strict=False,
        description="Replacing what identifies, before the model reads a text.",
    )
    tuning: TuningSpec = Field(default_factory=TuningSpec, strict=False, description="What is trained in the blocks.")
    optim: OptimSpec = Field(default_factory=OptimSpec, strict=False, description="AdamW and its schedule.")
    train: TrainSpec = Field(default_factory=TrainSpec, strict=False, description="Length and shape of the training.")
    zeroth_order: ZerothOrderSpec = Field(
        default_factory=ZerothOrderSpec, strict=False, description="Training without gradients."
    )

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> JobSpec:
        if self.label_epsilon is not None and self.task == "causal-lm":
            raise ValueError("label_epsilon is refused for causal-lm: its labels are the text, and can't be randomised")
        if self.label_epsilon is not None and self.labels == "shared":
            raise ValueError("label_epsilon is for private labels; with labels: shared the cloud gets them as they are")
        if self.taught is not None and (not self.tail or self.skip != ("tuned" if self.cut else "frozen")):
            raise ValueError(
                "taught: the taught blocks are those of a tail and of the skip past the cloud, so it needs a tail, and "
                "skip: tuned (at cut 0: frozen)"
            )
        if self.tail:
            self._tail_keeps_everything_here()
        if self.zeroth_order.on:
            self._slopes_train_the_cloud()
        if self.train.early_stopping is not None and self.validation_file is None:
            raise ValueError("early_stopping needs held-out records to evaluate on")
        if self.train.best_by == "macro_f1" and self.task == "causal-lm":
            raise ValueError("best_by: macro_f1 is of classes; a language model has loss and accuracy")
        if self.train.pad_to and self.task == "causal-lm" and not self.tail:
            raise ValueError(
                "pad_to hides nothing of a language model that trains in the cloud, whose gradients show where each "
                "text ends: it needs a tail"
            )
        if self.labels == "shared":
            if self.task == "causal-lm":
                raise ValueError("labels: shared is refused for causal-lm: there the labels are the text itself")
            if self.num_labels is None:
                raise ValueError("labels: shared needs num_labels")
        return self

    @model_validator(mode="after")
    def _only_whole_characters(self) -> JobSpec:
        """Refuse half of a character, which pydantic lets into lists and unions, and no JSON can be written with."""
        if (problem := half_character(json.dumps(self.model_dump(), ensure_ascii=False))) is not None:
            raise ValueError(f"the job has {problem.partition(',')[0]}); write the character whole")
        return self

    def _tail_keeps_everything_here(self) -> None:
        if self.skip == "tuned" and self.cut == 0:
            raise ValueError("skip: tuned trains a copy of the blocks below the cut, and at cut 0 there are none")
        if self.labels == "shared":
            raise ValueError("labels: shared and a tail contradict each other: with a tail the loss is on the device")
        if self.label_epsilon is not None:
            raise ValueError("label_epsilon randomises labels against gradients, and with a tail none leaves: drop it")
        if self.tuning.gradient_checkpointing:
            raise ValueError("gradient_checkpointing is for training in the cloud; with a tail it trains nothing")

    def _slopes_train_the_cloud(self) -> None:
        if self.task == "causal-lm":
            raise ValueError("zeroth_order is for classification: a language model's loss has a term for each token")
        if self.tail:
            raise ValueError("zeroth_order trains the cloud's blocks, and a tail freezes them: drop one")
        if self.labels == "shared":
            raise ValueError("zeroth_order keeps labels and losses on the device; labels: shared sends them away")
        if self.label_epsilon is not None:
            raise ValueError("label_epsilon randomises labels against gradients, and with zeroth_order none leaves")
        if self.tuning.gradient_checkpointing:
            raise ValueError("gradient_checkpointing is for gradients, and with zeroth_order there are none")
        if self.train.precision == "bf16":
            raise ValueError("precision: bf16 is too coarse for zeroth_order, which computes in fp32")

    @property
    def gradients_leave(self) -> bool:
        """Whether training sends gradients, which reveal labels."""
        return not self.tail and not self.zeroth_order.on

    @property
    def output_codec(self) -> str:
        """Encoding of what the cloud sends back."""
        return self.states if self.tail and self.states != "codec" else self.codec

    def fingerprint(self) -> str:
        """SHA-256 over the canonical JSON: both sides compare it at the handshake."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
