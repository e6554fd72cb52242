"""The request that opens a session with the cloud, and the table that its ids stand for."""

from __future__ import annotations

import privtune.split.v1.split_pb2 as pb
from privtune.device.link.rpc import Stream
from privtune.shared.codec import encode, probe
from privtune.shared.errors import FrameCorrupt
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.public_table import PublicTable
from privtune.shared.versions import OURS
from privtune.shared.wire import TABLE, codec_number


def open_request(
    package: BottomPackage,
    job_id: str,
    spec: JobSpec,
    holder: str,
    *,
    total_steps: int = 0,
    checkpoint_steps: list[int] | None = None,
    infer: bool = False,
    table: PublicTable | None = None,
) -> pb.OpenRequest:
    """What this device runs and how far it has come.

    holder: by which the cloud knows this device in this job.
    checkpoint_steps: those that it can go back to.
    table: what the ids that it sends stand for; None: it sends vectors.
    """
    return pb.OpenRequest(
        protocol_version=OURS.newest,
        oldest_protocol_version=OURS.oldest,
        client_version=OURS.version,
        job_id=job_id,
        spec_fingerprint=spec.fingerprint(),
        hidden_size=package.hidden_size,
        model_fingerprint=package.fingerprint,
        bottom_sha256=package.weights_sha256,
        codec=codec_number(spec.codec),  # type: ignore[arg-type]
        codec_probe=encode(probe(), spec.codec),
        checkpoint_steps=checkpoint_steps or [],
        total_steps=total_steps,
        infer=infer,
        table_sha256="" if table is None else table.sha256,
        holder=holder,
    )


def hand_over(table: PublicTable | None, stream: Stream, opened: pb.OpenResponse) -> None:
    """Send a session's table unless the cloud has it from an earlier one, and wait until it has.

    Raises FrameCorrupt when the cloud then has another, and as `Stream.expect`.
    """
    if table is None or opened.table_sha256 == table.sha256:
        return
    stream.send(table.to_message())
    answer = stream.expect(0, 0, TABLE).table
    if answer is None or answer.sha256 != table.sha256:
        raise FrameCorrupt("the cloud has another table than the one that was sent; nothing was sent that refers to it")
