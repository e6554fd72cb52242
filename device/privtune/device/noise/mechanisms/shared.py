"""`shared`: one target for all tokens of a public cluster. The defence rests on no secret."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from privtune.device.noise.base import Mechanism, Release
from privtune.device.noise.clipping import clip_rows
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.params import SharedParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.cluster_table import UNACCOUNTED
from privtune.device.noise.tables.cluster_targets import ClusterTargets
from privtune.device.privacy.bounds import dchi_eta
from privtune.device.privacy.statements import Statement
from privtune.device.privacy.statements.added_noise import clipped_statement
from privtune.device.privacy.statements.fitted_tables import fitted_statement
from privtune.device.privacy.statements.no_bound import no_bound_statement
from privtune.device.privacy.statements.shared_target import cluster_statement, randomised_statement
from privtune.shared.public_table import PublicTable

CLIP_RATIO = 1.25


class Shared(Mechanism):
    """h -> target of t's cluster (+ d_chi noise); optionally with randomised response on the cluster.

    Loss: 0 within a cluster. Across clusters: eta * distance of the centres with noise, epsilon with randomised
    response, unbounded with neither. Not covered: what context reveals about a word whose cluster is seen.
    """

    name: ClassVar[str] = "shared"
    reads_vectors = False

    def __init__(self, params: SharedParams, context: NoiseContext) -> None:
        super().__init__(context)
        self.injection = params.injection
        self.reads_draws = params.target == "mixture" and params.injection == "cut" and context.cut > 0
        self.params = params
        self.targets = ClusterTargets(params, context, params.injection)
        norm = context.typical_norm(params.injection)
        self.eta = dchi_eta(self.dim, params.noise_ratio * norm) if params.noise_ratio else None
        # Drawn words are read in context: only clipping bounds their vectors.
        self.clip = CLIP_RATIO * norm if params.target == "mixture" and self.eta is not None else None

    def prepare(self) -> dict[str, float]:
        """Number of clusters, size of the smallest, and the share of words that frequency alone guesses."""
        return self.targets.figures()

    def fitted_shares(self) -> Tensor | None:
        """Of the word counts."""
        return self.targets.fitted_shares()

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        # Under randomised response special tokens lose nothing: their places are public.
        share_BT = ~self.context.is_special(ids_BT) if self.targets.responds else None
        if self._rows() is not None:
            row_BT = self.targets.draw_rows(ids_BT, mask_BT, generator)
            vectors_BTD = self.targets.centres.vectors(row_BT)
            return Release(h_BTD=vectors_BTD, mask_BT=mask_BT, ids_BT=row_BT, share_BT=share_BT)
        target_BTD = self.targets.draw(ids_BT, mask_BT, generator)
        if self.clip is not None:
            target_BTD = clip_rows(target_BTD, self.clip)
        if self.eta is not None:
            target_BTD = target_BTD + generator.dchi(self.eta, *target_BTD.shape)
        return Release(h_BTD=target_BTD, mask_BT=mask_BT, share_BT=share_BT)

    def _rows(self) -> PublicTable | None:
        # Blocks after noise at the embedding mix the rows again. Of an unaccounted table only what is used leaves.
        few = self.params.target == "centre" and self.injection == "cut" and self.eta is None
        return self.targets.centres.table if few and not self.targets.unaccounted else None

    def _statement(self) -> Statement:
        if self.targets.unaccounted:
            return no_bound_statement(
                name=self.name, row="fitted", injection=self.injection, numbers=self.targets.figures(), why=UNACCOUNTED
            )
        statement = self._release_statement()
        fitted = self.targets.fitted_epsilon
        return fitted_statement(statement, fitted, self.targets.fitted_delta) if fitted else statement

    def _release_statement(self) -> Statement:
        """The statement for the releases alone, given the table."""
        p, targets = self.params, self.targets
        if targets.responds:
            return randomised_statement(
                name=self.name,
                injection=p.injection,
                epsilon=p.epsilon_cluster,
                clusters=targets.count,
                eta=self.eta,
                dim=self.dim,
            )
        if self.clip is not None and self.eta is not None:
            return clipped_statement(name=self.name, injection=p.injection, eta=self.eta, dim=self.dim, clip=self.clip)
        return cluster_statement(
            name=self.name,
            injection=p.injection,
            clusters=targets.count,
            least=targets.least,
            guessed=targets.guessed,
            eta=self.eta,
            dim=self.dim,
            diameter=targets.diameter,
        )

    def _facts(self) -> dict[str, Any]:
        return {**self.targets.facts(), "eta": self.eta, "clip": self.clip}
