"""From data and job description to a job that is ready to train: all that happens before the first session.

    data -> surrogates -> model -> token ids in secret order -> noise
         -> audit gate -> ledger and transcript -> randomised labels

Nothing of the data leaves before it is admitted; a job that is refused here has sent none of it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from privtune.device.account.early_refusal import refuse_early
from privtune.device.account.releasing import Outgoing, Releasing, open_releasing
from privtune.device.account.run_account import Account, source_of
from privtune.device.data.batches import BatchPlan
from privtune.device.data.encode import EncodedDataset
from privtune.device.data.prompts import PromptForm, form_of
from privtune.device.data.record_lines import RecordLines, lines_of
from privtune.device.data.records import Records
from privtune.device.data.source import DataSource, own_terms, read_for_training
from privtune.device.home.job_folder import JobFolder, JobState
from privtune.device.link.rpc import Link
from privtune.device.model.bottom import encode_records, load_bottom
from privtune.device.model.tail import Tail
from privtune.device.noise.base import Mechanism
from privtune.device.noise.registry import check_job
from privtune.device.privacy.statements import LabelStatement, SlopeStatement, stopped_statement
from privtune.device.release.label_store import LabelStore, label_keys
from privtune.device.release.own_records import OwnRecords
from privtune.device.release.slope_store import SlopeStore
from privtune.device.release.slopes import Slopes
from privtune.device.runtime.memory import trim
from privtune.device.session.run_settings import RunSettings
from privtune.device.surrogates.own_words import OwnWords
from privtune.device.surrogates.replacement import HELD_OUT, TRAINED, Replacement
from privtune.device.training.progress import TrainingProgress
from privtune.shared.errors import InvalidInput, JobPaused
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.wording import counted

SAY_EVERY_S = 10.0  # while surrogates are drawn


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run of a job on this device, as every stage sees it.

    link: to the cloud.
    account: of what leaves.
    progress: watches.
    stop: pauses the run when set.
    """

    job_id: str
    spec: JobSpec
    settings: RunSettings
    link: Link
    account: Account
    progress: TrainingProgress
    stop: threading.Event

    @property
    def folder(self) -> JobFolder:
        """What the device keeps of the job."""
        return JobFolder(self.settings.home, self.job_id)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job that is ready to train; the same in all its sessions.

    state: what the job's folder holds.
    package: bottom, head and tokenizer.
    tail: blocks that train here.
    plan: which records make up each micro-batch.
    train, validation: the records as token ids.
    lines: where both are in their file.
    releasing: open until the job ends.
    label_statement: what may be claimed for randomised labels; None where labels are as they are.
    slopes: what releases the slopes of a zeroth-order job; None where gradients train.
    verdict: of the audit; "" without one.
    """

    state: JobState
    package: BottomPackage
    tail: Tail | None
    plan: BatchPlan
    train: EncodedDataset
    validation: EncodedDataset | None
    lines: tuple[RecordLines, RecordLines | None]
    releasing: Releasing
    label_statement: LabelStatement | None
    slopes: Slopes | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """Model and data, before anything is entered or sent.

    lines: where the training records are in their file, and the held-out ones.
    label_keys: of the training records, in their order.
    replacement: what surrogates did in training and held-out records.
    own_words: for an audit: of each training record of the file, what became of its words.
    """

    state: JobState
    package: BottomPackage
    tail: Tail | None
    train: EncodedDataset
    validation: EncodedDataset | None
    lines: tuple[RecordLines, RecordLines | None]
    label_keys: list[bytes]
    replacement: Replacement | None
    own_words: list[OwnWords]


@contextlib.contextmanager
def prepared(run: RunContext, train: DataSource, validation: DataSource | None) -> Iterator[Prepared]:
    """The job ready to train, its records admitted; at the end the ledger learns what was released.

    Raises:
        InvalidInput, DataInvalid: the data, or the job with this data or model, makes no sense.
        JobConflict: the job began with other data, another description or other noise.
        PolicyRefused, AuditRefused: the budget or the audit does not allow it.
    """
    loaded = _load(run, train, validation)
    home, data = run.settings.home, loaded.train
    own = OwnRecords(home=home, fingerprint=loaded.state.data_fingerprint, job=run.folder.path, data=data)
    announce, replacement = run.link.claim, loaded.replacement
    with open_releasing(run.account, loaded.package, loaded.state, home, own, announce, replacement) as releasing:
        if run.spec.train.early_stopping is not None:
            releasing = replace(releasing, statement=stopped_statement(releasing.statement))
        _check_mechanism(run, releasing.noise.mechanism)
        verdict = _audit(run, loaded, releasing)
        if loaded.package.taught is not None:
            run.progress.message(run.account.note_taught(str(run.spec.taught), loaded.package.taught))
        outgoing = _outgoing(run.spec, loaded, train, validation)
        releasing.admit(outgoing, run.progress.message)
        statement = None
        if run.spec.label_epsilon is not None:
            data, statement = _randomise_labels(run, loaded, run.spec.label_epsilon, releasing, own, outgoing[0].source)
        plan = BatchPlan(releasing.perturber.lengths(data), run.spec.train)
        with _slopes(run, plan, releasing, own, outgoing[0]) as slopes:
            yield Prepared(
                state=loaded.state,
                package=loaded.package,
                tail=loaded.tail,
                plan=plan,
                train=data,
                validation=loaded.validation,
                lines=loaded.lines,
                releasing=releasing,
                label_statement=statement,
                slopes=slopes,
                verdict=verdict,
            )


def _load(run: RunContext, train: DataSource, validation: DataSource | None) -> _Loaded:
    """Read the data, load the model, and bring all records into the job's secret order."""
    spec, settings, folder = run.spec, run.settings, run.folder
    check_job(spec)
    if settings.audit_rule is not None:
        settings.audit_rule.check(spec, settings.local_model)
    say = run.progress.message if run.settings.tell_data else lambda _: None
    original, held_out, names = read_for_training(train, validation, spec.task, say)
    if spec.num_labels not in (None, len(names)):
        raise InvalidInput(
            f"the job says num_labels {spec.num_labels}, but the data has {counted(len(names), 'label')}",
            param="num_labels",
            private=True,
        )
    for source, count in ((train, len(original)), (validation, len(held_out or ()))):
        if source is not None:
            least = count if names else 1  # a language model drops records that it can't learn from
            refuse_early(
                settings.home, spec, source_of(source.path), settings.budget, records=least, resumed=(run.job_id,)
            )
    lines = lines_of(original), None if held_out is None else lines_of(held_out)
    terms = own_terms(spec.surrogates, train, validation)
    state = folder.begin(spec, names, settings.local_model, terms)
    # Before the model is loaded: the recognisers are gone by then.
    own_words: list[OwnWords] = []
    records, held_out, replacement = _replaced(run, state, original, held_out, own_words)
    trim()
    package = load_bottom(
        run.link,
        run.job_id,
        spec,
        home=settings.home,
        local_model=settings.local_model,
        label_names=names,
        say=run.progress.message,
        taught_sha256=state.taught_sha256,
    )
    tail = Tail.of(package, spec)
    form = _form(state, records, package, train.chat_template)
    limit = spec.train.longest(package.max_positions)
    if limit < spec.train.max_length:
        run.progress.message(f"records are cut at {counted(limit, 'token')}, all that this model has positions for")
    if package.max_positions is not None and limit > package.max_positions:
        raise InvalidInput(f"max_length {limit} is over the {package.max_positions} positions of this model")
    data = encode_records(package, records, spec, names, form)
    rules = replacement.fingerprint if replacement is not None else ""
    taught = package.taught.sha256 if package.taught is not None else ""
    state = replace(
        state, data_fingerprint=data.fingerprint, prompt=form, surrogate_fingerprint=rules, taught_sha256=taught
    )
    folder.hold(state)
    order = state.order(len(data))
    scored = None if held_out is None else state.shuffled(encode_records(package, held_out, spec, names, form))
    keys = label_keys(original, names) if spec.label_epsilon is not None else []
    return _Loaded(
        state=state,
        package=package,
        tail=tail,
        train=data.pick(order),
        validation=scored,
        lines=lines,
        label_keys=[keys[index] for index in order.tolist()] if keys else [],
        replacement=replacement,
        own_words=own_words,
    )


