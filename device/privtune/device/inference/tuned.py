"""A model that was tuned here, in use: its bottom, noise and head, and the way to its newest state in the cloud."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from privtune.device.account.run_account import GENERATIONS, Account, Releasing
from privtune.device.data.encode import EncodedDataset
from privtune.device.home.job_folder import JobFolder, JobState
from privtune.device.inference.generation.growing_rows import RowSource
from privtune.device.link.rpc import Link, Stream
from privtune.device.model.device_parts import build_perturber, load_parts, open_request
from privtune.device.model.final_states import Outputs
from privtune.device.model.head import HeadTrainer
from privtune.device.model.tail import Tail
from privtune.device.noise.base import Mechanism
from privtune.device.privacy.statements import Statement
from privtune.device.release.own_records import OwnRecords
from privtune.device.release.perturber import Perturber
from privtune.device.session.run_settings import RunSettings
from privtune.shared.errors import JobConflict
from privtune.shared.modeling.checkpoint import checkpoint_steps
from privtune.shared.modeling.package import BottomPackage


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What a generation needs of a tuned model: rows, and the account of them."""

    rows: RowSource
    how: Releasing
    account: Account


@dataclass(frozen=True, kw_only=True)
class TunedModel:
    """The device's side of a job's newest state. `admit` what is to be released, then open the `stream`."""

    job_id: str
    state: JobState
    parts: BottomPackage
    head: HeadTrainer
    outputs: Outputs
    perturber: Perturber
    mechanism: Mechanism
    _how: Releasing
    _account: Account
    _link: Link
    _ending: contextlib.ExitStack
    _patience: float

    def admit(
        self, data: EncodedDataset, *, source: str, name: str, part: Literal["validation", "predict"]
    ) -> str | None:
        """Enter the records in ledger and transcript; see `Account.admit`."""
        warning = self._account.admit(self._how, data, source=source, name=name, part=part)
        keys = [key.packed() for key in self.perturber.keys(data)]
        self._account.transcript.records(self._how.store.fingerprint, keys)
        return warning

    @contextlib.contextmanager
    def texts(self) -> Iterator[Texts]:
        """The rows of texts that grow, and their lines in the ledger."""
        scope = hashlib.sha256(f"{GENERATIONS}\0{self._how.store.fingerprint}".encode()).hexdigest()
        with contextlib.closing(self._how.store.in_scope(scope)) as store:
            rows = RowSource(
                bottom=self.parts.bottom,
                mechanism=self.mechanism,
                source=self.perturber.source,
                importance=self.perturber.importance,
                store=store,
                codec=self.state.spec.codec,
            )
            yield Texts(rows=rows, how=replace(self._how, store=store), account=self._account)

    def stream(self) -> Stream:
        """An inference session, closed with the model."""
        opened = self._link.open(open_request(self.parts, self.job_id, self.state.spec, infer=True))
        stream = self._link.stream(opened, self.job_id, infer=True, patience=self._patience)
        self._ending.callback(stream.close)
        return stream

    @property
    def statement(self) -> Statement:
        """What may be claimed for the releases."""
        return self._how.statement

    def logits(self, out_ND: Tensor) -> Tensor:
        """logits_NC of what came back: with shared labels the head is in the cloud and did its work there."""
        return out_ND if self.state.spec.labels == "shared" else self.head.logits(out_ND)


@contextlib.contextmanager
def open_tuned(job_id: str, settings: RunSettings, say: Callable[[str], None] = lambda _: None) -> Iterator[TunedModel]:
    """The model of a job that this device has trained. `say` is told of a download.

    Raises JobNotFound when this device does not hold the job, JobConflict when it has no checkpoint.
    """
    folder = JobFolder(settings.home, job_id)
    state = folder.load()
    steps = checkpoint_steps(folder.checkpoints)
    if not steps:
        raise JobConflict("this job has no checkpoint on this device yet; train it first")
    with settings.account(job_id) as account, Link(settings.endpoint, account.transcript) as link:
        parts = load_parts(
            link,
            job_id,
            state.spec,
            home=settings.home,
            local_model=settings.local_model or state.local_model,
            num_labels=max(len(state.label_names), 2),
            say=say,
        )
        tail = Tail.of(parts, state.spec)
        head = HeadTrainer(parts.head, state.spec.optim, seed=0, total_steps=1, tail=tail)
        if state.spec.labels == "private":
            head.load(folder.checkpoints, steps[-1])
        own = OwnRecords(home=settings.home, fingerprint=state.data_fingerprint, job=folder.path)
        perturber, mechanism, store = build_perturber(parts, state.spec, settings.home, own)
        how = Releasing(
            spec=state.spec,
            store=store,
            perturber=perturber,
            statement=mechanism.statement(perturber.source),
            width=parts.hidden_size,
        )
        with contextlib.closing(store), contextlib.ExitStack() as ending:
            ending.callback(account.settle)
            yield TunedModel(
                job_id=job_id,
                state=state,
                parts=parts,
                head=head,
                outputs=Outputs(head, perturber, width=parts.hidden_size, codec=state.spec.codec),
                perturber=perturber,
                mechanism=mechanism,
                _how=how,
                _account=account,
                _link=link,
                _ending=ending,
                _patience=settings.no_progress_timeout,
            )
