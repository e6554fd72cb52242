"""Clusters of the vocabulary and their centres: made here, or read from a file that somebody else made.

A table is `cluster_V`, the cluster of each token id (-1: a special token, whose position is public), and `centre_KD`,
the vector that is released for each cluster. Public, or accounted for.
D hidden width, K clusters, V vocabulary, U usable ids, C classes.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from privtune.device.noise.context import Injection, NoiseContext
from privtune.device.noise.gaussian_noise import PURE, AggregateLaw
from privtune.device.noise.params import ClusterParams
from privtune.device.noise.tables.class_words import (
    FloatArray,
    IntArray,
    class_groups,
    class_scores,
    graded_groups,
    public_counts,
)
from privtune.device.noise.tables.clustering import make_clusters
from privtune.device.noise.tables.public_tables import PublicTables
from privtune.device.noise.tables.table_cache import StoredTable, cached, find_table, recipe, table_for, write_table
from privtune.shared.errors import ArtifactCorrupt, InvalidInput

KIND = "clusters"
UNACCOUNTED = "its cluster table was fitted on private records without noise of its own (or does not say)."
_MADE_OF = ("cluster_size", "max_share", "frequency_weight", "groups")
_GROUPED = ("significance", "group_size")
_GRADED = ("grades", "silent", "loud")
_PUBLIC, _PRIVATE = ("public", "both"), ("private", "both")
_PUBLIC_WEIGHT = 5.0  # a word of a lexicon counts as this many texts


def save_clusters(
    path: Path,
    context: NoiseContext,
    injection: Injection,
    cluster_V: Tensor,
    centre_KD: Tensor,
    *,
    fitted_on: Literal["public", "private"],
    epsilon: float | None = None,
    **facts: Any,
) -> str:
    """Write a cluster table that `shared` and `pool` can use as `table=HASH`; returns the hash.

    fitted_on: "private" if any private record had an influence on it.
    epsilon: what a private table cost each record; None: not accounted for, so nothing is claimed for mechanisms that
        use it.
    facts: how it was made, JSON-ready.

    Raises ArtifactCorrupt for a table that does not fit the model, StorageFull.
    """
    check_clusters(context, cluster_V, centre_KD)
    tensors = {"cluster_V": cluster_V.to(torch.int32), "centre_KD": centre_KD.float()}
    origin = {"fitted_on": fitted_on, "epsilon": epsilon}
    return write_table(table_for(context, KIND, injection, tensors, **origin, **facts), path)


def check_clusters(context: NoiseContext, cluster_V: Tensor, centre_KD: Tensor) -> None:
    """Raise ArtifactCorrupt unless every id but the special ones has a cluster, and every cluster a finite centre."""
    size = len(context.tokens)
    if cluster_V.shape != (size,) or centre_KD.ndim != 2 or centre_KD.shape[1] != context.hidden_size:
        raise ArtifactCorrupt(
            f"a cluster table needs {size} ids and centres {context.hidden_size} wide, not {tuple(cluster_V.shape)} "
            f"and {tuple(centre_KD.shape)}"
        )
    special_V = torch.zeros(size, dtype=torch.bool)
    special_V[[i for i in context.special_ids if i < size]] = True
    if not torch.equal(cluster_V < 0, special_V) or int(cluster_V.max()) >= len(centre_KD):
        raise ArtifactCorrupt("a cluster table assigns each id but the special ones to a cluster with a centre")
    if not torch.isfinite(centre_KD).all():
        raise ArtifactCorrupt("a cluster table has a centre with NaN or infinity")


class ClusterTable:
    """The clusters that a mechanism's settings ask for. Raises InvalidInput if what they need is missing."""

    def __init__(self, params: ClusterParams, context: NoiseContext, injection: Injection) -> None:
        if params.groups in _PUBLIC and len(set(context.labels)) < 2 and not params.table:
            raise InvalidInput(
                f"groups={params.groups} needs public labelled texts or words of two classes (privtune tables --help)",
                param="groups",
            )
        if params.groups in _PRIVATE and context.private_counts is None and not params.table:
            raise InvalidInput(f"groups={params.groups} needs a job whose records have labels", param="groups")
        self.params, self.context, self.injection = params, context, injection
        self.tables = PublicTables(context, injection)

    def facts(self) -> dict[str, Any]:
        """What determines the distribution of the targets, for the mechanism's fingerprint."""
        p = self.params
        clusters = self._file.sha256() if self._file is not None else recipe(self.context, KIND, self._settings())
        return {"clusters": clusters, "target": p.target, "epsilon_cluster": p.epsilon_cluster}

    @property
    def unaccounted(self) -> bool:
        """Whether private records influenced the clusters without noise of their own."""
        return self._file is not None and self._origin == "private" and self._file.facts.get("epsilon") is None

    @property
    def fitted_epsilon(self) -> float:
        """What the clusters cost each private record, once; 0 for public ones."""
        if self._file is not None:
            return float(self._file.facts.get("epsilon") or 0.0) if self._origin == "private" else 0.0
        return self.params.epsilon_counts if self.params.groups in _PRIVATE else 0.0

    @property
    def fitted_delta(self) -> float:
        """Of `fitted_epsilon`."""
        if self._file is not None:
            return float(self._file.facts.get("delta") or 0.0) if self._origin == "private" else 0.0
        return self.law.delta if self.params.groups in _PRIVATE else 0.0

    @property
    def law(self) -> AggregateLaw:
        """The noise of the private word counts."""
        p = self.params
        if p.counts_noise == "pure":
            return PURE
        return AggregateLaw(kind=p.counts_noise, delta=p.counts_delta, ratio=p.counts_support_ratio)

    def fitted_shares(self) -> Tensor | None:
        """share_N of the job's records in the counts; None where the clusters rest on none of them."""
        p, counts = self.params, self.context.private_counts
        if self._file is not None or p.groups not in _PRIVATE or counts is None:
            return None
        return counts.shares(self.context.usable_ids, p.epsilon_counts, p.count_words, self.law)

    @property
    def _origin(self) -> str:
        # A file that does not say counts as private: nothing is claimed on a guess.
        return "private" if self._file is None else str(self._file.facts.get("fitted_on", "private"))

    @cached_property
    def _file(self) -> StoredTable | None:
        table = self.params.table
        return find_table(self.context, KIND, self.injection, table) if table else None

    def _settings(self) -> dict[str, Any]:
        p = self.params
        made_of = _MADE_OF if not p.grades else ("groups", *_GRADED)
        grouped = {key: getattr(p, key) for key in _GROUPED} if p.groups != "none" and not p.grades else {}
        origin: dict[str, Any] = {"fitted_on": "public", "epsilon": None}
        if p.groups in _PRIVATE:
            noised = self._noised_counts[0].astype(np.float32).tobytes()
            grouped |= {"count_words": p.count_words, "counts": hashlib.sha256(noised).hexdigest()}
            origin = {"fitted_on": "private", "epsilon": p.epsilon_counts}
            origin |= {"delta": self.fitted_delta} if self.fitted_delta else {}
        return {"injection": self.injection, **{key: getattr(p, key) for key in made_of}, **grouped, **origin}

    @cached_property
    def _noised_counts(self) -> tuple[Any, float]:
        counts = self.context.private_counts
        if counts is None:
            raise InvalidInput(f"groups={self.params.groups} needs a job whose records have labels", param="groups")
        return counts(self.context.usable_ids, self.params.epsilon_counts, self.params.count_words, self.law)

    @cached_property
    def _table(self) -> dict[str, Tensor]:
        if self._file is None:
            tensors = cached(self.context, KIND, self._settings(), self._make)
        else:
            tensors = self._file.tensors
            if not {"cluster_V", "centre_KD"} <= tensors.keys():
                raise ArtifactCorrupt("the cluster table has no cluster_V and centre_KD")
        check_clusters(self.context, tensors["cluster_V"], tensors["centre_KD"])
        return tensors

    def _make(self) -> dict[str, Tensor]:
        labels_U = torch.from_numpy(self._graded() if self.params.grades else self._by_meaning())
        cluster_V = torch.full((len(self.context.tokens),), int(torch.bincount(labels_U).argmax()))
        cluster_V[self.context.usable_ids] = labels_U
        cluster_V[[i for i in self.context.special_ids if i < len(cluster_V)]] = -1
        return {"cluster_V": cluster_V.to(torch.int32), "centre_KD": self._centres_of(labels_U)}

    def _by_meaning(self) -> IntArray:
        """Cluster of each usable id: neighbours in meaning within one group."""
        p, tables = self.params, self.tables
        groups_U = np.zeros(len(self.context.usable_ids), dtype=np.int64)
        if p.groups != "none":
            groups_U = class_groups(*self._counts(), significance=p.significance)
        return make_clusters(
            tables.unit_UD,
            tables.frequency_U,
            size=p.cluster_size,
            max_share=p.max_share,
            frequency_weight=p.frequency_weight,
            groups_U=groups_U,
            group_sizes={int(group): p.group_size for group in np.unique(groups_U) if group},
            progress=self.context.progress,
        )

    def _graded(self) -> IntArray:
        """Cluster of each usable id: its class and grade."""
        p, tables = self.params, self.tables
        scores_CU = class_scores(*self._counts(), tables.unit_UD)
        return graded_groups(scores_CU, tables.frequency_U, grades=p.grades, silent=p.silent, loud=p.loud)

    def _counts(self) -> tuple[FloatArray, float]:
        """counts_CU from the source that the settings name, and the variance of the noise in them."""
        groups, place_V = self.params.groups, self.tables.place_V.numpy()
        if groups not in _PRIVATE:
            return public_counts(self.context, place_V), 0.0
        counts_CU, variance = self._noised_counts
        if groups not in _PUBLIC:
            return counts_CU, variance
        public_CU = public_counts(self.context, place_V)
        if len(public_CU) != len(counts_CU):
            raise InvalidInput(
                f"the public labelled texts have {len(public_CU)} classes and the records {len(counts_CU)}; "
                "groups=both needs the same classes, in the same sorted order",
                param="groups",
                private=True,
            )
        return counts_CU + _PUBLIC_WEIGHT * public_CU, variance

    def _centres_of(self, labels_U: Tensor) -> Tensor:
        """Centre of each cluster, moved out to the prototypes' mean distance from their common mean.

        Averaging shrinks: a plain mean is shorter than any vector that the top was trained on. Words are weighted by
        the root of their frequency.
        """
        e_UD = self.tables.prototypes_UD
        weight_U1 = torch.from_numpy(self.tables.frequency_U).sqrt().float().unsqueeze(1)
        count = int(labels_U.max()) + 1
        total_KD = torch.zeros(count, e_UD.shape[1]).index_add_(0, labels_U, e_UD * weight_U1)
        mass_K1 = torch.zeros(count, 1).index_add_(0, labels_U, weight_U1)
        mean_D = e_UD.mean(dim=0)
        typical = (e_UD - mean_D).norm(dim=-1).mean()
        away_KD = total_KD / mass_K1 - mean_D
        centre_KD: Tensor = mean_D + away_KD * (typical / away_KD.norm(dim=-1, keepdim=True).clamp(min=1e-9))
        return centre_KD

    @cached_property
    def cluster_V(self) -> Tensor:
        """Cluster of each id, int64; -1 for special ids. Ids that are not text (bytes, unused) have one too."""
        return self._table["cluster_V"].long()

    @cached_property
    def centre_KD(self) -> Tensor:
        """What is released for each cluster, float32."""
        return self._table["centre_KD"].float()

    @cached_property
    def cluster_U(self) -> Tensor:
        """Cluster of each usable id. Raises ArtifactCorrupt if one has none."""
        cluster_U = self.cluster_V[self.context.usable_ids]
        if int(cluster_U.min()) < 0:
            raise ArtifactCorrupt("the cluster table leaves out ids that stand for text")
        return cluster_U

    @cached_property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.centre_KD)

    @cached_property
    def least(self) -> int:
        """Number of tokens in the smallest cluster that is not empty."""
        sizes_K = torch.bincount(self.cluster_U)
        return int(sizes_K[sizes_K > 0].min())

    @cached_property
    def guessed(self) -> float:
        """Share of running words that frequency alone guesses once the cluster is known."""
        top_K = np.zeros(self.count)
        np.maximum.at(top_K, self.cluster_U.numpy(), self.tables.frequency_U)
        return float(top_K.sum() / self.tables.frequency_U.sum())

    @cached_property
    def diameter(self) -> float:
        """Largest distance between two centres; exact, because every cluster has the same position offsets."""
        return float(torch.cdist(self.centre_KD, self.centre_KD).max()) * (1 + 1e-6)

    def figures(self) -> dict[str, float]:
        """Number of clusters, size of the smallest, and the share of words that frequency alone guesses."""
        return {
            "clusters": float(self.count),
            "least_cluster_size": float(self.least),
            "guessed_by_frequency": self.guessed,
        }