def _replaced(
    run: RunContext, state: JobState, records: Records, held_out: Records | None, own_words: list[OwnWords]
) -> tuple[Records, Records | None, Replacement | None]:
    """The records as the model may read them, with surrogates where the job wants them. own_words: filled."""

    said = time.monotonic()

    def watch(done: int) -> None:
        nonlocal said
        if run.stop.is_set():
            raise JobPaused("stopped while surrogates were drawn; nothing of the data was sent")
        if time.monotonic() - said > SAY_EVERY_S:
            run.progress.message(f"replaced in {counted(done, 'record')} so far")
            said = time.monotonic()

    surrogates = state.surrogates()
    if surrogates is None:
        return records, held_out, None
    run.progress.message("replacing what identifies (Ctrl-C pauses)")
    wanted = own_words if run.settings.audit_rule is not None else None
    records, coverage = surrogates.records(records, TRAINED, watch, wanted)
    if held_out is not None:
        held_out, more = surrogates.records(held_out, HELD_OUT, watch)
        coverage += more
    return records, held_out, Replacement.of(surrogates, coverage)


def _form(state: JobState, records: Records, package: BottomPackage, chat_template: str | None) -> PromptForm | None:
    """The form of a language model's records: the one that the job began with, whatever the package says today."""
    if state.spec.task == "classification":
        return None
    return state.prompt or form_of(records, package.tokenizer, chat_template)


