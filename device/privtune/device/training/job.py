"""Runs one job on this device from its data to the finished adapter, through lost connections and restarts."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from privtune.device.account.run_account import Account, Releasing, source_of
from privtune.device.data.batches import BatchPlan
from privtune.device.data.encode import EncodedDataset, encode_causal_lm, encode_classification
from privtune.device.data.prompts import PromptForm, form_of
from privtune.device.data.records import Records
from privtune.device.data.source import DataSource, training_labels
from privtune.device.home.job_folder import JobFolder
from privtune.device.home.paths import holds_job
from privtune.device.link.rpc import Link
from privtune.device.model.device_parts import Noise, build_perturber, load_parts, open_request
from privtune.device.model.final_states import StateStore
from privtune.device.model.head import HeadTrainer
from privtune.device.model.tail import Tail
from privtune.device.noise.base import Mechanism
from privtune.device.noise.randomness import NoiseSource
from privtune.device.privacy.statements import LabelStatement, Statement
from privtune.device.release.label_store import LabelStore, label_keys
from privtune.device.release.own_records import OwnRecords
from privtune.device.release.perturber import Perturber
from privtune.device.runtime.memory import trim
from privtune.device.session.run_settings import RunSettings
from privtune.device.training.loop import Totals, Trainer
from privtune.device.training.progress import Progress, StartInfo
from privtune.shared.errors import (
    AuditRefused,
    CloudUnreachable,
    CutOutOfRange,
    DataInvalid,
    FrameCorrupt,
    InvalidInput,
    JobCancelled,
    JobPaused,
    MessageTooLarge,
    ModelUnsupported,
    NonFinite,
    PolicyRefused,
    PrivTuneError,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.checkpoint import checkpoint_steps
from privtune.shared.modeling.package import BottomPackage
from privtune.split.v1 import split_pb2 as pb

T = TypeVar("T")

STATES_BYTES = 256 << 30  # of what the cloud computes for a job with a tail: a bound against nonsense, not a quota
# Waits between attempts to reach the cloud again: doubling up to the last.
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
# Trying again would end the same way.
_HOPELESS = (InvalidInput, DataInvalid, NonFinite, ModelUnsupported, CutOutOfRange, MessageTooLarge)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished job, as seen from the device. Bytes, tokens and seconds are this process's.

    exportable: a plain model has a place for all that was trained (none for a skip).
    """

    job_id: str
    folder: Path
    steps: int
    tokens: int
    seconds: float
    bytes_up: int
    bytes_down: int
    metrics: dict[str, float]
    statement: Statement
    label_names: tuple[str, ...]
    adapter_sha256: str
    label_statement: LabelStatement | None = None
    exportable: bool = True


def run_job(
    job_id: str,
    spec: JobSpec,
    train: DataSource,
    validation: DataSource | None,
    settings: RunSettings,
    progress: Progress,
    stop: threading.Event,
) -> RunResult:
    """Train the job to its end, resuming where both sides left off.

    Raises JobPaused after `stop` was set (checkpointed on both sides), CloudUnreachable when the cloud stayed away
    longer than the patience, and any other error of the table; an error that can't be mended by trying again is
    also told to the cloud, so that the job says why it failed. PolicyRefused is for the caller to tell (`refuse_job`).
    """
    with settings.account(job_id) as account, Link(settings.endpoint, account.transcript) as link:
        try:
            if settings.policy is not None:
                settings.policy.check(spec)
            return _Run(job_id, spec, link, settings, progress, stop, account).go(train, validation)
        except _HOPELESS as error:
            if ends_job(error, job_id, settings.home):
                # The owner sees `error` in any case; the job may have failed in the cloud for the same reason already.
                with contextlib.suppress(PrivTuneError):
                    link.refuse(job_id, _public(error))
            raise


def ends_job(error: PrivTuneError, job_id: str, home: Path) -> bool:
    """Whether `run_job` has failed the job because of this error; if not, the job waits and can be tried again."""
    # A file that changed under a job that had begun can be put back.
    mendable = isinstance(error, DataInvalid) and holds_job(home, job_id)
    return isinstance(error, _HOPELESS) and not mendable


