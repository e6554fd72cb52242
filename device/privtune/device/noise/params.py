"""The settings of each mechanism: frozen, with ranges and help. Free of torch, so that listing is quick."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

InjectionPoint = Literal["embedding", "cut"]

INJECTION = (
    "Where the noise is added: to the bottom's output (cut), or after the embedding layer, so that the frozen blocks "
    "run on noised vectors (embedding; a changed token then changes only one noised vector)."
)


Support = Literal["whole", "rectified", "truncated"]
AggregateNoise = Literal["pure", "whole", "rectified", "truncated"]

Weaker = Literal["below", "above", "set"]  # than its default: which value of a parameter protects less


class Params(BaseModel):
    """Base of every mechanism's settings.

    weaker: the parameters that decide how strongly a mechanism protects; a device's policy bounds them at their
        defaults. "set": at any value other than the default, because it takes the place of a bounded parameter.
    shortens: the mechanism may return fewer rows than a record has tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    weaker: ClassVar[Mapping[str, Weaker]] = {}
    shortens: ClassVar[bool] = False

    @property
    def labelled_by(self) -> str | None:
        """The setting for which the job's own records need labels, like "task=private"; None: there is none."""
        return None

    def resolved(self) -> dict[str, Any]:
        """Each parameter as it takes effect, whichever others it depends on; None: the model decides."""
        return self.model_dump()


class NoneParams(Params):
    """`none` has no settings."""


class ClipParams(Params):
    """Clipping before the noise; without it there is no bound at the cut."""

    weaker = {"clip_ratio": "above", "clip": "set"}

    injection: InjectionPoint = Field("cut", description=INJECTION)
    clip: float | None = Field(
        None, gt=0, description="Length R to which every vector is clipped before noise is added."
    )
    clip_ratio: float = Field(
        1.25,
        ge=0,
        le=100,
        description="R as a multiple of the model's typical vector length; 0: no clipping, no bound.",
    )

    @model_validator(mode="after")
    def _one_way_to_clip(self) -> ClipParams:
        if self.clip is not None and "clip_ratio" in self.model_fields_set:
            raise ValueError("give clip or clip_ratio, not both")
        return self

    def resolved(self) -> dict[str, Any]:
        """clip_ratio is infinite without clipping."""
        ratio = None if self.clip is not None else self.clip_ratio or math.inf
        return {**super().resolved(), "clip_ratio": ratio}


class DChiParams(ClipParams):
    """d_chi noise: its length relative to the signal's, or the rate itself."""

    weaker = {**ClipParams.weaker, "noise_ratio": "below", "eta": "set"}

    noise_ratio: float = Field(
        6.0,
        gt=0,
        le=10_000,
        description="Expected length of the noise, relative to the model's typical vector length. On a small encoder, "
        "a nearest-neighbour attack still finds most words at 3.",
    )
    eta: float | None = Field(None, gt=0, description="The noise rate itself (1 / distance), instead of noise_ratio.")

    @model_validator(mode="after")
    def _one_way_to_scale(self) -> DChiParams:
        if self.eta is not None and "noise_ratio" in self.model_fields_set:
            raise ValueError("give eta or noise_ratio, not both")
        return self

    @property
    def least_noise(self) -> float:
        """Length of the noise of the token that gets least, relative to the length asked for."""
        return 1.0

    def resolved(self) -> dict[str, Any]:
        """noise_ratio is that of the token that gets least noise."""
        ratio = None if self.eta is not None else self.noise_ratio * self.least_noise
        return {**super().resolved(), "noise_ratio": ratio}


SUPPORT = (
    "whole: plain Gaussian noise. rectified: values outside a public box move to its edge. truncated: values are drawn "
    "given that they fall into the box. All have one worst case."
)
AGGREGATE_NOISE = (
    "the noise of what is fitted on the records. pure: d_chi or Laplace noise, with an epsilon and no delta. whole, "
    "rectified, truncated: Gaussian noise, over all values or within a public box."
)
SUPPORT_RATIO = "Half the width of the box of bounded support, in standard deviations of the noise."


