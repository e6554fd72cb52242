"""How large an audit is: records, attacks and their settings, as `quick` (minutes) or `full` (hours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from privtune.device.audit.attacks.attribute import AttributeSettings
from privtune.device.audit.attacks.beam import BeamSettings
from privtune.device.audit.attacks.codebook import METRICS, Metric
from privtune.device.audit.attacks.learned import LearnedSettings
from privtune.device.audit.attacks.masked import MaskedSettings
from privtune.device.audit.attacks.optimise import OptimiseSettings
from privtune.device.audit.attacks.reader import ReaderSettings


@dataclass(frozen=True, kw_only=True)
class Size:
    """The extent of one run of the suite.

    public: records that attacks are built on.
    attacked: records that attribute inference runs on.
    inverted: how many of these inversion runs on.
    seeds: runs of every attack, each on a fresh draw of the releases.
    metrics: variants of EIA-1.
    tokenwise, sequence: EIA-2a and EIA-2b.
    optimise, optimise_records: EIA-3, and how many records it runs on; 0 leaves it out.
    beam, beam_records: EIA-1 with a language model, likewise.
    reader, masked: EIA-2c, and EIA-1 with a masked language model; None leaves them out.
    attribute: AIA-2.
    pooled: AIA-1 and AIA-3, and the estimate of utility.
    """

    name: Literal["quick", "full"]
    public: int
    attacked: int
    inverted: int
    seeds: int
    metrics: tuple[Metric, ...]
    tokenwise: LearnedSettings
    sequence: LearnedSettings
    optimise: OptimiseSettings
    optimise_records: int
    beam: BeamSettings
    beam_records: int
    reader: ReaderSettings | None
    masked: MaskedSettings | None
    attribute: AttributeSettings
    pooled: AttributeSettings


QUICK = Size(
    name="quick",
    public=1200,
    attacked=150,
    inverted=150,
    seeds=1,
    metrics=("euclidean", "bayes", "language", "content"),
    tokenwise=LearnedSettings(epochs=1, hidden=1024),
    sequence=LearnedSettings(epochs=1, encoder_rate=2e-4),
    optimise=OptimiseSettings(iterations=40),
    optimise_records=24,
    beam=BeamSettings(beams=4, candidates=16, shown=128),
    beam_records=24,
    reader=None,  # both take minutes
    masked=None,
    attribute=AttributeSettings(epochs=1, encoder_rate=2e-4),
    pooled=AttributeSettings(epochs=30),
)
FULL = Size(
    name="full",
    public=20_000,
    attacked=1000,
    inverted=1000,
    seeds=3,
    metrics=METRICS,
    tokenwise=LearnedSettings(epochs=10),
    sequence=LearnedSettings(epochs=10),
    optimise=OptimiseSettings(),
    optimise_records=100,
    beam=BeamSettings(),
    beam_records=100,
    reader=ReaderSettings(),
    masked=MaskedSettings(),
    attribute=AttributeSettings(epochs=10),
    pooled=AttributeSettings(epochs=30),
)
