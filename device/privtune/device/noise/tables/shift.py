"""PrivTune's optimal noise vectors: a shift for each token id, by projected gradient descent (our reading).

For an id t with prototype e, anchor a (a member of its n-hop shell), rivals r (t and the nearer shells) and cluster
centre c, in units of the mean distance from the common centre, x = e + delta minimises

    w_inversion * (mean and worst of) relu(margin + |x - a|^2 - |x - r|^2)   nearer to the anchor than to any rival
  + w_attribute * relu(growth - (|x - c| - |e - c|))                         away from its own cluster
  + w_consistency * |J (x - e)|^2 / typical                                  the pre-trained top's predictions stay

subject to cos(x, e) >= tau, both centred (semantic preservation), and mean and standard deviation over coordinates
within rho deviations of e's own (distributional similarity): after each step x is projected onto both. J is a linear
approximation of the top, see `probe`. Public inputs only. U usable ids, R rivals, D width, K width of J, S steps + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, relu

from privtune.device.noise.context import NoiseContext, OnProgress
from privtune.device.noise.tables.graph import Graph

TERMS = ("loss", "inversion", "attribute", "consistency")
_CHUNK = 512
_MARGIN = 0.02
_GROWTH = 0.25
_RATE = 0.1  # first step length, in units of the mean distance from the common centre
_ALTERNATIONS = 3
_SLACK = 1e-3  # tolerance within which a constraint counts as met


@dataclass(frozen=True, kw_only=True)
class ShiftSettings:
    """The optimisation's settings; 0 turns a term or constraint off.

    hops: distance of the anchor in the token graph.
    rivals: number of nearer ids to move away from.
    steps: of projected gradient descent.
    w_inversion, w_attribute, w_consistency: weights of the terms.
    tau: smallest cosine to the prototype.
    rho: largest change of mean and standard deviation, in standard deviations.
    """

    hops: int
    rivals: int
    steps: int
    w_inversion: float
    w_attribute: float
    w_consistency: float
    tau: float
    rho: float


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The shifts, and how well they meet the goals.

    delta_UD: the shift of each usable id.
    history_S4: mean of TERMS after each step.
    report: inversion_met (share of ids nearer to the anchor than to all rivals), attribute_growth (mean growth of the
        distance to the own cluster's centre, in units), consistency (mean |J delta|^2 over that of a jump to the
        anchor), cosine (mean), semantic_kept and distribution_kept (share of ids within the constraints),
        relative_length (mean length of the shift over that of the prototype).
    """

    delta_UD: Tensor
    history_S4: Tensor
    report: dict[str, float]


def anchors_and_rivals(
    unit_UD: Tensor, graph: Graph, hops: int, rivals: int, progress: OnProgress
) -> tuple[Tensor, Tensor]:
    """The anchor (U) and the rivals (U, R) of each usable id.

    The anchor is the nearest member of shell_hops; if that shell is empty, of the farthest one that is not; for an
    isolated id, the id itself. The rivals are the id and the nearest members of the shells before the anchor's, padded
    with the id.
    """
    total = len(graph)
    anchor_U = torch.arange(total)
    rivals_UR = torch.arange(total).unsqueeze(1).repeat(1, rivals)
    vectors = unit_UD.numpy()
    for u in range(total):
        shells = graph.shells(u, hops)
        depth = max(n for n, shell in enumerate(shells) if len(shell))
        if depth == 0:
            continue
        anchor_U[u] = int(shells[depth][np.argmax(vectors[shells[depth]] @ vectors[u])])
        near = np.concatenate(shells[1:depth]) if depth > 1 else shells[0][:0]
        near = near[np.argsort(-(vectors[near] @ vectors[u]))][: rivals - 1]
        rivals_UR[u, 1 : 1 + len(near)] = torch.from_numpy(near)
        if u % _CHUNK == 0:
            progress("anchors", u / total)
    return anchor_U, rivals_UR


def probe(context: NoiseContext, prototypes_UD: Tensor) -> Tensor:
    """J (D, K), such that |J^T d|^2 measures how much a small change d moves the predictions.

    With the pre-trained top at hand: ridge regression from prototypes to the top's outputs. Without it: the
    second-order change of softmax over the input embeddings (a tied head's), which is the embeddings' covariance.
    """
    centred_UD = prototypes_UD - prototypes_UD.mean(dim=0)
    if context.consistency is not None:
        outputs_UK = torch.cat([context.consistency(part) for part in torch.split(prototypes_UD, 2048)]).float()
        outputs_UK = outputs_UK - outputs_UK.mean(dim=0)
        gram_DD = centred_UD.T @ centred_UD
        ridge = 0.01 * gram_DD.diagonal().mean()
        jacobian_DK: Tensor = torch.linalg.solve(gram_DD + ridge * torch.eye(len(gram_DD)), centred_UD.T @ outputs_UK)
        return jacobian_DK
    table_VD = context.bottom.embedding_VD.float()
    if table_VD.shape[1] != prototypes_UD.shape[1]:  # ELECTRA's embedding may be narrower than its blocks
        table_VD = prototypes_UD
    table_VD = table_VD - table_VD.mean(dim=0)
    values_D, vectors_DD = torch.linalg.eigh(table_VD.T @ table_VD / len(table_VD))
    spread_DD: Tensor = vectors_DD * values_D.clamp(min=0).sqrt()
    return spread_DD