class GaussianParams(ClipParams):
    """Gaussian noise for a target (epsilon, delta) per position."""

    weaker = {"epsilon": "above", "delta": "above"}

    epsilon: float = Field(16.0, gt=0, le=10_000, description="Target epsilon of one position.")
    delta: float = Field(1e-5, gt=0, lt=1, description="Target delta of one position.")
    support: Support = Field("whole", description=SUPPORT)
    support_ratio: float = Field(1.0, gt=0, le=1000, description=SUPPORT_RATIO)

    @model_validator(mode="after")
    def _needs_clipping(self) -> GaussianParams:
        if self.clip is None and self.clip_ratio == 0:
            raise ValueError("gaussian noise is calibrated to a clipping length: clip_ratio can't be 0")
        return self


TABLE = (
    "Use this table file of the device (`privtune tables add`) instead of making one: sha256:HASH, at least 12 digits; "
    "empty: make one."
)


class PrivTuneParams(DChiParams):
    """PrivTune: d_chi noise whose mean is moved to an optimal direction of each token."""

    shift: float = Field(1.0, ge=0, le=4, description="Share of the optimal shift to apply; 0: plain d_chi noise.")
    neighbours: int = Field(10, ge=1, le=256, description="Nearest neighbours of each token in the token graph.")
    hops: int = Field(2, ge=1, le=4, description="Distance of the anchor in the graph, in edges.")
    rivals: int = Field(
        24, ge=1, le=256, description="Number of nearer tokens that the shifted vector must move away from."
    )
    steps: int = Field(40, ge=1, le=1000, description="Steps of projected gradient descent.")
    w_inversion: float = Field(1.0, ge=0, le=100, description="Weight of the inversion goal; 0: off.")
    w_attribute: float = Field(0.3, ge=0, le=100, description="Weight of leaving the token's own cluster; 0: off.")
    w_consistency: float = Field(0.3, ge=0, le=100, description="Weight of prediction consistency; 0: off.")
    tau: float = Field(
        0.4, ge=0, lt=1, description="Smallest cosine between shifted and original vector (centred); 0: off."
    )
    rho: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Largest change of mean and standard deviation over coordinates, in standard deviations; 0: off.",
    )
    table: str = Field("", pattern=r"^(sha256:)?[0-9a-f]*$", max_length=71, description=TABLE)
    importance: Literal["off", "scale", "gain"] = Field(
        "off",
        description="scale: important tokens get less noise (as in the paper; no bound remains). gain: unimportant "
        "tokens get a weaker signal under equal noise (a bound remains).",
    )
    importance_from: Literal["private", "public"] = Field(
        "private", description="What the importance is fitted on; with private records nothing can be claimed."
    )
    least: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Factor on the noise of the most important tokens (scale), or on the signal of the least (gain).",
    )

    @property
    def least_noise(self) -> float:
        """The most important token's."""
        return self.least if self.importance == "scale" else 1.0


