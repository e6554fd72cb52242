"""The settings of each mechanism: frozen, keyword-only, with ranges. Free of torch, so that listing is quick."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

InjectionPoint = Literal["embedding", "cut"]

INJECTION = (
    "Where the noise goes in: on the bottom's output (cut), or after the embedding layer, so that the frozen blocks "
    "run on noised vectors (embedding; a changed token then changes one noised vector only)."
)


class Params(BaseModel):
    """Base of every mechanism's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoneParams(Params):
    """`none` has no settings."""


class ClipParams(Params):
    """Clipping before the noise, without which there is no bound at the cut."""

    injection: InjectionPoint = Field("cut", description=INJECTION)
    clip: float | None = Field(None, gt=0, description="Length R to which every vector is clipped before the noise.")
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


class DChiParams(ClipParams):
    """d_chi noise: give the noise's length relative to the signal's, or the rate itself."""

    noise_ratio: float = Field(
        6.0,
        gt=0,
        le=10_000,
        description="Expected length of the noise over the model's typical vector length. Measured on a small encoder: "
        "at 3 a nearest-neighbour attack still finds most words.",
    )
    eta: float | None = Field(None, gt=0, description="The rate itself, 1 / distance; instead of noise_ratio.")

    @model_validator(mode="after")
    def _one_way_to_scale(self) -> DChiParams:
        if self.eta is not None and "noise_ratio" in self.model_fields_set:
            raise ValueError("give eta or noise_ratio, not both")
        return self


class GaussianParams(ClipParams):
    """Gaussian noise for a wanted (epsilon, delta) a position."""

    epsilon: float = Field(16.0, gt=0, le=10_000, description="Wanted epsilon of one position.")
    delta: float = Field(1e-5, gt=0, lt=1, description="Wanted delta of one position.")

    @model_validator(mode="after")
    def _needs_clipping(self) -> GaussianParams:
        if self.clip is None and self.clip_ratio == 0:
            raise ValueError("gaussian noise is calibrated to a clipping length: clip_ratio can't be 0")
        return self


TABLE = (
    "sha256:HASH (12 digits or more) of a table file on this device (`privtune tables add`) to use instead of making "
    "one; empty: make one."
)


class GraphParams(Params):
    """The token graph."""

    neighbours: int = Field(10, ge=1, le=256, description="Nearest neighbours of a token in the graph.")


class PrivTuneParams(DChiParams, GraphParams):
    """PrivTune: d_chi noise whose mean is moved to an optimal direction of each token."""

    shift: float = Field(1.0, ge=0, le=4, description="Share of the optimal shift that is applied; 0: plain d_chi.")
    hops: int = Field(2, ge=1, le=4, description="The anchor is this many edges away in the token graph.")
    rivals: int = Field(24, ge=1, le=256, description="Nearer tokens that the shifted vector must be farther from.")
    steps: int = Field(40, ge=1, le=1000, description="Steps of projected gradient descent.")
    w_inversion: float = Field(1.0, ge=0, le=100, description="Weight of the inversion goal; 0: off.")
    w_attribute: float = Field(0.3, ge=0, le=100, description="Weight of leaving the own cluster; 0: off.")
    w_consistency: float = Field(0.3, ge=0, le=100, description="Weight of prediction consistency; 0: off.")
    tau: float = Field(0.4, ge=0, lt=1, description="Least cosine of shifted and own vector (centred); 0: off.")
    rho: float = Field(
        0.25, ge=0, lt=1, description="Largest change of mean and deviation over coordinates, in deviations; 0: off."
    )
    table: str = Field("", pattern=r"^(sha256:)?[0-9a-f]*$", max_length=71, description=TABLE)
    importance: Literal["off", "scale", "gain"] = Field(
        "off",
        description="scale: important tokens get less noise (the paper's; no bound is left); gain: unimportant tokens "
        "get a weaker signal under equal noise (keeps a bound).",
    )
    importance_from: Literal["private", "public"] = Field(
        "private", description="What the importance is fitted on; private records leave no claim."
    )
    least: float = Field(
        0.5, gt=0, le=1, description="Noise of the most important tokens (scale), signal of the least important (gain)."
    )


