"""A tuned model in use: its bottom, noise and head, and the way to its newest state in the cloud."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from privtune.device.account.releasing import Releasing, open_releasing
from privtune.device.home.job_folder import JobFolder, JobState
from privtune.device.inference.generation.growing_rows import RowSource
from privtune.device.link.rpc import Link, Stream
from privtune.device.model.bottom import load_bottom
from privtune.device.model.final_states import FinalStates
from privtune.device.model.head import HeadTrainer
from privtune.device.model.tail import Tail
from privtune.device.release.own_records import OwnRecords
from privtune.device.release.perturber import Uploader
from privtune.device.session.handshake import hand_over, open_request
from privtune.device.session.run_settings import RunSettings
from privtune.device.surrogates.replacement import Replacement
from privtune.shared.errors import JobConflict
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.modeling.checkpoint import checkpoint_steps


@dataclass(frozen=True, kw_only=True)
class TextReleases:
    """What a generation needs of a tuned model.

    rows: draws the rows of growing texts.
    releasing: the job's, with the store of those rows.
    """

    rows: RowSource
    releasing: Releasing


@dataclass(frozen=True, kw_only=True)
class TunedModel:
    """The device's side of a job's newest state. Admit in `releasing` what may leave, then open the `stream`.

    state: what the job's folder holds.
    step: optimiser steps of that state; the cloud's side is of the same step.
    package: bottom, head and tokenizer.
    states: reads the answers, with the tuned head and tail.
    releasing: the job's noise, store and account.
    """

    job_id: str
    state: JobState
    step: int
    package: BottomPackage
    states: FinalStates
    releasing: Releasing
    _link: Link
    _ending: contextlib.ExitStack
    _patience: float

    def texts(self) -> TextReleases:
        """The rows of growing texts, in a scope of the store that is theirs.

        Raises InvalidInput for a mechanism that can't release a record row by row.
        """
        how = self.releasing
        rows = RowSource(
            bottom=self.package.bottom, noise=how.noise, beginnings=how.beginnings, codec=self.state.spec.codec
        )
        return TextReleases(rows=rows, releasing=replace(how, store=how.beginnings.rows))

    def stream(self) -> Stream:
        """An inference session, closed with the model."""
        table = self.releasing.noise.mechanism.table
        request = open_request(
            self.package,
            self.job_id,
            self.state.spec,
            self.state.holder,
            checkpoint_steps=[self.step],
            infer=True,
            table=table,
        )
        opened = self._link.open(request)
        stream = self._link.stream(opened, self.job_id, infer=True, patience=self._patience)
        self._ending.callback(stream.close)
        hand_over(table, stream, opened)
        return stream

    def uploader(self) -> Uploader:
        """For the messages of one `stream`."""
        return Uploader(*self.releasing.noise.mechanism.sent_as(self.state.spec.codec))


@contextlib.contextmanager
def open_tuned(
    job_id: str,
    settings: RunSettings,
    say: Callable[[str], None] = lambda _: None,
    replacement: Replacement | None = None,
) -> Iterator[TunedModel]:
    """The model of a job that this device has trained.

    Args:
        say: gets a line per downloaded file.
        replacement: what the job's surrogates did in the texts that it is to read; None without surrogates.

    Raises:
        JobNotFound: this device does not hold the job.
        JobConflict: it has no checkpoint, or the cloud's taught blocks have changed.
    """
    folder = JobFolder(settings.home, job_id)
    state = folder.load()
    steps = checkpoint_steps(folder.checkpoints)
    if not steps:
        raise JobConflict("this job has no checkpoint on this device yet; train it first")
    with settings.account(job_id) as account, Link(settings.endpoint, account.transcript) as link:
        package = load_bottom(
            link,
            job_id,
            state.spec,
            home=settings.home,
            local_model=settings.local_model or state.local_model,
            label_names=state.label_names,
            say=say,
            taught_sha256=state.taught_sha256,
        )
        if package.taught is not None and package.taught.sha256 != state.taught_sha256:
            raise JobConflict(
                "the cloud's taught blocks are not those that this job was trained with; nothing was sent"
            )
        tail = Tail.of(package, state.spec)
        head = HeadTrainer(package.head, state.spec.optim, seed=0, total_steps=1, tail=tail)
        if state.spec.labels == "private":
            head.load(folder.checkpoints, steps[-1])
        own = OwnRecords(home=settings.home, fingerprint=state.data_fingerprint, job=folder.path)
        with (
            open_releasing(account, package, state, settings.home, own, link.claim, replacement) as releasing,
            contextlib.ExitStack() as ending,
        ):
            yield TunedModel(
                job_id=job_id,
                state=state,
                step=steps[-1],
                package=package,
                states=FinalStates(head, releasing.perturber, package, state.spec),
                releasing=releasing,
                _link=link,
                _ending=ending,
                _patience=settings.no_progress_timeout,
            )