class ClusterParams(Params):
    """Public clusters of the vocabulary."""

    weaker = {
        "cluster_size": "below",
        "max_share": "above",
        "group_size": "below",
        "epsilon_counts": "above",
        "counts_delta": "above",
        "epsilon_cluster": "above",
    }

    target: Literal["centre", "mixture"] = Field(
        "centre",
        description="What replaces a token: its cluster's centre, scaled to a typical length, or a word drawn from its "
        "cluster, which the model reads in the context of the other drawn words.",
    )
    cluster_size: int = Field(96, ge=1, le=100_000, description="Smallest number of tokens in a cluster.")
    max_share: float = Field(
        0.25, gt=0, le=1, description="Largest share of its cluster's public frequency that one word may have."
    )
    frequency_weight: float = Field(
        0.3, ge=0, le=100, description="Weight of similar frequency, relative to similar meaning, within a cluster."
    )
    groups: Literal["none", "public", "private", "both"] = Field(
        "none",
        description="Keep words that indicate different classes in different clusters, as learned from public labelled "
        "texts or words (public), from the private records' own word counts under noise (private), or from both.",
    )
    grades: int = Field(
        0,
        ge=0,
        le=64,
        description="Grade every word by how strongly it indicates a class, with one cluster per class and grade; 0: "
        "cluster by meaning, separately within the words that indicate each class and within all others.",
    )
    silent: int = Field(
        100,
        ge=0,
        le=10_000,
        description="grades: this many of the most frequent words share one cluster unless they are loud; they are the "
        "first that context gives away.",
    )
    loud: float = Field(
        2.0,
        ge=0,
        le=100,
        description="grades: number of standard deviations of the scores above which a word counts as loud.",
    )
    significance: float = Field(
        2.0, ge=0, le=100, description="Number of standard deviations above chance at which a word indicates a class."
    )
    group_size: int = Field(
        32, ge=1, le=100_000, description="Smallest number of tokens in a cluster of words that indicate a class."
    )
    epsilon_counts: float = Field(
        1.0,
        gt=0,
        le=100,
        description="groups=private, both: epsilon that the word counts cost each record, once per data set.",
    )
    counts_noise: AggregateNoise = Field("pure", description=f"groups=private, both: {AGGREGATE_NOISE}")
    counts_delta: float = Field(1e-6, gt=0, lt=1, description="Delta of the counts under Gaussian noise.")
    counts_support_ratio: float = Field(3.0, gt=0, le=1000, description=SUPPORT_RATIO)
    count_words: int = Field(
        8,
        ge=1,
        le=1000,
        description="groups=private, both: largest number of different words that a record adds to the counts.",
    )
    epsilon_cluster: float = Field(
        0.0, ge=0, le=100, description="Randomised response between clusters with this epsilon per token; 0: off."
    )

    table: str = Field("", pattern=r"^(sha256:)?[0-9a-f]*$", max_length=71, description=TABLE)

    @model_validator(mode="after")
    def _grades_need_classes(self) -> ClusterParams:
        if self.grades and self.groups == "none":
            raise ValueError("grades rank words by class: set groups to public, private or both")
        return self

    @property
    def labelled_by(self) -> str | None:
        """See `Params`; a table that was made elsewhere needs none."""
        return f"groups={self.groups}" if self.groups in ("private", "both") and not self.table else None

    def resolved(self) -> dict[str, Any]:
        """epsilon_cluster is infinite without randomised response."""
        return {**super().resolved(), "epsilon_cluster": self.epsilon_cluster or math.inf}


class SharedParams(ClusterParams):
    """One target for each public cluster, optionally with d_chi noise and randomised response."""

    injection: InjectionPoint = Field("cut", description=INJECTION)
    noise_ratio: float = Field(
        0.0,
        ge=0,
        le=10_000,
        description="Length of additional d_chi noise, relative to the typical vector length; 0: none.",
    )


class PoolParams(ClusterParams, ClipParams):
    """Sums of neighbouring vectors, on top of clusters or of the clipped vectors themselves."""

    weaker = {**ClusterParams.weaker, **ClipParams.weaker, "size": "below", "clusters": "set"}
    shortens = True

    size: int = Field(4, ge=2, le=64, description="Number of neighbouring vectors in one sum.")
    clusters: bool = Field(True, description="Sum cluster targets; false: the clipped vectors themselves.")
    noise_ratio: float = Field(
        0.0, ge=0, le=10_000, description="Length of the d_chi noise, relative to the typical vector length; 0: none."
    )