def _public(error: PrivTuneError) -> PrivTuneError:
    """What the cloud may know of an error: files, lines, columns and an audit's figures stay at home."""
    if isinstance(error, AuditRefused):
        return PolicyRefused("the device's audit of its own data refuses the job; the owner's terminal or log says why")
    if isinstance(error, DataInvalid):
        return DataInvalid("the device can't use its data set; the owner's terminal or agent log says why")
    return error


def refuse_job(job_id: str, error: PrivTuneError, settings: RunSettings) -> None:
    """Tell the cloud that this device will not run the job, and why."""
    with settings.account(job_id) as account, Link(settings.endpoint, account.transcript) as link:
        link.refuse(job_id, _public(error))


class _Run:
    """The state of `run_job`, shared by its sessions."""

    def __init__(
        self,
        job_id: str,
        spec: JobSpec,
        link: Link,
        settings: RunSettings,
        progress: Progress,
        stop: threading.Event,
        account: Account,
    ) -> None:
        self.account = account
        self.job_id, self.spec, self.link, self.settings = job_id, spec, link, settings
        self.progress, self.stop = progress, stop
        self.folder = JobFolder(settings.home, job_id)
        self.totals = Totals()
        self.metrics: dict[str, float] = {}
        self.label_statement: LabelStatement | None = None

    def go(self, train: DataSource, validation: DataSource | None) -> RunResult:
        records = train.load(self.spec.task)
        held_out = validation.load(self.spec.task) if validation is not None else None
        names = training_labels(records) if self.spec.task == "classification" else ()
        if self.spec.num_labels not in (None, len(names)):
            raise InvalidInput(f"the job says num_labels {self.spec.num_labels}, but the data has {len(names)} labels")
        parts = self._patiently(lambda: self._load_parts(len(names)))
        tail = Tail.of(parts, self.spec)  # before anything is entered or sent
        form = self._form(records, parts, train.chat_template)
        data = self._encode(records, parts, names, form)
        state = self.folder.begin(self.spec, names, data.fingerprint, self.settings.local_model, form)
        order = state.order(len(data))
        data = data.pick(order)
        validation_data = self._encode(held_out, parts, names, form) if held_out is not None else None
        home = self.settings.home
        own = OwnRecords(home=home, fingerprint=state.data_fingerprint, job=self.folder.path, data=data)
        perturber, mechanism, store = build_perturber(parts, self.spec, home, own)
        try:
            self._fits(mechanism)
            how = Releasing(
                spec=self.spec,
                store=store,
                perturber=perturber,
                statement=mechanism.statement(perturber.source),
                width=parts.hidden_size,
            )
            self._audit(data, state.data_fingerprint, parts, perturber, mechanism, store.fingerprint)
            self._admit(how, [("train", train, data), ("validation", validation, validation_data)])
            if self.spec.label_epsilon is not None:
                keys = label_keys(records, names)
                told = [keys[index] for index in order.tolist()]
                data = self._randomised(data, told, own, source_of(train.path), perturber.source)
            trained = self._train(parts, tail, data, validation_data, perturber, mechanism, store.fingerprint)
        finally:
            with contextlib.closing(store):
                self.account.settle()
        steps = BatchPlan(data.lengths, self.spec.train).total_steps
        self.folder.save(replace(state, final_step=steps))
        result = RunResult(
            job_id=self.job_id,
            folder=self.folder.path,
            steps=steps,
            tokens=self.totals.tokens,
            seconds=self.totals.seconds,
            bytes_up=self.totals.bytes_up,
            bytes_down=self.totals.bytes_down,
            metrics=self.metrics,
            statement=mechanism.statement(),
            label_names=names,
            adapter_sha256=trained,
            label_statement=self.label_statement,
            exportable=not self.spec.tail or self.spec.skip == "none",
        )
        self.folder.write_json("report.json", asdict(result) | {"folder": str(result.folder)})
        return result

    def _fits(self, mechanism: Mechanism) -> None:
        """Whether this job can learn from what the mechanism releases; a message where it can but hardly will."""
        spec = self.spec
        clean = bool(spec.tail) and spec.skip != "none"
        if mechanism.shortens and spec.task == "causal-lm":
            raise InvalidInput(f"mechanism {mechanism.name} shortens records and can't serve causal-lm")
        if mechanism.shortens and clean:
            raise InvalidInput(
                f"mechanism {mechanism.name} shortens records, so clean vectors have no rows to be added to: use "
                "--skip none with this mechanism"
            )
        if mechanism.hides_task and not clean:
            self.progress.message(
                f"mechanism {mechanism.name} hides the classes from the cloud, so little can be learnt of them there: "
                "let this device learn them from clean vectors (--tail 1 --skip tuned), or set task_use=show"
            )

    def _audit(
        self,
        data: EncodedDataset,
        fingerprint: str,
        parts: BottomPackage,
        perturber: Perturber,
        mechanism: Mechanism,
        scope: str,
    ) -> None:
        """Before anything of the data leaves or is entered: what would an attacker read of it?"""
        rule = self.settings.audit_rule
        if rule is None:
            return
        from privtune.device.audit.jobs.gate import Gated, hold  # heavy, and few jobs ask for it

        noise = Noise(mechanism=mechanism, importance=perturber.importance, source=perturber.source)
        job = Gated(
            spec=self.spec,
            data=data,
            fingerprint=fingerprint,
            parts=parts,
            noise=noise,
            scope=scope,
            local_model=self.settings.local_model,
        )
        hold(rule, job, self.settings.home, self.progress.message, self.stop)

    def _admit(self, how: Releasing, parts: list[tuple[str, DataSource | None, EncodedDataset | None]]) -> None:
        """Enter in the ledger what may leave, before the session is opened; the budget may refuse it."""
        keys: list[bytes] = []
        for part, source, data in parts:
            if source is None or data is None:
                continue
            name = (self.spec.validation_file if part == "validation" else None) or self.spec.training_file
            warning = self.account.admit(how, data, source=source_of(source.path), name=name, part=part)
            if warning is not None:
                self.progress.message(warning)
            keys += [key.packed() for key in how.perturber.keys(data)]
        self.account.transcript.records(how.store.fingerprint, keys)

    def _randomised(
        self, data: EncodedDataset, keys: list[bytes], own: OwnRecords, path: str, noise: NoiseSource
    ) -> EncodedDataset:
        """The records with the one randomised label each that trains; the true ones are out of reach from here on."""
        epsilon, classes = self.spec.label_epsilon, len(data.label_names)
        if epsilon is None or data.labels is None:
            raise InvalidInput("label_epsilon needs records with labels")
        self.label_statement = LabelStatement(epsilon=epsilon, classes=classes, unsafe_seed=noise.unsafe)
        with contextlib.closing(LabelStore(self.settings.home, fixed_seed=noise.unsafe)) as store:
            admission, warning = self.account.admit_labels(
                self.spec, self.label_statement, store, keys, source=path, names=data.label_names
            )
            if warning is not None:
                self.progress.message(warning)
            own.pin(store.identity, file="labels.txt", what="the randomised labels of this job")
            told = store.randomised(keys, data.labels, classes, epsilon, noise)
            self.account.settle_labels(admission, store)
        return replace(data, labels=told)

    def _load_parts(self, num_labels: int) -> BottomPackage:
        return load_parts(
            self.link,
            self.job_id,
            self.spec,
            home=self.settings.home,
            local_model=self.settings.local_model,
            num_labels=max(num_labels, 2),
            say=self.progress.message,
        )

    def _form(self, records: Records, parts: BottomPackage, chat_template: str | None) -> PromptForm | None:
        """The form of a language model's records: that with which the job began, whatever the package says today."""
        if self.spec.task == "classification":
            return None
        known = self.folder.load().prompt if self.folder.exists() else None
        return known or form_of(records, parts.tokenizer, chat_template)

    def _encode(
        self, records: Records, parts: BottomPackage, names: tuple[str, ...], form: PromptForm | None
    ) -> EncodedDataset:
        limit = self.spec.train.max_length
        if parts.max_positions is not None and limit > parts.max_positions:
            raise InvalidInput(f"max_length {limit} is over the {parts.max_positions} positions of this model")
        if self.spec.task == "classification":
            data = encode_classification(records, parts.tokenizer, limit, names)
        else:
            data = encode_causal_lm(records, parts.tokenizer, limit, form)
        parts.check_ids(data.ids)
        return data

    def _train(
        self,
        parts: BottomPackage,
        tail: Tail | None,
        data: EncodedDataset,
        validation: EncodedDataset | None,
        perturber: Perturber,
        mechanism: Mechanism,
        scope: str,
    ) -> str:
        """Sessions until the last step is done; each goes on from the newest checkpoint that both sides hold.

        Returns the SHA-256 of what was trained.
        """
        plan = BatchPlan(data.lengths, self.spec.train)
        head = HeadTrainer(
            parts.head,
            self.spec.optim,
            tail=tail,
            seed=self.spec.train.seed,
            total_steps=plan.total_steps,
            label_epsilon=self.spec.label_epsilon,
        )

        trim()  # of reading, checking and encoding the data

        def session(states: StateStore | None = None) -> pb.CommitResponse:
            opened = self.link.open(
                open_request(
                    parts,
                    self.job_id,
                    self.spec,
                    total_steps=plan.total_steps,
                    checkpoint_steps=checkpoint_steps(self.folder.checkpoints),
                )
            )
            head.rewind(self.folder.checkpoints, opened.resume_step)
            self._announce(opened, head, data, validation, mechanism.statement(), plan.total_steps)
            stream = self.link.stream(opened, self.job_id, infer=False, patience=self.settings.no_progress_timeout)
            trainer = Trainer(
                spec=self.spec,
                stream=stream,
                perturber=perturber,
                head=head,
                train=data,
                validation=validation,
                readout=parts.readout,
                width=parts.hidden_size,
                checkpoints=self.folder.checkpoints,
                progress=self.progress,
                stop=self.stop,
                totals=self.totals,
                states=states,
            )
            try:
                trainer.run(opened.resume_step)
                self.metrics = trainer.metrics or self.metrics
                return self._commit(opened.session_epoch, plan.total_steps)
            finally:
                stream.close()
                self.totals.bytes_up += stream.bytes_up
                self.totals.bytes_down += stream.bytes_down

        if tail is None:
            return self._patiently(session).adapter_sha256
        with self._states(scope) as states:
            self._patiently(lambda: session(states))
        return tail.sha256()

    @contextlib.contextmanager
    def _states(self, scope: str) -> Iterator[StateStore]:
        """What the cloud computes for a tail; kept while the job may go on, gone when it is done or cancelled."""
        may_go_on = False
        states = StateStore(self.folder.states, scope, STATES_BYTES)
        try:
            yield states
        except BaseException as error:
            may_go_on = not isinstance(error, JobCancelled)
            raise
        finally:
            states.close()
            if not may_go_on:
                self.folder.states.unlink(missing_ok=True)

    def _announce(
        self,
        opened: pb.OpenResponse,
        head: HeadTrainer,
        data: EncodedDataset,
        validation: EncodedDataset | None,
        statement: Statement,
        total_steps: int,
    ) -> None:
        self.progress.started(
            StartInfo(
                job_id=self.job_id,
                statement=statement,
                total_steps=total_steps,
                start_step=opened.resume_step,
                records=len(data),
                validation_records=len(validation) if validation is not None else 0,
                truncated=data.truncated,
                dropped=data.dropped,
                device_parameters=head.trainable_parameters if self.spec.labels == "private" else 0,
                cloud_parameters=opened.top_parameters * 1000,
                label_statement=self.label_statement,
                tail=self.spec.tail,
            )
        )

    def _commit(self, epoch: int, steps: int) -> pb.CommitResponse:
        return self.link.commit(
            pb.CommitRequest(job_id=self.job_id, session_epoch=epoch, final_step=steps, tokens=self.totals.tokens)
        )

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Try again after a lost connection or a damaged frame, as long as progress is made within the patience."""
        failures, steps, since = 0, self.totals.steps, time.monotonic()
        while True:
            try:
                return attempt()
            except (CloudUnreachable, FrameCorrupt) as error:
                if self.totals.steps > steps:
                    failures, steps, since = 0, self.totals.steps, time.monotonic()
                waited = time.monotonic() - since
                if waited > self.settings.no_progress_timeout or (failures == 0 and self.totals.steps == 0):
                    raise
                pause = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                failures += 1
                self.progress.message(f"{error.message}; trying again in {pause:.0f} s")
                if self.stop.wait(pause):
                    raise JobPaused(
                        "stopped while the cloud was away; the job goes on from its last checkpoint"
                    ) from None
