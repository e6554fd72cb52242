"""The device's part of a model: bottom, head and tokenizer, from the owner's own copy or the cloud's package."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import privtune.split.v1.split_pb2 as pb
from privtune.device.link.download import fetch_folder
from privtune.device.link.rpc import Link
from privtune.device.noise.base import Mechanism
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.importance import TokenImportance
from privtune.device.noise.public_texts import PublicTexts
from privtune.device.noise.randomness import NoiseSource, noise_source
from privtune.device.noise.registry import build
from privtune.device.release.own_records import OwnRecords, importance_for
from privtune.device.release.perturber import Perturber
from privtune.device.release.release_store import ReleaseStore, release_fingerprint
from privtune.device.runtime.memory import trim
from privtune.shared import __version__
from privtune.shared.codec import encode, probe
from privtune.shared.job_spec import JobSpec, MechanismSpec
from privtune.shared.modeling.package import BottomPackage, bottom_from_model, load_bottom_package
from privtune.shared.wire import PROTOCOL_VERSION, codec_number

RELEASE_STORE_BYTES = 64 << 30
# Most positions for which public tables are made.
DEFAULT_POSITIONS = 512


def load_parts(
    link: Link,
    job_id: str,
    spec: JobSpec,
    *,
    home: Path,
    local_model: str | None,
    num_labels: int,
    say: Callable[[str], None],
) -> BottomPackage:
    """Bottom, head and tokenizer. The cloud's package is fetched once and checked against its hashes.

    The package comes from the adversary: prefer `local_model` where you have a copy that you trust.
    """
    if local_model is not None:
        return bottom_from_model(
            local_model, spec.task, spec.cut, tail=spec.tail, num_labels=num_labels, seed=spec.train.seed
        )
    manifest = b"".join(link.fetch(pb.ARTIFACT_KIND_BOTTOM, job_id, ""))
    folder = home / "bottoms" / hashlib.sha256(manifest).hexdigest()[:24]
    fetch_folder(link, pb.ARTIFACT_KIND_BOTTOM, job_id, folder, say)
    parts = load_bottom_package(folder, num_labels=num_labels, seed=spec.train.seed)
    trim()
    return parts


def noise_context(
    parts: BottomPackage,
    cut: int,
    home: Path,
    own: OwnRecords | None = None,
    *,
    source: NoiseSource | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> NoiseContext:
    """What mechanisms may know: the bottom, what the owner declared public, and noised counts of the job's records."""
    public = PublicTexts.load(home)
    context = NoiseContext.for_model(
        parts.bottom,
        parts.tokenizer,
        hidden_size=parts.hidden_size,
        cut=cut,
        longest=parts.max_positions and min(parts.max_positions, DEFAULT_POSITIONS),
        public_texts=public.texts,
        labelled_texts=public.labelled,
        cache=home / "tables",
        progress=progress,
    )
    if own is not None and source is not None:
        context.private_counts = own.counts(source)
        context.private_means = own.means(source)
    return context


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A mechanism ready to release, with all that rules what it draws."""

    mechanism: Mechanism
    importance: TokenImportance | None
    source: NoiseSource

    @property
    def law(self) -> str:
        """Names the law of noise: the same only where the same would be drawn from the same distribution."""
        # What a fixed seed drew is never taken for a real release later on.
        named = self.mechanism.fingerprint() + ("-fixed-seed" if self.source.unsafe else "")
        return named if self.importance is None else named + self.importance.fingerprint()


def build_noise(
    parts: BottomPackage,
    mechanism: MechanismSpec,
    cut: int,
    home: Path,
    own: OwnRecords | None = None,
    *,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Noise:
    """A mechanism on this bottom, seeded by the operating system. own: as in `build_perturber`."""
    source = noise_source()
    context = noise_context(parts, cut, home, own, source=source, progress=progress)
    built = build(mechanism, context)
    importance = importance_for(built.importance_from, context, own) if built.uses_importance else None
    return Noise(mechanism=built, importance=importance, source=source)


def build_perturber(
    parts: BottomPackage, spec: JobSpec, home: Path, own: OwnRecords | None = None
) -> tuple[Perturber, Mechanism, ReleaseStore]:
    """The job's mechanism and the store of its releases. The noise is seeded by the operating system.

    own: the job's records, for mechanisms that learn from them on this device.
    """
    noise = build_noise(parts, spec.mechanism, spec.cut, home, own)
    if own is not None:
        own.pin(noise.law)
    store = ReleaseStore(home / "releases.sqlite", release_scope(noise, parts, spec), RELEASE_STORE_BYTES)
    perturber = Perturber(parts.bottom, noise.mechanism, noise.source, store, spec.codec, noise.importance)
    return perturber, noise.mechanism, store


def release_scope(noise: Noise, parts: BottomPackage, spec: JobSpec) -> str:
    """Names what decides the bytes of a job's releases, next to the records: the store's and the transcript's scope."""
    return release_fingerprint(mechanism=noise.law, model=parts.fingerprint, cut=spec.cut, codec=spec.codec)


def open_request(
    parts: BottomPackage,
    job_id: str,
    spec: JobSpec,
    *,
    total_steps: int = 0,
    checkpoint_steps: list[int] | None = None,
    infer: bool = False,
) -> pb.OpenRequest:
    """The handshake of a session."""
    return pb.OpenRequest(
        protocol_version=PROTOCOL_VERSION,
        client_version=__version__,
        job_id=job_id,
        spec_fingerprint=spec.fingerprint(),
        hidden_size=parts.hidden_size,
        model_fingerprint=parts.fingerprint,
        codec=codec_number(spec.codec),  # type: ignore[arg-type]
        codec_probe=encode(probe(), spec.codec),
        checkpoint_steps=checkpoint_steps or [],
        total_steps=total_steps,
        infer=infer,
    )