def solve(
    prototypes_UD: Tensor,
    anchor_U: Tensor,
    rivals_UR: Tensor,
    cluster_U: Tensor,
    jacobian_DK: Tensor,
    settings: ShiftSettings,
    progress: OnProgress = lambda what, share: None,
) -> Solution:
    """Solve for the shifts of the whole vocabulary; ids are independent, so chunks only save memory."""
    mean_D = prototypes_UD.mean(dim=0)
    unit = float((prototypes_UD - mean_D).norm(dim=-1).mean())
    e_UD = (prototypes_UD - mean_D) / unit
    counts_C = torch.bincount(cluster_U).clamp(min=1).unsqueeze(1)
    centre_CD = torch.zeros(len(counts_C), e_UD.shape[1]).index_add_(0, cluster_U, e_UD) / counts_C
    typical = float(((e_UD - e_UD[anchor_U]) @ jacobian_DK).square().sum(-1).mean()) + 1e-12
    x_UD = torch.empty_like(e_UD)
    history_S4 = torch.zeros(settings.steps + 1, len(TERMS))
    sums: dict[str, float] = {}
    for start in range(0, len(e_UD), _CHUNK):
        part = slice(start, start + _CHUNK)
        problem = _Problem(
            e_UD[part],
            e_UD[anchor_U[part]],
            e_UD[rivals_UR[part]],
            centre_CD[cluster_U[part]],
            jacobian_DK / typical**0.5,
            mean_D / unit,
            settings,
        )
        x_UD[part], history = problem.descend()
        history_S4 += history * len(problem.e_ND)
        for name, value in problem.report(x_UD[part]).items():
            sums[name] = sums.get(name, 0.0) + value
        progress("optimal shifts", min(1.0, (start + _CHUNK) / len(e_UD)))
    report = {name: value / len(e_UD) for name, value in sums.items()}
    return Solution(delta_UD=(x_UD - e_UD) * unit, history_S4=history_S4 / len(e_UD), report=report)