def _check_mechanism(run: RunContext, mechanism: Mechanism) -> None:
    """Whether the policy allows what takes effect, and the job can learn from it; a message where it hardly will."""
    spec, policy = run.spec, run.settings.policy
    if policy is not None:
        policy.check_resolved(spec, mechanism.resolved())
    clean = bool(spec.tail) and spec.skip != "none"
    if mechanism.hides_task and not clean:
        run.progress.message(
            f"mechanism {mechanism.name} hides the classes from the cloud, so it can learn little of them: let this "
            "device learn them from clean vectors (--tail 1 --skip tuned), or set task_use=show"
        )


def _audit(run: RunContext, loaded: _Loaded, releasing: Releasing) -> str:
    """Attack the job's own data where a rule asks for it, before anything of it leaves or is entered; the verdict."""
    rule = run.settings.audit_rule
    if rule is None:
        return ""
    from privtune.device.audit.jobs.gate import Gated, hold  # heavy, and few jobs ask for it

    job = Gated(
        spec=run.spec,
        data=loaded.train,
        fingerprint=loaded.state.data_fingerprint,
        parts=loaded.package,
        noise=releasing.noise,
        scope=releasing.store.fingerprint,
        local_model=run.settings.local_model,
        own_words=loaded.own_words,
    )
    return hold(rule, job, run.settings.home, run.progress.message, run.stop)


def _outgoing(spec: JobSpec, loaded: _Loaded, train: DataSource, validation: DataSource | None) -> list[Outgoing]:
    lines, held_out = loaded.lines
    found = [
        Outgoing(data=loaded.train, source=source_of(train.path), name=spec.training_file, part="train", lines=lines)
    ]
    if validation is not None and loaded.validation is not None:
        name = spec.validation_file or spec.training_file
        source = source_of(validation.path)
        found.append(Outgoing(data=loaded.validation, source=source, name=name, part="validation", lines=held_out))
    return found


@contextlib.contextmanager
def _slopes(
    run: RunContext, plan: BatchPlan, releasing: Releasing, own: OwnRecords, one: Outgoing
) -> Iterator[Slopes | None]:
    """What releases the job's slopes, entered in the ledger before the first; at the end it learns how many left."""
    wanted, noise = run.spec.zeroth_order, releasing.noise.source
    if wanted.epsilon is None:
        yield None
        return
    statement = SlopeStatement(
        epsilon=wanted.epsilon,
        delta=wanted.delta,
        clip=wanted.clip,
        times=plan.times(plan.total_steps),
        support=wanted.support,
        ratio=wanted.support_ratio,
        unsafe_seed=noise.unsafe,
    )
    with contextlib.closing(SlopeStore(run.folder.path)) as store:
        slopes = Slopes(statement=statement, store=store, source=noise)
        slopes.check(run.spec.train.batch_size * run.spec.train.accumulation)
        own.pin(store.identity, file="slopes.txt", what="the slopes of this job")
        admission = run.account.admit_slopes(run.spec, statement, store, records=len(plan.lengths_R), source=one.source)
        try:
            yield slopes
        finally:
            run.account.settle_slopes(admission, statement, store, plan, one)


def _randomise_labels(
    run: RunContext, loaded: _Loaded, epsilon: float, releasing: Releasing, own: OwnRecords, source: str
) -> tuple[EncodedDataset, LabelStatement]:
    """The records with the one randomised label each that trains; the true ones are out of reach from here on."""
    data, noise, keys = loaded.train, releasing.noise.source, loaded.label_keys
    if data.labels is None:
        raise InvalidInput("label_epsilon needs records with labels")
    statement = LabelStatement(epsilon=epsilon, classes=len(data.label_names), unsafe_seed=noise.unsafe)
    with contextlib.closing(LabelStore(run.settings.home, fixed_seed=noise.unsafe)) as store:
        admission, warning = run.account.admit_labels(
            run.spec, statement, store, keys, source=source, names=data.label_names
        )
        if warning is not None:
            run.progress.message(warning)
        own.pin(store.identity, file="labels.txt", what="the randomised labels of this job")
        labels_N = store.randomised(keys, data.labels, statement.classes, epsilon, noise)
        run.account.settle_labels(admission, store)
    return replace(data, labels=labels_N), statement
