"""A teaching: the cloud distils its whole model into a device's own blocks, on public text and nothing else.

The fields' descriptions, defaults and bounds are the only source of the REST reference and the command lines' help.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import Described, Precision, Task
from privtune.shared.validation import first_problem


class TeachingSpec(Described):
    """Which blocks are taught, on which text, and how."""

    model: str = Field(
        min_length=1, max_length=512, description="The model that teaches, by its name in the cloud's list."
    )
    corpus: str = Field(
        min_length=1,
        max_length=512,
        description="Public text, by its name in the cloud's list (`GET /v1/privtune/corpora`), or a file of a hub "
        "data set as OWNER/NAME::FILE where the operator allows the hub.",
    )
    task: Task = Field("classification", description="Task of the jobs that use the taught blocks.")
    cut: int = Field(1, ge=0, le=1024, description="Number of first blocks on the device.")
    tail: int = Field(1, ge=1, le=1024, description="Number of last blocks on the device.")
    text_column: str | None = Field(
        None, max_length=200, description="Column of the corpus with the text. By default it is found by the header."
    )
    label_column: str | None = Field(
        None,
        max_length=200,
        description="Column with a public label. With one, the model is tuned on the labels first, and teaches what it "
        "then predicts as well (classification only).",
    )
    max_pieces: int = Field(
        50_000,
        ge=64,
        le=10_000_000,
        description="At most this many pieces of text, drawn at random. A text longer than max_length is cut into "
        "pieces, at sentence ends where it has any.",
    )
    max_length: int = Field(
        32,
        ge=8,
        le=8192,
        description="Most tokens of a piece. Best about the length of the records that the blocks are for.",
    )
    epochs: int = Field(1, ge=1, le=100, description="Passes over the pieces.")
    batch_size: int = Field(32, ge=1, le=4096, description="Pieces per step.")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak learning rate of AdamW for the taught blocks.")
    relations: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Weight of the attention relations of the last block (queries with queries, keys with keys, values "
        "with values), beside the final states, whose weight is 1.",
    )
    soft_labels: float = Field(
        1.0, ge=0, le=100, description="Weight of what the tuned model predicts. Only with a label column."
    )
    hard_labels: float = Field(
        1.0, ge=0, le=100, description="Weight of the labels themselves. Only with a label column."
    )
    tuned_pieces: int = Field(
        6_000, ge=64, le=10_000_000, description="Labelled pieces that the model is tuned on before it teaches."
    )
    tuned_blocks: int = Field(
        4, ge=1, le=1024, description="Last blocks of the model that are tuned on the labels before it teaches."
    )
    tuning_rate: float = Field(5e-5, gt=0, le=1, description="Peak learning rate of tuning on the labels.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the pieces drawn, their order and initial weights.")
    precision: Precision = Field("auto", description="auto: bf16 where the processor is made for it, else fp32.")
    checkpoint_every: int = Field(100, ge=1, le=100_000, description="Steps between checkpoints.")

    @model_validator(mode="after")
    def _labels_are_classes(self) -> TeachingSpec:
        if self.label_column is not None and self.task == "causal-lm":
            raise ValueError("label_column is refused for causal-lm: a language model's labels are its text")
        return self

    def result_key(self, base_sha256: str, corpus_sha256: str) -> str:
        """Names the result: weights, text, blocks and settings, but for how often it is checkpointed."""
        unnamed = self.model_copy(update={"model": base_sha256, "corpus": corpus_sha256, "checkpoint_every": 1})
        return hashlib.sha256(unnamed.model_dump_json().encode()).hexdigest()


_NAMED = ("model", "corpus", "task", "cut", "tail", "text_column", "label_column")  # by options of commands
SETTINGS = tuple(name for name in TeachingSpec.model_fields if name not in _NAMED)
ABOUT_SETTINGS = (  # the option --set, on either side
    f"Any other setting as NAME=VALUE, repeatable: {', '.join(SETTINGS)}. `POST /v1/privtune/teachings` describes them."
)


def teaching_of(options: Mapping[str, Any], settings: Iterable[str]) -> TeachingSpec:
    """A teaching as a command line describes it.

    Args:
        options: fields by name; None takes the field's default.
        settings: any of `SETTINGS` as NAME=VALUE.

    Raises InvalidInput that names the field.
    """
    fields = {name: value for name, value in options.items() if value is not None}
    for pair in settings:
        name, equals, value = pair.partition("=")
        if not equals or name not in SETTINGS:
            raise InvalidInput(f"--set {pair!r} is not NAME=VALUE of one of {', '.join(SETTINGS)}.", param="set")
        fields[name] = value
    try:
        return TeachingSpec.model_validate(fields, strict=False)
    except ValidationError as error:
        raise InvalidInput(f"{first_problem(error.errors()).sentence}.") from None