class CodesParams(Params):
    """Each contextual vector replaced by the nearest of K public ones."""

    weaker = {"codes": "above", "epsilon_task": "above", "task_delta": "above", "epsilon_code": "above"}

    codes: int = Field(
        64, ge=2, le=4096, description="Number of codes: few reveal little about words, many serve the task better."
    )
    dims: int = Field(
        8, ge=1, le=256, description="Number of principal components of public states that codes are chosen by."
    )
    task: Literal["none", "public", "private"] = Field(
        "none",
        description="Also choose codes by the directions that tell the classes apart, from public labelled texts or "
        "words (public) or from the private records' class means under noise (private).",
    )
    task_use: Literal["show", "hide"] = Field(
        "show",
        description="hide: choose codes by what is uncorrelated with every task direction, so that they reveal little "
        "about the class. For jobs whose device does the task itself (a tail with a tuned skip).",
    )
    task_weight: float = Field(
        2.0, gt=0, le=100, description="Weight of one task direction, relative to all principal components together."
    )
    epsilon_task: float = Field(
        4.0, gt=0, le=100, description="task=private: epsilon that the class means cost each record, once per data set."
    )
    task_noise: AggregateNoise = Field("pure", description=f"task=private: {AGGREGATE_NOISE}")
    task_delta: float = Field(1e-6, gt=0, lt=1, description="Delta of the class means under Gaussian noise.")
    task_support_ratio: float = Field(3.0, gt=0, le=1000, description=SUPPORT_RATIO)
    epsilon_code: float = Field(
        0.0, ge=0, le=100, description="Randomised response between codes with this epsilon per position; 0: off."
    )

    @model_validator(mode="after")
    def _known_to_hide(self) -> CodesParams:
        if self.task == "none" and self.task_use == "hide":
            raise ValueError("task_use=hide needs to know what is hidden: set task=public or task=private")
        return self

    @property
    def labelled_by(self) -> str | None:
        """See `Params`."""
        return "task=private" if self.task == "private" else None

    def resolved(self) -> dict[str, Any]:
        """epsilon_code is infinite without randomised response."""
        return {**super().resolved(), "epsilon_code": self.epsilon_code or math.inf}


class SndParams(Params):
    """Split-N-Denoise's noise: d_chi on clipped token embeddings."""

    weaker = {"noise_ratio": "below", "clip_ratio": "above"}

    noise_ratio: float = Field(
        6.0, gt=0, le=10_000, description="Expected length of the noise, relative to the typical embedding."
    )
    clip_ratio: float = Field(1.25, gt=0, le=100, description="Clipping length, relative to the typical embedding.")


class SapParams(DChiParams):
    """Split-and-Privatize: d_chi noise, weaker on the tokens that contribute most."""

    # noise_ratio is a contributing token's, as it takes effect: the others get that divided by kept_noise.
    weaker = {**DChiParams.weaker, "contributing": "above", "kept_noise": "above"}

    contributing: float = Field(0.2, ge=0, le=1, description="Share of a record's tokens that count as contributing.")
    kept_noise: float = Field(0.3, gt=0, le=1, description="Noise on contributing tokens, as a share of the others'.")
    importance_from: Literal["private", "public"] = Field(
        "private", description="What the importance is fitted on; nothing can be claimed either way."
    )

    @property
    def least_noise(self) -> float:
        """A contributing token's."""
        return self.kept_noise


class TextObfuscatorParams(ClipParams):
    """TextObfuscator's noise: vectors pulled towards their cluster's prototype, then Laplace noise."""

    weaker = {**ClipParams.weaker, "noise_ratio": "below", "pull": "below", "cluster_size": "below"}

    cluster_size: int = Field(64, ge=1, le=100_000, description="Smallest number of tokens in a cluster.")
    pull: float = Field(
        0.5, ge=0, le=1, description="How far each vector is moved towards its cluster's prototype; 1: onto it."
    )
    noise_ratio: float = Field(
        3.0, gt=0, le=10_000, description="Expected length of the noise, relative to the typical vector length."
    )


class CusTextParams(Params):
    """CusText: the exponential mechanism over each token's output set."""

    weaker = {"epsilon": "above", "set_size": "below"}

    injection: InjectionPoint = Field("cut", description=INJECTION)
    epsilon: float = Field(3.0, gt=0, le=1000, description="Epsilon of one token within its output set.")
    set_size: int = Field(20, ge=2, le=1000, description="Number of words in an output set.")
