"""The options of a job that is measured on this machine instead of sent: `privtune audit` and `privtune tune-noise`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import typer

from privtune.device.cli.job_flags import JobOptions
from privtune.device.client.job_options import build_spec
from privtune.device.protections.protection import protection
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import JobSpec

LEAST_TOKENS = 4  # fewer leave nothing to attack between the special tokens
Gain = Annotated[
    bool,
    typer.Option(
        "--gain",
        help="Also measure what the cloud adds: train this device's blocks alone on the same records, and compare "
        "(docs/cloud-gain.md).",
    ),
]


class PlannedJob(JobOptions):
    """What attacks on a job's releases depend on."""

    names: ClassVar[tuple[str, ...]] = (
        "task",
        "max_length",
        "mechanism",
        "cut",
        "tail",
        "skip",
        "surrogates",
        "surrogate_rank",
        "surrogate_language",
    )

    def spec(self, params: Mapping[str, Any], protect: str, model: str) -> JobSpec:
        """The job, whose model is the owner's own copy and has no name in a cloud. Raises InvalidInput, ModelNotFound.

        model: that copy.
        """
        blocks = None
        if protection(protect).half and "cut" not in self.given:
            from privtune.shared.modeling.load import count_blocks

            blocks = count_blocks(model, self["task"])
        spec = build_spec(self.given | {"model": "local"}, params, protect=protect, blocks=blocks)
        if spec.train.max_length < LEAST_TOKENS:
            raise InvalidInput(
                f"--max-length {spec.train.max_length}: should be greater than or equal to {LEAST_TOKENS}.",
                param="max_length",
            )
        return spec


class PlannedTraining(PlannedJob):
    """The same, where the planned job is also trained."""

    names = (*PlannedJob.names, "epochs")
