"""EIA-3, inversion by optimisation: find the text whose release would be closest to what was seen.

Minimises || mean release of bottom(softmax(Z / T) E) - y ||^2 over Z by Adam, T falling from 0.2 to 0.05. Z is a
distribution over the few candidates of each position that another attack ranks first (EIA-2, or `continuation`): the
warm start. The adaptive attacker matches the mechanism's mean (a linear map, fitted to simulated releases) in the
noise's metric.

Long texts are hard to find as a whole. A row of a language model depends on what precedes it alone, so its text can be
searched patch by patch: the tokens of one patch against its own rows, those before it fixed as found; in the end all of
them together. This is the second stage of PIDI (arXiv 2606.14210; what we know of it: `continuation`), which moves
embeddings freely where this attack moves distributions over candidates.

B records, T tokens, N secret tokens, K candidates each, E embedding width, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from privtune.device.audit.attacks.attack import GUESSES, Attack, Lab, Say
from privtune.device.audit.attacks.continuation import Continuation
from privtune.device.audit.attacks.density import ridge, whitening
from privtune.device.audit.attacks.learned import LearnedInversion
from privtune.device.audit.observed import Seen
from privtune.device.audit.victim import Knowledge
from privtune.shared.errors import InvalidInput

_BATCH = 16
_HOT, _COLD = 0.2, 0.05


@dataclass(frozen=True, kw_only=True)
class OptimiseSettings:
    """How the search runs.

    iterations: of Adam.
    candidates: tokens kept per position.
    learning_rate: on Z.
    prior: weight of the warm start's own odds.
    patch: tokens that are searched at a time before all are, for language models; 0: all from the beginning.
    """

    iterations: int = 500
    candidates: int = 32
    learning_rate: float = 0.02
    prior: float = 1.0
    patch: int = 0


class Optimise(Attack):
    """The search. warm: an attack of the same knowledge; built if it is not yet. Not for mechanisms that shorten."""

    name: ClassVar[str] = "EIA-3"
    kind: ClassVar[Literal["inversion", "attribute"]] = "inversion"
    settings: OptimiseSettings

    def __init__(
        self, knowledge: Knowledge, warm: LearnedInversion | Continuation, settings: OptimiseSettings | None = None
    ) -> None:
        super().__init__(knowledge, settings or OptimiseSettings())
        self._warm = warm

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        if lab.victim.mechanism.shortens:
            raise InvalidInput("EIA-3 needs a released row for each token")
        self._lab = lab
        if not self._warm.fitted:
            self._warm.fit(lab, seed=seed, say=say)
        clean_RD = lab.victim.clean(lab.public.records).seen.y_RD
        drawn_RD = lab.victim.simulate(lab.public.records, self.knowledge).seen.y_RD
        self._map_DD, self._shift_D = ridge(clean_RD, drawn_RD)
        residual_RD = drawn_RD - clean_RD @ self._map_DD - self._shift_D
        # Without noise there is nothing to whiten: plain distance, at the scale of the vectors themselves.
        spread = float(clean_RD.var(0).mean().sqrt())
        noisy = float(residual_RD.var(0).mean().sqrt()) > 1e-3 * spread
        self._whiten_DD = whitening(residual_RD) if noisy else torch.eye(clean_RD.shape[1]) / (1e-2 * spread)
        say(f"{self.name} ({self.knowledge})", 1.0)

    def _attack(self, seen: Seen) -> Tensor:
        parts, done = [], 0
        for part in seen.batches(_BATCH):
            parts.append(self._solve(part))
            done += len(part)
            self._say(f"{self.name} ({self.knowledge})", done / len(seen))
        return torch.cat(parts)

    def _solve(self, seen: Seen) -> Tensor:
        """ids_NK for a few records, the most probable candidate of each position first."""
        settings, bottom = self.settings, self._lab.victim.bottom
        ids_V, count = self._lab.public.ids_V, min(self.settings.candidates, len(self._lab.public.ids_V))
        numbers_NK, logits_NK = self._warm.candidates(seen, count)
        table_VE = bottom.embedding_VD
        choices_NKE = table_VE[ids_V[numbers_NK]]
        prior_NK = logits_NK.log_softmax(1)
        fixed_RE = self._specials(seen, table_VE)
        y_BTD, mask_BT = seen.padded()
        z_NK = (prior_NK * _HOT).clone().requires_grad_(True)
        for free_N, wide, compared_BT in self._stages(seen, mask_BT):
            optimizer = torch.optim.Adam([z_NK], lr=settings.learning_rate)
            within_N, within_R = seen.place_R[seen.row_N] < wide, seen.place_R < wide
            place_R = seen.record_R[within_R], seen.place_R[within_R]
            for step in range(settings.iterations):
                heat = _HOT + (_COLD - _HOT) * step / max(settings.iterations - 1, 1)
                moved_NK = torch.where(free_N.unsqueeze(1), z_NK, z_NK.detach())
                chance_NK = (moved_NK[within_N] / heat).softmax(1)
                rows_RE = fixed_RE.index_put(
                    (seen.row_N[within_N],), torch.einsum("nk,nke->ne", chance_NK, choices_NKE[within_N])
                )
                e_BTE = torch.zeros(len(seen), wide, table_VE.shape[1]).index_put(place_R, rows_RE[within_R])
                h_BTD = bottom.blocks(bottom.embed_vectors(e_BTE, mask_BT[:, :wide]), mask_BT[:, :wide])
                off_RD = (h_BTD @ self._map_DD + self._shift_D - y_BTD[:, :wide])[compared_BT] @ self._whiten_DD
                loss = 0.5 * off_RD.square().sum() - settings.prior * (chance_NK * prior_NK[within_N]).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        best_NK = z_NK.detach().topk(min(GUESSES, count)).indices
        ids_NK: Tensor = ids_V[numbers_NK.gather(1, best_NK)]
        return ids_NK

    def _stages(self, seen: Seen, mask_BT: Tensor) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Which tokens are searched (N), how many rows of a record that takes, and which are compared (B, rows)."""
        width, patch, place_N = mask_BT.shape[1], self.settings.patch, seen.place_R[seen.row_N]
        for start in range(0, width if patch else 0, max(patch, 1)):
            wide = min(start + patch, width)
            compared_BT = mask_BT[:, :wide].bool() & (torch.arange(wide) >= start)
            yield (place_N >= start) & (place_N < wide), wide, compared_BT
        yield torch.ones_like(place_N, dtype=torch.bool), width, mask_BT.bool()

    def _specials(self, seen: Seen, table_VE: Tensor) -> Tensor:
        """Embeddings of the special tokens, whose positions are public; other rows are zero; (R, E)."""
        context = self._lab.victim.mechanism.context
        rows_RE = torch.zeros(len(seen.y_RD), table_VE.shape[1])
        secret_R = torch.zeros(len(seen.y_RD), dtype=torch.bool)
        secret_R[seen.row_N] = True
        left_R = seen.lengths_B[seen.record_R] - 1 - seen.place_R
        for place, token in enumerate(context.prefix):
            rows_RE[~secret_R & (seen.place_R == place)] = table_VE[token]
        for left, token in enumerate(reversed(context.suffix)):
            rows_RE[~secret_R & (left_R == left)] = table_VE[token]
        return rows_RE

    def _tensors(self) -> dict[str, Tensor]:
        return {"map_DD": self._map_DD, "shift_D": self._shift_D, "whiten_DD": self._whiten_DD}

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self._lab = lab
        self._map_DD, self._shift_D, self._whiten_DD = tensors["map_DD"], tensors["shift_D"], tensors["whiten_DD"]
