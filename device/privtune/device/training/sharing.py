"""What an owner lets the cloud know of a job beside what trains it: figures and sentences for the cloud's dashboard.

Off by default. A loss tells of labels and texts, and nothing bounds what it tells. Each call is in the transcript.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from privtune.device.home.policy import Policy
from privtune.device.link.rpc import Link
from privtune.device.training.progress import EvalInfo, StartInfo, StepInfo, TrainingProgress
from privtune.shared.errors import InvalidInput, PolicyRefused, PrivTuneError
from privtune.shared.job_spec import JobSpec
from privtune.split.v1 import split_pb2 as pb

EVERY_S = 2.0  # between losses
MAX_SAID = 2000  # characters that the cloud takes of a statement or verdict


def check_sharing(spec: JobSpec, policy: Policy | None) -> None:
    """Raises InvalidInput for a job with a bound that a shared loss would break, PolicyRefused by the policy."""
    if policy is not None and not policy.share_figures:
        raise PolicyRefused(
            "The device's policy keeps a job's loss and figures here: drop --share-figures, or set share_figures: true "
            "in it."
        )
    if spec.zeroth_order.on:
        raise InvalidInput(
            "A zeroth-order job bounds all that the cloud learns of a record's label by its slopes, and a shared loss "
            "is not covered by that: drop --share-figures (policy: share_figures).",
            param="share_figures",
        )


class Sharing(TrainingProgress):
    """Passes on what a run reports, and shares it. A cloud that does not take it is told nothing more.

    progress: who watches here.
    clock: seconds, monotonic.
    """

    def __init__(self, progress: TrainingProgress, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._link, self._clock = progress, link, clock
        self._session = pb.ShareRequest()
        self._due: float | None = 0.0  # when the next loss is; None: the cloud takes none

    def started(self, info: StartInfo) -> None:
        """Share what is claimed and what the audit found."""
        self._progress.started(info)
        self._session = pb.ShareRequest(job_id=info.job_id, session_epoch=info.session_epoch)
        claims = [info.statement.text] + (info.label_statement.lines() if info.label_statement is not None else [])
        statement = " ".join(claims)[:MAX_SAID]
        self._share(pb.ShareRequest(step=info.start_step, statement=statement, verdict=info.verdict[:MAX_SAID]))

    def step(self, info: StepInfo) -> None:
        """Share the loss, if it is time."""
        self._progress.step(info)
        if self._due is not None and (self._clock() >= self._due or info.step == info.total_steps):
            self._due = self._clock() + EVERY_S
            self._share(pb.ShareRequest(step=info.step, loss=info.loss))

    def evaluated(self, info: EvalInfo) -> None:
        """Share the figures on held-out records."""
        self._progress.evaluated(info)
        accuracy = info.metrics.get("accuracy", info.metrics.get("token_accuracy"))
        self._share(pb.ShareRequest(step=info.step, held_out_loss=info.metrics.get("loss"), accuracy=accuracy))

    def message(self, text: str) -> None:
        """Nothing is shared."""
        self._progress.message(text)

    def _share(self, request: pb.ShareRequest) -> None:
        if self._due is None:
            return
        request.MergeFrom(self._session)
        try:
            self._link.share(request)
        except PrivTuneError as error:
            self._due = None
            self._progress.message(f"the cloud took no figures ({error.message.rstrip('.')}); training continues")
