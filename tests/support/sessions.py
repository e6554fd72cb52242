"""Sessions opened by hand: the device's side of the protocol without a job's run around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from privtune.device.home.job_folder import JobFolder
from privtune.device.link.rpc import Link, Stream
from privtune.device.session.handshake import open_request
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import bottom_from_model
from privtune.split.v1 import split_pb2 as pb
from tests.support.leases import HOLDER
from tests.support.world import World


def request_for(world: World, job_id: str, spec: JobSpec, *, holder: str = "", **changes: object) -> pb.OpenRequest:
    """What a device that fits the job sends to open it; without `holder`, the device that has the job."""
    parts = bottom_from_model(str(world.models[spec.model]), spec.task, spec.cut, tail=spec.tail)
    holder = holder or JobFolder(world.settings.home, job_id).holder() or HOLDER
    return open_request(parts, job_id, spec, holder, **{"total_steps": 20, **changes})


@contextlib.contextmanager
def streaming(link: Link, request: pb.OpenRequest, *, patience: float = 20) -> Iterator[Stream]:
    """An open session's stream, cut at the end."""
    stream = link.stream(link.open(request), request.job_id, infer=request.infer, patience=patience)
    try:
        yield stream
    finally:
        stream.abort()
