"""From a request to a plan. It reads all of the data, asks the cloud what it publishes, and starts nothing."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from privtune.device.data.encode import EncodedDataset
from privtune.device.data.prompts import form_of
from privtune.device.data.records import Records
from privtune.device.data.source import DataSource, own_terms, read_for_training
from privtune.device.link.rest import ControlPlane
from privtune.device.link.rpc import Link
from privtune.device.model.bottom import encode_records, planned_bottom, served_bottom
from privtune.device.plan.calibration import calibrate
from privtune.device.plan.forecast import HOUR_S, TRAINED_PASSES, CloudSpeed, Times, times_of
from privtune.device.plan.lengths_seen import LengthsSeen, PaddingPrice
from privtune.device.plan.line import Line, probe_line
from privtune.device.plan.room import Room, room_of
from privtune.device.plan.workload import Lengths, Sent, Workload, workload_of
from privtune.device.protections.measured import MeasuredRow, measured_job
from privtune.device.release.noising import build_noise
from privtune.device.release.own_records import OwnRecords
from privtune.device.session.run_settings import RunSettings
from privtune.device.surrogates.replacement import TRAINED
from privtune.device.surrogates.surrogates import SECRET_BYTES, Surrogates, texts_of
from privtune.shared.addresses import is_loopback
from privtune.shared.errors import PermissionDenied
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage, bottom_from_model
from privtune.shared.modeling.load import load_task_model
from privtune.shared.modeling.partition import Partition, Top

Say = Callable[[str], None]
T = TypeVar("T")
BATCHES = (16, 32, 64)  # to choose from
_BETTER = 0.9  # of the time that a smaller batch takes, to be worth a larger one
_LEAST_STEPS = 60  # fewer learn little
_NOTICED_S = 0.5  # less is left out of a plan
_SAMPLE = 48  # records on which surrogates are timed


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What is planned.

    spec: the job, with the defaults of what its owner left open.
    protect: the protection that gave what was left open.
    open: options that its owner left open, of cut, tail and batch_size.
    settings: how to reach the cloud, the home, and the owner's own copy of the model.
    control: the cloud; None: there is none to ask, and its speed is taken from this machine.
    started: when the command began, of `time.perf_counter`; given last.
    price: of an hour of the cloud's GPU, in any currency.
    """

    spec: JobSpec
    train: DataSource
    validation: DataSource | None
    protect: str
    open: frozenset[str]
    settings: RunSettings
    control: ControlPlane | None
    started: float = 0.0
    price: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job will take.

    spec: with what was picked.
    picks: why, a sentence each.
    tokens: of training records, as far as max_length lets them be.
    prepare: seconds before the first step, by what they go into.
    times: from the first step on.
    measured: what attackers read and what it costs, where that was measured of these settings.
    line: None: no cloud was asked.
    price: of an hour.
    lengths: what the cloud sees of the training records' lengths.
    padding: what it takes; None: the job has none.
    """

    spec: JobSpec
    picks: tuple[str, ...]
    records: int
    tokens: int
    truncated: int
    work: Workload
    prepare: Mapping[str, float]
    times: Times
    room: Room
    speed: CloudSpeed
    line: Line | None
    measured: MeasuredRow | None
    price: float | None
    lengths: LengthsSeen
    padding: PaddingPrice | None

    @property
    def seconds(self) -> float:
        """From the command to its end."""
        return sum(self.prepare.values()) + self.times.total

    @property
    def cost(self) -> tuple[float, float | None] | None:
        """For a GPU that is held from the first step to the last, and for one that is paid while it computes."""
        if self.price is None:
            return None
        busy = self.times.cloud
        return self.price * self.times.total / HOUR_S, None if busy is None else self.price * busy / HOUR_S

    def document(self) -> dict[str, Any]:
        """JSON-ready; seconds, bytes, and money in the price's currency."""
        held, busy = self.cost or (None, None)
        row = self.measured
        return {
            "job": self.spec.model_dump(mode="json"),
            "picks": list(self.picks),
            "records": self.records,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "steps": self.work.steps,
            "seconds": {
                "total": self.seconds,
                "prepare": dict(self.prepare),
                "run": dataclasses.asdict(self.times),
                "at_least": self.times.cloud is None,
            },
            "limits": self.times.limit,
            "bytes": {"up": self.work.up, "down": self.work.down},
            "lengths": dataclasses.asdict(self.lengths),
            "padding": None if self.padding is None else dataclasses.asdict(self.padding),
            "room": dataclasses.asdict(self.room),
            "cost": {"gpu_hour": self.price, "held": held, "computing": busy},
            "cloud": dataclasses.asdict(self.speed),
            "line": None if self.line is None else dataclasses.asdict(self.line),
            "measured": None if row is None else row.model_dump(mode="json"),
        }


