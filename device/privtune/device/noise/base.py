"""The interface of every mechanism: clean vectors of a micro-batch in, what may leave the device out.

B records, T tokens, D hidden width, V vocabulary. All maths in float32.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from privtune.device.noise.context import Injection, NoiseContext
from privtune.device.noise.randomness import NoiseSource
from privtune.device.privacy.statements import Statement
from privtune.shared.errors import InvalidInput, NonFinite
from privtune.shared.public_table import PublicTable


@dataclass(frozen=True, kw_only=True)
class Release:
    """What may leave the device.

    h_BTD: float32, zero at padding.
    mask_BT: bool, True for real rows; T is smaller than the input's if the mechanism shortens.
    ids_BT: int64, the row of the mechanism's public table that each vector is; None: a vector is none of few.
    share_BT: each row's own loss, as a share of the worst row's that the statement names: how far any other input can
        be from what this record has there. None: all of it. It depends on the record, so it stays on the device.
    fisher_BT: of bounded-support noise, each row's Fisher information relative to whole noise; None: 1. As share_BT.
    """

    h_BTD: Tensor
    mask_BT: Tensor
    ids_BT: Tensor | None = None
    share_BT: Tensor | None = None
    fisher_BT: Tensor | None = None

    @property
    def sent_BTW(self) -> Tensor:
        """What is encoded and sent, float32: the vectors, or their ids with W = 1."""
        return self.h_BTD if self.ids_BT is None else self.ids_BT.unsqueeze(-1).float()

    def fisher_B(self) -> Tensor:
        """The mean of each record's rows; NaN where it has none."""
        fisher_BT = torch.full(self.mask_BT.shape, torch.nan) if self.fisher_BT is None else self.fisher_BT
        return torch.where(self.mask_BT, fisher_BT.double(), 0.0).sum(dim=1) / self.mask_BT.sum(dim=1)


class Mechanism(ABC):
    """A noise mechanism, configured and ready to release.

    injection: "embedding": applied to the input of block 0, and the frozen blocks run on the result (post-processing);
        "cut": applied to the bottom's output.
    shortens: may return fewer rows per record than it is given. The caller takes lengths and read-out from the returned
        mask, and does not use it where every position has a label.
    uses_importance: needs `importance_BT` (0 unimportant .. 1 important); other mechanisms ignore it.
    importance_from: which texts the importance is fitted on.
    reads_draws: blocks with attention read its draws of the whole record, so each row depends on the draws before it
        and a growing record can't be released row by row.
    reads_vectors: reads the vectors it is given; others depend on the ids alone and take any vectors of that shape.
    by_position: the distribution of a row depends on that row's vector alone, so further rows of a record can be drawn
        without the earlier ones.
    hides_task: withholds from the cloud what separates the classes, so the device must learn the task itself.
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

    @property
    def row_by_row(self) -> bool:
        """Whether a record can be released as it grows: no row depends on later ones, or on other draws."""
        return not self.shortens and not self.reads_draws

    @cached_property
    def table(self) -> PublicTable | None:
        """The table whose rows are all that is ever released at the cut, so that ids are sent; None: vectors are."""
        rows = self._rows()
        return rows if rows is not None and rows.fits else None

    def sent_as(self, codec: str) -> tuple[int, str]:
        """Width and codec of the rows that are sent. codec: of the job's vectors."""
        return (self.dim, codec) if self.table is None else (1, self.table.codec)

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
        """Draw the release of a micro-batch. Call it ONCE per record and keep the result (`release.release_store`).

        Args:
            ids_BT: token ids, int64.
            h_BTD: clean vectors at the injection point, any float dtype (upcast to float32: noise sampled in float16
                has gaps and repeats).
            mask_BT: 1 for real tokens.
            importance_BT: 0 to 1, where the mechanism uses it.
            generator: from `noise_source()`.

        Raises:
            InvalidInput: the shapes do not match, or the importance is missing.
            NonFinite: NaN or infinity at a real position.
        """
        mask_BT = mask_BT.to(torch.bool)
        self._check(ids_BT, h_BTD, mask_BT, importance_BT)
        clean_BTD = zero_padding(h_BTD.to(torch.float32), mask_BT)
        _check_finite(clean_BTD)
        self._saw_unsafe_seed |= generator.unsafe
        out = self._release(ids_BT, clean_BTD, mask_BT, importance_BT, generator)
        if not self.reads_vectors:  # the bottom runs on drawn ids, so its output is first seen here
            _check_finite(out.h_BTD)
        return replace(
            out,
            h_BTD=zero_padding(out.h_BTD, out.mask_BT),
            ids_BT=None if self.table is None else out.ids_BT,
        )

    def own_rows(self, out: Release) -> Tensor:
        """How many of the statement's worst rows each record's rows amount to, at most their number; float64, B.

        Losses add up (under Gaussian noise the squares of mu do), so this is the number of positions for which the
        statement's bound of a record is that of this very record.
        """
        return (out.mask_BT if out.share_BT is None else self._own(out.share_BT.double()) * out.mask_BT).double().sum(1)

    def fitted_shares(self) -> Tensor | None:
        """share_N of the job's records, in the order of their file, in what was fitted on them; None: nothing was."""
        return None

    def prepare(self) -> dict[str, float]:
        """Make (or read) every public table now instead of at first use; figures that describe them, if any."""
        return {}

    def resolved(self) -> dict[str, float]:
        """Parameters that only the model decides, as they take effect; see `Params.resolved`."""
        return {}

    def statement(self, generator: NoiseSource | None = None) -> Statement:
        """What may be claimed for this configuration; withdrawn if a fixed seed is or was used."""
        unsafe = self._saw_unsafe_seed or (generator is not None and generator.unsafe)
        return self._statement().marked_unsafe() if unsafe else self._statement()

    def fingerprint(self) -> str:
        """SHA-256 of what determines the noise distribution: name, weights, injection, parameters and tables."""
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
        """`release` after its checks: h_BTD is finite float32, zero at padding."""

    @abstractmethod
    def _statement(self) -> Statement:
        """The statement, assuming real randomness."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """Everything that shapes the noise distribution, JSON-ready: parameters and fingerprints of tables."""

    def _rows(self) -> PublicTable | None:
        """The table that every release is a row of, public or accounted for as a whole; None: there is none."""
        return None

    def _own(self, share_BT: Tensor) -> Tensor:
        """The worst rows that rows of these shares amount to."""
        return share_BT

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
    if not torch.isfinite(torch.stack(h_BTD.aminmax())).all():  # NaN propagates to both ends
        raise NonFinite("the bottom's output has NaN or infinity, so nothing was sent; check the model's weights")


def zero_padding(h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The vectors with padding rows set to zero; the same tensor where there is no padding."""
    return h_BTD if bool(mask_BT.all()) else h_BTD.masked_fill(~mask_BT.unsqueeze(-1), 0.0)