class ClusterParams(Params):
    """Public clusters of the vocabulary."""

    target: Literal["centre", "mixture"] = Field(
        "centre",
        description="What stands for a token: its cluster's centre at a typical length, or a word drawn from its "
        "cluster, read by the model in its new company.",
    )
    cluster_size: int = Field(96, ge=1, le=100_000, description="Least tokens in a cluster.")
    max_share: float = Field(
        0.25, gt=0, le=1, description="Largest share that one word may have of its cluster's public frequency."
    )
    frequency_weight: float = Field(
        0.3, ge=0, le=100, description="How alike in frequency a cluster's words should be, next to their meaning."
    )
    groups: Literal["none", "public", "private", "both"] = Field(
        "none",
        description="Words that speak for different classes never share a cluster: told by public labelled texts or "
        "words (public), by the private records' own counts under noise (private), or by both together.",
    )
    grades: int = Field(
        0,
        ge=0,
        le=64,
        description="One cluster for each class and grade of how loudly a word speaks for it, every word graded; 0: "
        "clusters by meaning inside the words that speak for a class and the others.",
    )
    silent: int = Field(
        100,
        ge=0,
        le=10_000,
        description="grades: so many of the most frequent words share one cluster unless they speak very loudly; "
        "context gives them away first.",
    )
    loud: float = Field(
        2.0, ge=0, le=100, description="grades: standard deviations of the scores that count as very loud."
    )
    significance: float = Field(
        2.0, ge=0, le=100, description="Standard deviations above chance at which a word speaks for a class."
    )
    group_size: int = Field(32, ge=1, le=100_000, description="Least tokens in a cluster of words that speak.")
    epsilon_counts: float = Field(
        1.0, gt=0, le=100, description="groups=private, both: what the counts cost each record, once a data set."
    )
    count_words: int = Field(
        8, ge=1, le=1000, description="groups=private, both: different words that a record adds to the counts."
    )
    epsilon_cluster: float = Field(
        0.0, ge=0, le=100, description="Randomised response between clusters with this budget a token; 0: off."
    )
    table: str = Field("", pattern=r"^(sha256:)?[0-9a-f]*$", max_length=71, description=TABLE)

    @model_validator(mode="after")
    def _grades_need_classes(self) -> ClusterParams:
        if self.grades and self.groups == "none":
            raise ValueError("grades say how loudly a word speaks for a class: set groups to public, private or both")
        return self


class SharedParams(ClusterParams):
    """One target for a whole public cluster, optionally with d_chi noise and randomised response."""

    injection: InjectionPoint = Field("cut", description=INJECTION)
    noise_ratio: float = Field(0.0, ge=0, le=10_000, description="Extra d_chi noise over the typical length; 0: none.")


class PoolParams(ClusterParams, ClipParams):
    """Sums of neighbouring vectors, on top of clusters or of the clipped vectors themselves."""

    size: int = Field(4, ge=2, le=64, description="Neighbouring vectors in one sum.")
    clusters: bool = Field(True, description="Sum cluster targets; false: the clipped vectors themselves.")
    noise_ratio: float = Field(0.0, ge=0, le=10_000, description="d_chi noise over the typical length; 0: none.")


class CodesParams(Params):
    """The nearest of K public vectors in place of each contextual one."""

    codes: int = Field(64, ge=2, le=4096, description="Codes: few tell little of words, many serve the task better.")
    dims: int = Field(8, ge=1, le=256, description="Principal components of public states that a code is chosen by.")
    task: Literal["none", "public", "private"] = Field(
        "none",
        description="Whether codes also follow the directions that tell the classes apart: from public labelled texts "
        "or words (public), or from the private records' class means under noise (private).",
    )
    task_use: Literal["show", "hide"] = Field(
        "show",
        description="hide: codes are chosen by what goes along with no task direction, so that they tell little of the "
        "class. For jobs whose device does the task itself (a tail with a tuned skip).",
    )
    task_weight: float = Field(
        2.0, gt=0, le=100, description="Weight of a task direction next to all principal components together."
    )
    epsilon_task: float = Field(
        4.0, gt=0, le=100, description="task=private: what the class means cost each record, once a data set."
    )
    epsilon_code: float = Field(
        0.0, ge=0, le=100, description="Randomised response between codes with this budget a position; 0: off."
    )


class SndParams(Params):
    """Split-N-Denoise's noise: d_chi on clipped token embeddings."""

    noise_ratio: float = Field(6.0, gt=0, le=10_000, description="Expected noise over the typical embedding's length.")
    clip_ratio: float = Field(1.25, gt=0, le=100, description="Clipping length over the typical embedding's length.")


class SapParams(DChiParams):
    """Split-and-Privatize: d_chi noise, less of it on the tokens that contribute most."""

    contributing: float = Field(0.2, ge=0, le=1, description="Share of a record's tokens that count as contributing.")
    kept_noise: float = Field(0.3, gt=0, le=1, description="Their noise, as a share of the others'.")
    importance_from: Literal["private", "public"] = Field(
        "private", description="What the importance is fitted on; no claim is left either way."
    )


class TextObfuscatorParams(ClipParams):
    """TextObfuscator's noise: pulled towards the cluster's prototype, then Laplace noise a coordinate."""

    cluster_size: int = Field(64, ge=1, le=100_000, description="Least tokens in a cluster.")
    pull: float = Field(0.5, ge=0, le=1, description="How far a vector is moved to its cluster's prototype.")
    noise_ratio: float = Field(3.0, gt=0, le=10_000, description="Expected noise over the typical vector's length.")


class CusTextParams(Params):
    """CusText: the exponential mechanism over a token's own output set."""

    injection: InjectionPoint = Field("cut", description=INJECTION)
    epsilon: float = Field(3.0, gt=0, le=1000, description="Budget of one token inside its output set.")
    set_size: int = Field(20, ge=2, le=1000, description="Words in an output set.")
