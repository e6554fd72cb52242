"""The one interface of every mechanism: clean vectors of a micro-batch in, what may leave the device out.

B records, T tokens, D hidden width, V vocabulary. All maths in float32.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from privtune.device.noise.context import Injection, NoiseContext
from privtune.device.noise.randomness import NoiseSource
from privtune.device.privacy.bounds import Statement
from privtune.shared.errors import InvalidInput, NonFinite


@dataclass(frozen=True, kw_only=True)
class Release:
    """What may leave: h_BTD float32 with zero padding rows, mask_BT bool. T is shorter if the mechanism shortens."""

    h_BTD: Tensor
    mask_BT: Tensor


class Mechanism(ABC):
    """A noise mechanism, configured and ready.

    injection: "embedding": call it on the input of block 0 and run the frozen blocks on the result (post-processing);
    "cut": call it on the bottom's output. shortens: it may return fewer rows a record than it was given (the
    caller must take lengths and read-out from the returned mask, and must not use it where labels are a position
    each). uses_importance: it needs `importance_BT` (0 unimportant .. 1 important), fitted on what
    importance_from says; others ignore it. reads_draws: blocks with attention read its draws of a whole record, so a
    row tells of the draws before it, and a record that grows can't be released row by row. reads_vectors: it reads the
    vectors that it is given; others go by the ids alone, and any vectors of the right shape will do. by_position: a
    row's law depends on its own vector alone, so that further rows of a record can be drawn without the earlier ones.
    hides_task: it keeps from the cloud what tells the classes apart, so the device must learn that itself.
    """

    name: ClassVar[str]
    shortens: bool = False
    uses_importance: bool = False
    importance_from: Literal["private", "public"] = "private"
    reads_draws: bool = False
    reads_vectors: bool = True
    by_position: bool = False
    hides_task: bool = False
    injection: Injection = "cut"

    def __init__(self, context: NoiseContext) -> None:
        self.context = context
        self.dim = context.hidden_size
        self._saw_unsafe_seed = False

    @torch.no_grad()
    def release(
        self,
        ids_BT: Tensor,
        h_BTD: Tensor,
        mask_BT: Tensor,
        importance_BT: Tensor | None = None,
        *,
        generator: NoiseSource,
    ) -> Release:
        """Draw the release of a micro-batch. Call it ONCE a record and keep the result (`release.release_store`).

        ids_BT int64 token ids; h_BTD clean vectors at the injection point, any float dtype (upcast to float32: noise
        sampled in float16 has holes and repeats); mask_BT 1 for real tokens; generator: `noise_source()`.
        Raises InvalidInput for shapes that do not fit, NonFinite for NaN or infinity in a real position.
        """
        mask_BT = mask_BT.to(torch.bool)
        self._check(ids_BT, h_BTD, mask_BT, importance_BT)
        clean_BTD = zero_padding(h_BTD.to(torch.float32), mask_BT)
        _check_finite(clean_BTD)
        self._saw_unsafe_seed |= generator.unsafe
        out = self._release(ids_BT, clean_BTD, mask_BT, importance_BT, generator)
        if not self.reads_vectors:  # the bottom's weights show for the first time in what it made of the drawn ids
            _check_finite(out.h_BTD)
        return Release(h_BTD=zero_padding(out.h_BTD, out.mask_BT), mask_BT=out.mask_BT)

    def prepare(self) -> dict[str, float]:
        """Work out (or read) every public table now, not at first use; figures of how that went, if there are any."""
        return {}

    def statement(self, generator: NoiseSource | None = None) -> Statement:
        """What may be claimed for this configuration. Withdrawn if a fixed seed is used, or has been."""
        unsafe = self._saw_unsafe_seed or (generator is not None and generator.unsafe)
        return self._statement().marked_unsafe() if unsafe else self._statement()

    def fingerprint(self) -> str:
        """SHA-256 of name, bottom's weights, injection point, resolved parameters and tables: the same law of noise."""
        facts = {
            "name": self.name,
            "injection": self.injection,
            "bottom": self.context.weights,
            "v": 1,
            **self._facts(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @abstractmethod
    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        """`release` after the checks: h_BTD is finite float32, zero at padding."""

    @abstractmethod
    def _statement(self) -> Statement:
        """The statement, on the assumption of real randomness."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """Everything that shapes the law of the noise, JSON-ready: parameters and fingerprints of tables."""

    def _check(self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None) -> None:
        if h_BTD.ndim != 3 or ids_BT.shape != h_BTD.shape[:2] or mask_BT.shape != h_BTD.shape[:2]:
            raise InvalidInput(
                f"ids {tuple(ids_BT.shape)}, mask {tuple(mask_BT.shape)} and vectors {tuple(h_BTD.shape)} do not match"
            )
        if self.uses_importance and importance_BT is None:
            raise InvalidInput(f"mechanism {self.name} needs the importance of each token")
        if importance_BT is not None and importance_BT.shape != ids_BT.shape:
            raise InvalidInput(f"importance {tuple(importance_BT.shape)} does not match ids {tuple(ids_BT.shape)}")


def _check_finite(h_BTD: Tensor) -> None:
    if not torch.isfinite(torch.stack(h_BTD.aminmax())).all():  # NaN is both the least and the largest
        raise NonFinite("the bottom's output has NaN or infinity, so nothing was sent; check the model's weights")


def zero_padding(h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The vectors with padding rows set to zero; the same tensor where there is no padding."""
    return h_BTD if bool(mask_BT.all()) else h_BTD.masked_fill(~mask_BT.unsqueeze(-1), 0.0)


def clip_rows(h_BTD: Tensor, radius: float) -> Tensor:
    """Shorten every vector (last dimension) to L2 norm at most `radius`; shorter ones stay as they are.

    A projection on a ball: it never enlarges a distance. The radius is undercut by 1e-6 against rounding.
    """
    norm_BT1 = h_BTD.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    clipped_BTD: Tensor = h_BTD * (radius * (1 - 1e-6) / norm_BT1).clamp(max=1.0)
    return clipped_BTD
