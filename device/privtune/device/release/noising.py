"""The noise of a job on its bottom: the mechanism, what it may know, and what identifies its releases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from privtune.device.noise.base import Mechanism
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.importance import TokenImportance
from privtune.device.noise.public_texts import PublicTexts
from privtune.device.noise.randomness import NoiseSource, noise_source
from privtune.device.noise.registry import build
from privtune.device.release.filler import Padding
from privtune.device.release.own_records import OwnRecords, importance_for
from privtune.device.release.release_store import release_fingerprint
from privtune.shared.job_spec import JobSpec, MechanismSpec
from privtune.shared.modeling.bottom_package import BottomPackage

MAX_TABLE_POSITIONS = 512  # public tables cover at most this many


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A mechanism ready to release.

    mechanism: built on the job's bottom.
    importance: weights of tokens, where the mechanism uses them.
    source: the generator that it draws from.
    padding: of the records' lengths; None: they keep them.
    """

    mechanism: Mechanism
    importance: TokenImportance | None
    source: NoiseSource
    padding: Padding | None = None

    @property
    def fingerprint(self) -> str:
        """Identifies the noise distribution: equal only where the same would be drawn from the same distribution."""
        # What a fixed seed drew must never pass for a real release later on.
        named = self.mechanism.fingerprint() + ("-fixed-seed" if self.source.unsafe else "")
        named += "" if self.padding is None else self.padding.fingerprint
        return named if self.importance is None else named + self.importance.fingerprint()


def noise_context(
    package: BottomPackage,
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
        package.bottom,
        package.tokenizer,
        hidden_size=package.hidden_size,
        cut=cut,
        longest=package.max_positions and min(package.max_positions, MAX_TABLE_POSITIONS),
        public_texts=public.texts,
        labelled_texts=public.labelled,
        cache=home / "tables",
        progress=progress,
    )
    if own is not None and source is not None:
        context.private_counts = own.counts(source)
        context.private_means = own.means(source)
    return context


def build_noise(
    package: BottomPackage,
    mechanism: MechanismSpec,
    cut: int,
    home: Path,
    own: OwnRecords | None = None,
    *,
    job: JobSpec | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Noise:
    """A mechanism on this bottom, seeded by the operating system.

    own: the job's records, for mechanisms that learn from them on this device.
    job: whose records are padded as it says; None: they are not.
    """
    source = noise_source()
    context = noise_context(package, cut, home, own, source=source, progress=progress)
    built = build(mechanism, context)
    importance = importance_for(built.importance_from, context, own) if built.uses_importance else None
    padding = None if job is None else Padding.of(job, package, built)
    return Noise(mechanism=built, importance=importance, source=source, padding=padding)


def release_scope(noise: Noise, package: BottomPackage, spec: JobSpec) -> str:
    """Identifies all that decides the bytes of a release but the record: the scope of store and transcript."""
    table = noise.mechanism.table
    codec = spec.codec if table is None else f"{table.codec} {table.sha256}"  # an id means its row of this very table
    return release_fingerprint(mechanism=noise.fingerprint, model=package.fingerprint, cut=spec.cut, codec=codec)
