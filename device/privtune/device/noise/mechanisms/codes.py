"""`codes`: each vector becomes the nearest of K public ones, which keeps meaning in context and hides the word.

A code is chosen by the word IN CONTEXT (after the frozen blocks), in a subspace that favours the task. Few codes reveal
little about words, and because attention has already mixed the record, each code still carries some of its meaning.
N public states, D hidden width, E subspace, K codes, C classes.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from privtune.device.noise.base import Mechanism, Release
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.gaussian_noise import PURE, AggregateLaw
from privtune.device.noise.params import CodesParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.class_directions import public_directions
from privtune.device.noise.tables.clustering import kmeans
from privtune.device.noise.tables.public_tables import PublicTables, TableRows
from privtune.device.noise.tables.table_cache import cached, recipe
from privtune.device.privacy.statements import Statement
from privtune.device.privacy.statements.fitted_tables import fitted_statement
from privtune.device.privacy.statements.shared_target import codes_statement
from privtune.shared.errors import InvalidInput
from privtune.shared.public_table import PublicTable

KIND = "codes"
_ROWS = 20_000  # public states that the codes are fitted on
_REACH = 0.8  # at full length, a centre would outweigh any single word


class Codes(Mechanism):
    """h -> centre of its code; optionally with randomised response on the code.

    Loss: unbounded without randomised response, which code it was is revealed; epsilon per position with it. One token
    moves all positions of its record through attention, so a token has the record's bound.
    """

    name: ClassVar[str] = "codes"

    def __init__(self, params: CodesParams, context: NoiseContext) -> None:
        super().__init__(context)
        self.params = params
        if params.task == "public" and len(set(context.labels)) < 2:
            raise InvalidInput(
                "task=public needs public labelled texts or words of two classes (privtune tables --help)", param="task"
            )
        if params.task == "private" and context.private_means is None:
            raise InvalidInput("task=private needs a job whose records have labels", param="task")
        self.hides_task = params.task_use == "hide"
        self._tables = PublicTables(context, self.injection)
        gaussian = AggregateLaw(kind=params.task_noise, delta=params.task_delta, ratio=params.task_support_ratio)
        self._law = PURE if params.task_noise == "pure" else gaussian

    def prepare(self) -> dict[str, float]:
        """Number of codes in use, and the bits that one of them can reveal at most."""
        count = len(self._table["centre_KD"])
        return {"codes": float(count), "bits_a_position": float(np.log2(count))}

    def fitted_shares(self) -> Tensor | None:
        """Of the class means."""
        means = self.context.private_means
        p = self.params
        return means.shares(self.context, p.epsilon_task, self._law) if means and p.task == "private" else None

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        count, targets = len(self._table["code_KE"]), self._targets
        code_BT = self.code_of(h_BTD)
        if self.params.epsilon_code and count > 1:
            code_BT = generator.randomised_response(code_BT, count, self.params.epsilon_code)
        special_BT = self.context.is_special(ids_BT)  # their places are public
        row_BT = torch.where(special_BT, targets.special_V[ids_BT], code_BT)
        return Release(h_BTD=targets.vectors(row_BT), mask_BT=mask_BT, ids_BT=row_BT, share_BT=~special_BT)

    def _rows(self) -> PublicTable:
        return self._targets.table

    @cached_property
    def _targets(self) -> TableRows:
        return self._tables.with_special(self._table["centre_KD"].float())

    def code_of(self, h_BTD: Tensor) -> Tensor:
        """The nearest code of each vector within the subspace; int64, shape (B, T)."""
        table = self._table
        x_NE = (h_BTD.flatten(0, 1) - table["mean_D"]) @ table["basis_DE"]
        code_KE = table["code_KE"]
        nearest_N = (x_NE @ code_KE.T - code_KE.square().sum(dim=1) / 2).argmax(dim=1)
        return nearest_N.view(h_BTD.shape[:2])

    @cached_property
    def _table(self) -> dict[str, Tensor]:
        return cached(self.context, KIND, self._settings(), self._make)

    def _settings(self) -> dict[str, Any]:
        p = self.params
        settings: dict[str, Any] = {"injection": self.injection, "codes": p.codes, "dims": p.dims, "task": p.task}
        if p.task == "none":
            return settings
        settings |= {"task_weight": p.task_weight} if p.task_use == "show" else {"task_use": p.task_use}
        if p.task == "private":
            drawn = self._private_directions.numpy().tobytes()
            settings |= {"epsilon": p.epsilon_task, "directions": hashlib.sha256(drawn).hexdigest()}
        return settings

    @cached_property
    def _private_directions(self) -> Tensor:
        means = self.context.private_means
        if means is None:
            raise InvalidInput("task=private needs a job whose records have labels", param="task")
        return means(self.context, self.params.epsilon_task, self._law)

    def _make(self) -> dict[str, Tensor]:
        states_ND = self._public_states()
        mean_D = states_ND.mean(dim=0)
        away_ND = states_ND - mean_D
        basis_DE = self._basis(away_ND)
        x_NE = away_ND @ basis_DE
        labels_N = torch.from_numpy(kmeans(x_NE, self.params.codes))
        counts_K1 = torch.bincount(labels_N).unsqueeze(1).float()
        code_KE = torch.zeros(len(counts_K1), x_NE.shape[1]).index_add_(0, labels_N, x_NE) / counts_K1
        away_KD = torch.zeros(len(counts_K1), self.dim).index_add_(0, labels_N, away_ND) / counts_K1
        # Averaging shrinks: a plain mean is shorter than any vector that the top was trained on.
        longer_K1 = away_ND.norm(dim=1).mean() / away_KD.norm(dim=1, keepdim=True).clamp(min=1e-9)
        self.context.progress("codes", 1.0)
        return {
            "mean_D": mean_D,
            "basis_DE": basis_DE,
            "code_KE": code_KE,
            "centre_KD": mean_D + away_KD * longer_K1 * _REACH,
        }

    def _basis(self, away_ND: Tensor) -> Tensor:
        """The first `dims` principal components, of unit deviation together, and the task's directions next to them.

        task_use=hide: the components without what correlates with the task's directions. Shape (D, E).
        """
        p = self.params
        _, vectors_DD = torch.linalg.eigh((away_ND.T @ away_ND / len(away_ND)).double())
        leading_DE = vectors_DD[:, -p.dims :].float()
        if p.task == "none":
            return _evened(leading_DE, away_ND)
        task_DC = public_directions(self.context) if p.task == "public" else self._private_directions
        score_NC = away_ND @ task_DC
        if p.task_use == "hide":
            # What remains is uncorrelated with every score of the task (least squares over public states).
            shared_CE = torch.linalg.lstsq(score_NC, away_ND @ leading_DE).solution
            return _evened(leading_DE - task_DC @ shared_CE, away_ND)
        return torch.cat([_evened(leading_DE, away_ND), p.task_weight * task_DC / score_NC.std(dim=0)], dim=1)

    def _public_states(self) -> Tensor:
        """States of ordinary tokens in public rows (in made-up rows where the owner named no text); (N, D)."""
        rows = [torch.tensor([list(row)]) for row in self.context.public_rows if len(row)] or self.context.sample_rows()
        found, total = [], 0
        for ids_BT in rows:
            states_ND = self.context.states(ids_BT, self.injection).flatten(0, 1)
            found.append(states_ND[~self.context.is_special(ids_BT.flatten())])
            total += len(found[-1])
            self.context.progress("states of public text", min(1.0, total / _ROWS))
            if total >= _ROWS:
                break
        return torch.cat(found)

    def _statement(self) -> Statement:
        p = self.params
        statement = codes_statement(name=self.name, codes=len(self._table["code_KE"]), epsilon=p.epsilon_code)
        return fitted_statement(statement, p.epsilon_task, self._law.delta) if p.task == "private" else statement

    def _facts(self) -> dict[str, Any]:
        return {"codes": recipe(self.context, KIND, self._settings()), "epsilon_code": self.params.epsilon_code}


def _evened(basis_DE: Tensor, away_ND: Tensor) -> Tensor:
    """The directions scaled to equal deviations, and to unit deviation together."""
    even_DE: Tensor = basis_DE / (away_ND @ basis_DE).std(dim=0) / basis_DE.shape[1] ** 0.5
    return even_DE