def plan_job(request: PlanRequest, say: Say) -> Plan:
    """Read, measure, count and pick. say: gets a line for what takes long.

    Raises DataInvalid, InvalidInput, PackageMissing, and as `ControlPlane` and `load_bottom`.
    """
    spec, clock = request.spec, _Clock()
    clock.longer("start", time.perf_counter() - request.started)
    records, held_out, names = read_for_training(request.train, request.validation, spec.task, say)
    swell = clock.of("surrogates", lambda: _replaced(request, records, held_out, clock, say))
    say("loading the device's part of the model")
    package = clock.of("model", lambda: _package(request, len(names), say))
    form = None if spec.task == "classification" else form_of(records, package.tokenizer, request.train.chat_template)

    def encoded(of: Records) -> EncodedDataset:
        return encode_records(package, of, spec, names, form)

    data = clock.of("tokens", lambda: encoded(records))
    scored = None if held_out is None else clock.of("tokens", lambda: encoded(held_out))
    blocks = package.n_layers - spec.cut - spec.tail
    speed, line = _cloud(request)
    say("running a few micro-batches here")
    request.settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=request.settings.home, prefix="plan-") as folder:
        scratch = Path(folder)
        # What a mechanism learns from the records serves the plan only: none of it leaves or is kept.
        own = OwnRecords(home=scratch, fingerprint=data.fingerprint, job=scratch / "job", data=data)
        noise = clock.of(
            "tables", lambda: build_noise(package, spec.mechanism, spec.cut, request.settings.home, own, job=spec)
        )
        top = _top(request) if speed is None else None
        here = calibrate(spec, package, noise, data, scratch, top)
        width, codec = noise.mechanism.sent_as(spec.codec)
        table = noise.mechanism.table
        sent = Sent(
            hidden=package.hidden_size,
            width=width,
            codec=codec,
            table=0 if table is None else len(table.to_message().payload),
        )
    speed = speed or CloudSpeed.here(here.top, blocks, shared=_shared(request))
    padded = () if noise.padding is None else noise.padding.lengths

    def counted(planned: JobSpec, padded: tuple[int, ...]) -> tuple[Lengths, Workload]:
        lengths = Lengths.of(data, swell, padded, here.rows)
        others = None if scored is None else Lengths.of(scored, swell, padded, here.rows)
        return lengths, workload_of(planned, lengths, others, sent)

    def at(batch: int) -> tuple[JobSpec, Workload, Times]:
        train = spec.train.model_copy(update={"batch_size": batch})
        planned = spec.model_copy(update={"train": train})
        _, work = counted(planned, padded)
        return planned, work, times_of(planned, work, here, speed, line, blocks)

    (planned, work, times), picks = _picked(request, at)
    lengths, plain = counted(planned, ())
    seen = LengthsSeen.of(lengths.tokens_R)
    return Plan(
        spec=planned,
        picks=picks,
        records=len(data),
        tokens=int(lengths.tokens_R.sum()),
        truncated=data.truncated,
        work=work,
        prepare={name: seconds for name, seconds in clock.seconds.items() if seconds > _NOTICED_S},
        times=times,
        room=room_of(
            planned,
            package,
            work,
            trained_here=here.trained,
            whole=request.settings.local_model is not None,
            frames=request.settings.record_frames,
        ),
        speed=speed,
        line=line,
        measured=measured_job(planned),
        price=request.price,
        lengths=LengthsSeen.of(counted(planned, padded)[0].tokens_R),
        padding=PaddingPrice.of(seen, plain, work) if padded else None,
    )


