"""The request that opens a session with the cloud."""

from __future__ import annotations

import privtune.split.v1.split_pb2 as pb
from privtune.shared import __version__
from privtune.shared.codec import encode, probe
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.wire import PROTOCOL_VERSION, codec_number


def open_request(
    package: BottomPackage,
    job_id: str,
    spec: JobSpec,
    *,
    total_steps: int = 0,
    checkpoint_steps: list[int] | None = None,
    infer: bool = False,
) -> pb.OpenRequest:
    """What this device runs and how far it has come. checkpoint_steps: those that it can go back to."""
    return pb.OpenRequest(
        protocol_version=PROTOCOL_VERSION,
        client_version=__version__,
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
    )
