"""Seconds and money, from what is to be done and what it takes here, on the line and in the cloud."""

from __future__ import annotations

from dataclasses import dataclass

from privtune.device.plan.calibration import Calibration
from privtune.device.plan.line import Line
from privtune.device.plan.workload import Stage, Workload
from privtune.shared.job_spec import JobSpec

TRAINED_PASSES = 3.0  # forward passes that a trained position takes: forward, backward, adapters
HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class CloudSpeed:
    """Tokens through one block a second; None: not known.

    shared: the cloud computes on this machine's cores.
    source: who measured it.
    """

    train: float | None
    forward: float | None
    shared: bool
    source: str

    @classmethod
    def here(cls, top: float | None, blocks: int, *, shared: bool = False) -> CloudSpeed:
        """A cloud as fast as this machine. top: seconds of a position through its blocks, forward."""
        forward = None if top is None else blocks / top
        return cls(
            train=None if forward is None else forward / TRAINED_PASSES,
            forward=forward,
            shared=shared,
            source="unknown" if top is None else "this machine, as if it were the cloud",
        )


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a part of the job.

    device, cloud, line: what each is busy for; cloud: None where its speed is not known.
    total: of the part, in which they overlap.
    """

    device: float
    cloud: float | None
    line: float
    total: float

    def __add__(self, other: Times) -> Times:
        unknown = self.cloud is None or other.cloud is None
        return Times(
            device=self.device + other.device,
            cloud=None if unknown else (self.cloud or 0.0) + (other.cloud or 0.0),
            line=self.line + other.line,
            total=self.total + other.total,
        )

    @property
    def limit(self) -> str:
        """What takes longest."""
        known = {"device": self.device, "line": self.line, "cloud": self.cloud or 0.0}
        return max(known, key=known.__getitem__)


def times_of(
    spec: JobSpec, work: Workload, here: Calibration, cloud: CloudSpeed, line: Line | None, blocks: int
) -> Times:
    """From the first step to the last evaluation. line: None: as fast as anything. blocks: the cloud's."""
    gradients = spec.gradients_leave
    trained = _part(
        work.training,
        each=here.learn,
        here=here,
        fixed=work.steps * here.step,
        speed=_per_position(cloud.train if gradients else cloud.forward, blocks * (2 if spec.zeroth_order.on else 1)),
        serial=here.learn * work.training.positions if gradients else 0.0,
        waits=work.steps + work.training.batches / (1 if gradients else spec.train.in_flight),
        line=line,
        shared=cloud.shared,
    )
    if work.evaluation is None:
        return trained
    return trained + _part(
        work.evaluation,
        each=here.score,
        here=here,
        fixed=0.0,
        speed=_per_position(cloud.forward, blocks),
        serial=0.0,
        waits=work.evaluation.batches / spec.train.in_flight,
        line=line,
        shared=cloud.shared,
    )


def _per_position(speed: float | None, blocks: int) -> float | None:
    """Seconds."""
    return None if speed is None else blocks / speed


def _part(
    part: Stage,
    *,
    each: float,
    here: Calibration,
    fixed: float,
    speed: float | None,
    serial: float,
    waits: float,
    line: Line | None,
    shared: bool,
) -> Times:
    """each: seconds of the device for a position. serial: of the device while the cloud waits. waits: round trips."""
    device = part.positions * each + part.fresh * here.draw + (part.positions - part.fresh) * here.again + fixed
    cloud = None if speed is None else part.asked * speed
    sending = 0.0 if line is None else max(part.up / line.up, part.down / line.down)
    waiting = 0.0 if line is None else waits * line.round_trip
    computing = cloud or 0.0
    # On one machine both take turns on the same cores. Apart, the longest of what overlaps counts.
    total = device + computing if shared else max(device, computing + serial + waiting, sending)
    return Times(device=device, cloud=cloud, line=sending + waiting, total=total + (waiting if shared else 0.0))
