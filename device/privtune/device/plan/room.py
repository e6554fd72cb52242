"""Memory and disk that a job takes on both sides."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from privtune.device.plan.workload import Workload
from privtune.shared.codec import row_bytes
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.modeling.load import build_task_model
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.training_size import FLOAT, graph_bytes, trained_weights, weight_bytes

_PROCESS = 400 << 20  # of a device without its model (docs/memory.md)
_RECOGNISERS = 220 << 20  # libraries that stay once records are replaced
_MOMENTS = 3 * FLOAT  # a trained weight in a checkpoint, with two moments
_CHECKPOINTS = 2  # kept at a time
_SQLITE = 1.1  # of what is stored


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bytes; memory at its peak, disk at the end."""

    device_memory: int
    device_disk: int
    cloud_memory: int
    cloud_disk: int


def room_of(
    spec: JobSpec, package: BottomPackage, work: Workload, *, trained_here: int, whole: bool, frames: bool
) -> Room:
    """What the job takes.

    trained_here: weights that train on the device.
    whole: the device loads the owner's own copy of the model, and keeps its part of it.
    frames: everything that is sent and received is kept.
    """
    model = Partition(build_task_model(package.bottom.config, spec.task))  # on the meta device: shapes alone
    base, top = _bytes(model.model), model.top(spec.cut, spec.tail)
    trained = 0 if spec.tail else trained_weights(top, spec.tuning)
    mine = _bytes(package.bottom, package.head, *([package.tail] if package.tail is not None else []))
    here = mine + (4 * FLOAT * trained_here if spec.tail else 0)
    blocks, waiting = package.n_layers - spec.cut - spec.tail, min(spec.train.in_flight, spec.train.accumulation)
    graph = graph_bytes(
        work.widest, package.hidden_size, blocks, recomputed=spec.tuning.gradient_checkpointing or spec.tail > 0
    )
    states = work.rows * row_bytes(package.hidden_size, spec.output_codec) if spec.tail else 0
    kept = (_CHECKPOINTS + spec.train.candidates) * _MOMENTS
    return Room(
        device_memory=_PROCESS + (_RECOGNISERS if spec.surrogates.on else 0) + max(here, base if whole else 0),
        device_disk=round(_SQLITE * (work.stored + states))
        + kept * trained_here
        + (0 if whole else mine)
        + (work.up + work.down if frames else 0),
        cloud_memory=base + weight_bytes(trained) + waiting * graph + work.stored,
        cloud_disk=(kept + FLOAT) * trained + mine,
    )


def _bytes(*parts: nn.Module) -> int:
    """Each tensor once, however many parts share it."""
    return sum({id(weight): weight.nbytes for part in parts for weight in part.parameters()}.values())