class _Problem:
    """One chunk of N ids. Vectors are centred and in units; offset_D: the common centre in units."""

    def __init__(
        self,
        e_ND: Tensor,
        a_ND: Tensor,
        r_NRD: Tensor,
        c_ND: Tensor,
        j_DK: Tensor,
        offset_D: Tensor,
        settings: ShiftSettings,
    ) -> None:
        self.e_ND, self.settings = e_ND, settings
        self._c_ND, self._j_DK, self._offset_D = c_ND, j_DK, offset_D
        # |x - a|^2 - |x - r|^2 is linear in x: 2 x.(r - a) + |a|^2 - |r|^2.
        self._slope_NRD = 2 * (r_NRD - a_ND.unsqueeze(1))
        self._offset_NR = a_ND.square().sum(-1, keepdim=True) - r_NRD.square().sum(-1)
        self._home_N = (e_ND - c_ND).norm(dim=-1)
        whole_ND = e_ND + offset_D
        self._mean_N1, self._std_N1 = whole_ND.mean(-1, keepdim=True), whole_ND.std(-1, keepdim=True)

    def _gap_NR(self, x_ND: Tensor) -> Tensor:
        return torch.einsum("nd,nrd->nr", x_ND, self._slope_NRD) + self._offset_NR

    def _terms(self, x_ND: Tensor) -> Tensor:
        """Weighted TERMS of each row: (4, N)."""
        s = self.settings
        hinge_NR = relu(_MARGIN + self._gap_NR(x_ND))
        inversion_N = s.w_inversion * (hinge_NR.mean(dim=1) + hinge_NR.amax(dim=1))
        attribute_N = s.w_attribute * relu(_GROWTH - self._growth(x_ND))
        consistency_N = s.w_consistency * self._change(x_ND)
        return torch.stack([inversion_N + attribute_N + consistency_N, inversion_N, attribute_N, consistency_N])

    def _growth(self, x_ND: Tensor) -> Tensor:
        growth_N: Tensor = (x_ND - self._c_ND).norm(dim=-1) - self._home_N
        return growth_N

    def _change(self, x_ND: Tensor) -> Tensor:
        change_N: Tensor = ((x_ND - self.e_ND) @ self._j_DK).square().sum(-1)
        return change_N

    def descend(self) -> tuple[Tensor, Tensor]:
        """The x_ND with the smallest loss seen, and the mean of each term after every step, (steps + 1, 4)."""
        steps = self.settings.steps
        # Not from e itself: there the attribute term has no gradient for a word that is its cluster's centre.
        x_ND = self._project(self.e_ND - 0.02 * self._slope_NRD.mean(dim=1))
        best_ND, best_N = x_ND.clone(), torch.full((len(x_ND),), torch.inf)
        history = []
        for step in range(steps + 1):
            x_ND.requires_grad_(True)
            with torch.enable_grad():
                terms_4N = self._terms(x_ND)
                (gradient_ND,) = torch.autograd.grad(terms_4N[0].sum(), x_ND)
            x_ND, terms_4N = x_ND.detach(), terms_4N.detach()
            better_N = terms_4N[0] < best_N
            best_ND[better_N], best_N = x_ND[better_N], torch.minimum(best_N, terms_4N[0])
            history.append(terms_4N.mean(dim=1))
            rate = _RATE * (1 - step / (steps + 1))
            length_N1 = gradient_ND.norm(dim=-1, keepdim=True).clamp(min=1.0)
            x_ND = self._project(x_ND - rate * gradient_ND / length_N1)
        return best_ND, torch.stack(history)

    def _project(self, x_ND: Tensor) -> Tensor:
        """Alternating projections onto the two constraints; the cosine's comes last and holds exactly."""
        s = self.settings
        for _ in range(_ALTERNATIONS if s.rho and s.tau else 1):
            if s.rho:
                x_ND = self._like_distribution(x_ND)
            if s.tau:
                x_ND = self._like_meaning(x_ND)
        return x_ND

    def _like_distribution(self, x_ND: Tensor) -> Tensor:
        """Nearest vector whose mean and standard deviation over coordinates (common centre included) are within rho."""
        rho, whole_ND = self.settings.rho, x_ND + self._offset_D
        mean_N1, std_N1 = whole_ND.mean(-1, keepdim=True), whole_ND.std(-1, keepdim=True).clamp(min=1e-9)
        slack_N1 = rho * self._std_N1
        wanted_mean_N1 = mean_N1.clamp(self._mean_N1 - slack_N1, self._mean_N1 + slack_N1)
        wanted_std_N1 = std_N1.clamp(self._std_N1 - slack_N1, self._std_N1 + slack_N1)
        like_ND: Tensor = (whole_ND - mean_N1) * (wanted_std_N1 / std_N1) + wanted_mean_N1 - self._offset_D
        return like_ND

    def _like_meaning(self, x_ND: Tensor) -> Tensor:
        """Nearest vector in the cone of vectors whose cosine to e is at least tau."""
        axis_ND = self.e_ND / self.e_ND.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        along_N1 = (x_ND * axis_ND).sum(-1, keepdim=True)
        across_ND = x_ND - along_N1 * axis_ND
        across_N1 = across_ND.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        widest = (1 / self.settings.tau**2 - 1) ** 0.5
        # Onto the nearest ray of the cone's surface, never to its tip, which has no direction.
        on_axis_N1 = ((along_N1 + widest * across_N1) / (1 + widest**2)).clamp(min=1e-3)
        on_surface_ND = on_axis_N1 * (axis_ND + widest * across_ND / across_N1)
        kept_ND: Tensor = torch.where(across_N1 <= widest * along_N1, x_ND, on_surface_ND)
        return kept_ND

    def report(self, x_ND: Tensor) -> dict[str, float]:
        """Sums of the figures in `Solution.report` over the chunk."""
        whole_ND = x_ND + self._offset_D
        off_N1 = torch.maximum(
            (whole_ND.mean(-1, keepdim=True) - self._mean_N1).abs(),
            (whole_ND.std(-1, keepdim=True) - self._std_N1).abs(),
        )
        cosine_N = cosine_similarity(x_ND, self.e_ND)
        moved_N = (x_ND - self.e_ND).norm(dim=-1) / self.e_ND.norm(dim=-1).clamp(min=1e-9)
        values = {
            "inversion_met": (self._gap_NR(x_ND).amax(dim=1) < 0).float(),
            "attribute_growth": self._growth(x_ND),
            "consistency": self._change(x_ND),
            "cosine": cosine_N,
            "semantic_kept": (cosine_N >= self.settings.tau - _SLACK).float(),
            "distribution_kept": (
                off_N1.squeeze(-1) <= (self.settings.rho or 1e9) * self._std_N1.squeeze(-1) + _SLACK
            ).float(),
            "relative_length": moved_N,
        }
        return {name: float(value_N.sum()) for name, value_N in values.items()}
