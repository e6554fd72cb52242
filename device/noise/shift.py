"""PrivTune's optimal noise vectors: one shift a token id, by projected gradient descent (our reading of the paper).

For id t with prototype e, anchor a (a member of its n-hop shell), rivals r (t and all nearer shells) and own cluster
centre c, all centred and in units of the mean distance from the centre, x = e + delta minimises

    w_inversion * mean and worst of relu(margin + |x - a|^2 - |x - r|^2)    nearer to the anchor than to any rival
  + w_attribute * relu(growth - (|x - c| - |e - c|))                        away from the own cluster
  + w_consistency * |J (x - e)|^2 / typical                                 the pre-trained top predicts alike

subject to cos(x, e) >= tau (semantic preservation) and mean and deviation over coordinates within rho of e's
(distributional similarity): after each step x is projected on both. J is a linear picture of the top, see `probe`.
Public inputs only. U usable ids, R rivals, D width, K width of J.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, relu

from device.noise.context import NoiseContext
from device.noise.graph import Graph, Progress

_CHUNK = 512
_MARGIN = 0.02
_GROWTH = 0.25


@dataclass(frozen=True, kw_only=True)
class ShiftSettings:
    """Weights of the terms (0 turns one off) and the two constraints (0 turns one off)."""

    hops: int
    rivals: int
    steps: int
    rate: float
    w_inversion: float
    w_attribute: float
    w_consistency: float
    tau: float
    rho: float


@dataclass(frozen=True, kw_only=True)
class Solution:
    """delta_UD; anchor_U: place of each anchor; history: mean of (loss, inversion, attribute, consistency) a step.

    report: share of ids whose inversion goal is met, mean cosine and relative length of the shifts, consistency.
    """

    delta_UD: Tensor
    anchor_U: Tensor
    history_S4: Tensor
    report: dict[str, float]


def anchors_and_rivals(unit_UD: Tensor, graph: Graph, hops: int, rivals: int) -> tuple[Tensor, Tensor]:
    """anchor_U: nearest member of shell_hops (of the farthest shell there is, if that is empty; else the id itself).

    rivals_UR: the id and the nearest members of the shells before the anchor's, padded with the id.
    """
    total = len(graph)
    anchor_U = torch.arange(total)
    rivals_UR = torch.arange(total).unsqueeze(1).repeat(1, rivals)
    vectors = unit_UD.numpy()
    for u in range(total):
        shells = graph.shells(u, hops)
        depth = max((n for n, shell in enumerate(shells) if len(shell)), default=0)
        if depth == 0:
            continue
        anchor_U[u] = int(shells[depth][np.argmax(vectors[shells[depth]] @ vectors[u])])
        near = np.concatenate([shells[n] for n in range(1, depth)]) if depth > 1 else shells[0][:0]
        near = near[np.argsort(-(vectors[near] @ vectors[u]))][: rivals - 1]
        rivals_UR[u, 1 : 1 + len(near)] = torch.from_numpy(near)
    return anchor_U, rivals_UR


def probe(context: NoiseContext, prototypes_UD: Tensor) -> tuple[Tensor, str]:
    """J (D, K), so that |J^T d|^2 says how much a small change d moves the predictions, and where it comes from.

    With the pre-trained top at hand: ridge regression from prototypes to what the top makes of them. Without: the
    second-order change of softmax over the input embeddings (a tied head's), which is the embeddings' covariance.
    """
    centred_UD = prototypes_UD - prototypes_UD.mean(dim=0)
    if context.consistency is not None:
        outputs_UK = torch.cat([context.consistency(part) for part in torch.split(prototypes_UD, 2048)]).float()
        outputs_UK = outputs_UK - outputs_UK.mean(dim=0)
        gram_DD = centred_UD.T @ centred_UD
        ridge = 0.01 * gram_DD.diagonal().mean()
        jacobian_DK: Tensor = torch.linalg.solve(gram_DD + ridge * torch.eye(len(gram_DD)), centred_UD.T @ outputs_UK)
        return jacobian_DK, "top"
    table_VD = context.bottom.embedding_VD.float()
    if table_VD.shape[1] != prototypes_UD.shape[1]:  # ELECTRA's embedding may be narrower than its blocks
        table_VD = prototypes_UD
    table_VD = table_VD - table_VD.mean(dim=0)
    values_D, vectors_DD = torch.linalg.eigh(table_VD.T @ table_VD / len(table_VD))
    return vectors_DD * values_D.clamp(min=0).sqrt(), "embedding covariance"


def solve(
    prototypes_UD: Tensor,
    anchor_U: Tensor,
    rivals_UR: Tensor,
    cluster_U: Tensor,
    jacobian_DK: Tensor,
    settings: ShiftSettings,
    progress: Progress,
) -> Solution:
    """The shifts of the whole vocabulary; ids are independent, so chunks only save memory."""
    mean_D = prototypes_UD.mean(dim=0)
    unit = float((prototypes_UD - mean_D).norm(dim=-1).mean())
    e_UD = (prototypes_UD - mean_D) / unit
    counts_C = torch.bincount(cluster_U).clamp(min=1).unsqueeze(1)
    centre_CD = torch.zeros(len(counts_C), e_UD.shape[1]).index_add_(0, cluster_U, e_UD) / counts_C
    typical = float(((e_UD - e_UD[anchor_U]) @ jacobian_DK).square().sum(-1).mean()) + 1e-12
    x_UD = torch.empty_like(e_UD)
    history_S4 = torch.zeros(settings.steps + 1, 4)
    met = 0.0
    for start in range(0, len(e_UD), _CHUNK):
        part = slice(start, start + _CHUNK)
        problem = _Problem(
            e_UD[part],
            e_UD[anchor_U[part]],
            e_UD[rivals_UR[part]],
            centre_CD[cluster_U[part]],
            jacobian_DK / typical**0.5,
            settings,
        )
        x_UD[part], history, solved = problem.descend()
        history_S4 += history * len(problem.e_ND)
        met += solved
        progress("optimal shifts", min(1.0, (start + _CHUNK) / len(e_UD)))
    moved = x_UD - e_UD
    report = {
        "inversion_met": met / len(e_UD),
        "cosine": float(cosine_similarity(x_UD, e_UD).mean()),
        "relative_length": float((moved.norm(dim=-1) / e_UD.norm(dim=-1).clamp(min=1e-9)).mean()),
        "consistency": float((moved @ jacobian_DK).square().sum(-1).mean()) / typical,
    }
    return Solution(delta_UD=moved * unit, anchor_U=anchor_U, history_S4=history_S4 / len(e_UD), report=report)


class _Problem:
    """One chunk of ids, N of them."""

    def __init__(
        self, e_ND: Tensor, a_ND: Tensor, r_NRD: Tensor, c_ND: Tensor, j_DK: Tensor, settings: ShiftSettings
    ) -> None:
        self.e_ND, self.settings, self._c_ND, self._j_DK = e_ND, settings, c_ND, j_DK
        # |x - a|^2 - |x - r|^2 is linear in x: 2 x.(r - a) + |a|^2 - |r|^2.
        self._slope_NRD = 2 * (r_NRD - a_ND.unsqueeze(1))
        self._offset_NR = a_ND.square().sum(-1, keepdim=True) - r_NRD.square().sum(-1)
        self._home_N = (e_ND - c_ND).norm(dim=-1)
        self._mean_N1, self._std_N1 = e_ND.mean(-1, keepdim=True), e_ND.std(-1, keepdim=True)

    def _gap_NR(self, x_ND: Tensor) -> Tensor:
        return torch.einsum("nd,nrd->nr", x_ND, self._slope_NRD) + self._offset_NR

    def _terms(self, x_ND: Tensor) -> Tensor:
        """Weighted (total, inversion, attribute, consistency) a row: (4, N)."""
        s = self.settings
        hinge_NR = relu(_MARGIN + self._gap_NR(x_ND))
        inversion_N = s.w_inversion * (hinge_NR.mean(dim=1) + hinge_NR.amax(dim=1))
        attribute_N = s.w_attribute * relu(_GROWTH - ((x_ND - self._c_ND).norm(dim=-1) - self._home_N))
        consistency_N = s.w_consistency * ((x_ND - self.e_ND) @ self._j_DK).square().sum(-1)
        return torch.stack([inversion_N + attribute_N + consistency_N, inversion_N, attribute_N, consistency_N])

    def descend(self) -> tuple[Tensor, Tensor, float]:
        """x_ND, the history of the terms' means, and how many rows meet the inversion goal."""
        s = self.settings
        # Not from e itself: there the attribute term has no gradient for a word that is its cluster's centre.
        x_ND = self._project(self.e_ND - 0.02 * self._slope_NRD.mean(dim=1))
        best_ND, best_N = x_ND.clone(), torch.full((len(x_ND),), torch.inf)
        history = []
        for step in range(s.steps + 1):
            x_ND.requires_grad_(True)
            with torch.enable_grad():
                terms = self._terms(x_ND)
                (gradient_ND,) = torch.autograd.grad(terms[0].sum(), x_ND)
            x_ND = x_ND.detach()
            total_N = terms[0].detach()
            better_N = total_N < best_N
            best_ND[better_N], best_N = x_ND[better_N], torch.minimum(best_N, total_N)
            history.append(terms.detach().mean(dim=1))
            length_N1 = gradient_ND.norm(dim=-1, keepdim=True)
            rate = s.rate * (1 - step / (s.steps + 1))
            x_ND = self._project(x_ND - rate * gradient_ND / length_N1.clamp(min=1.0))
        solved = float((self._gap_NR(best_ND).amax(dim=1) < 0).sum())
        return best_ND, torch.stack(history), solved

    def _project(self, x_ND: Tensor) -> Tensor:
        s = self.settings
        if s.rho > 0:
            mean_N1, std_N1 = x_ND.mean(-1, keepdim=True), x_ND.std(-1, keepdim=True).clamp(min=1e-9)
            wanted_mean = torch.maximum(
                torch.minimum(mean_N1, self._mean_N1 + s.rho * self._std_N1), self._mean_N1 - s.rho * self._std_N1
            )
            wanted_std = torch.maximum(torch.minimum(std_N1, (1 + s.rho) * self._std_N1), (1 - s.rho) * self._std_N1)
            x_ND = (x_ND - mean_N1) * (wanted_std / std_N1) + wanted_mean
        if s.tau > 0:
            along_N1 = (x_ND * self.e_ND).sum(-1, keepdim=True) / self.e_ND.square().sum(-1, keepdim=True).clamp(1e-12)
            along_N1 = along_N1.clamp(min=1e-3)
            parallel_ND = along_N1 * self.e_ND
            across_ND = x_ND - parallel_ND
            limit_N1 = parallel_ND.norm(dim=-1, keepdim=True) * (1 / s.tau**2 - 1) ** 0.5
            shrink = (limit_N1 / across_ND.norm(dim=-1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0)
            x_ND = parallel_ND + shrink * across_ND
        return x_ND