class _Clock:
    """Seconds by what they went into; `longer` counts those that a sample stands for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def of(self, what: str, do: Callable[[], T]) -> T:
        began = time.perf_counter()
        found = do()
        self.longer(what, time.perf_counter() - began)
        return found

    def longer(self, what: str, seconds: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds


def _replaced(request: PlanRequest, records: Records, held_out: Records | None, clock: _Clock, say: Say) -> float:
    """Times surrogates on some records, and enters what all will take; returns how many times longer texts become."""
    spec = request.spec
    terms = own_terms(spec.surrogates, request.train, request.validation)
    if not spec.surrogates.on:
        return 1.0
    say("replacing what identifies in a few records")
    surrogates = Surrogates(spec.surrogates, secrets.token_bytes(SECRET_BYTES), terms)
    surrogates.records(records.pick(range(1)), TRAINED)  # loads the recognisers
    sample = records.pick(sorted({place * len(records) // _SAMPLE for place in range(_SAMPLE)}))
    began = time.perf_counter()
    replaced, _ = surrogates.records(sample, TRAINED)
    each = (time.perf_counter() - began) / len(sample)
    others = len(records) + len(held_out or ()) - len(sample)
    clock.longer("surrogates", each * others)
    before, after = (sum(len(text) for one in part for text in texts_of(one)) for part in (sample, replaced))
    return after / max(before, 1)


def _package(request: PlanRequest, classes: int, say: Say) -> BottomPackage:
    spec, settings, num_labels = request.spec, request.settings, max(classes, 2)
    if settings.local_model is not None:
        return bottom_from_model(
            settings.local_model, spec.task, spec.cut, tail=spec.tail, num_labels=num_labels, seed=spec.train.seed
        )
    with Link(settings.endpoint) as link:
        return served_bottom(link, planned_bottom(spec), spec, settings.home, num_labels, say)


def _top(request: PlanRequest) -> Top | None:
    """The cloud's blocks, where this device has them."""
    spec, local = request.spec, request.settings.local_model
    if local is None:
        return None
    return Partition(load_task_model(local, spec.task)).top(spec.cut, spec.tail)


def _cloud(request: PlanRequest) -> tuple[CloudSpeed | None, Line | None]:
    """What the cloud has measured of itself, if anything, and the line to it."""
    control, spec = request.control, request.spec
    if control is None:
        return None, None
    try:
        line = probe_line(control)
    except PermissionDenied:  # a key that may not submit
        line = None
    found = control.model(spec.model).get("speed")
    speed = {name: _number(value) for name, value in (found if isinstance(found, dict) else {}).items()}
    needed = "train" if spec.gradients_leave else "forward"
    if speed.get(needed) is None:
        return None, line
    train, forward = speed.get("train"), speed.get("forward")
    return CloudSpeed(
        train=train,
        forward=forward if forward is not None else train and train * TRAINED_PASSES,
        shared=_shared(request),
        source="the cloud, of its own steps",
    ), line


def _shared(request: PlanRequest) -> bool:
    """Whether the cloud computes on this machine's cores."""
    return request.control is not None and is_loopback(request.control.host)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value < float("inf") else None


def _picked(
    request: PlanRequest, at: Callable[[int], tuple[JobSpec, Workload, Times]]
) -> tuple[tuple[JobSpec, Workload, Times], tuple[str, ...]]:
    """The batch that is worth it, where it was left open, and what was picked."""
    first = best = at(request.spec.train.batch_size)
    picks = [
        f"{one} {getattr(request.spec, one)} of `{request.protect}`" for one in ("cut", "tail") if one in request.open
    ]
    if "batch_size" not in request.open:
        return best, tuple(picks)
    for batch in BATCHES:
        found = at(batch)
        steps, seconds = found[1].steps, found[2].total
        if batch > best[0].train.batch_size and steps >= _LEAST_STEPS and seconds < _BETTER * best[2].total:
            best = found
    size, usual = best[0].train.batch_size, first[0].train.batch_size
    why = (
        "larger ones save no tenth of the time"
        if size == usual
        else f"{_saved(first[2], best[2]):.0%} faster than {usual}"
    )
    return best, (*picks, f"batch size {size}: {why}")


def _saved(before: Times, after: Times) -> float:
    return 1 - after.total / before.total
