"""`none`: clean vectors leave. Surrogates protect the text, or nothing does."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from privtune.device.noise.base import Mechanism, Release
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.params import NoneParams
from privtune.device.noise.randomness import NoiseSource
from privtune.device.privacy.statements import Statement
from privtune.device.privacy.statements.no_bound import none_statement


class NoMechanism(Mechanism):
    """Sends the bottom's output as it is. Protects nothing."""

    name: ClassVar[str] = "none"

    def __init__(self, params: NoneParams, context: NoiseContext) -> None:
        super().__init__(context)

    def _release(
        self, ids_BT: Tensor, h_BTD: Tensor, mask_BT: Tensor, importance_BT: Tensor | None, generator: NoiseSource
    ) -> Release:
        return Release(h_BTD=h_BTD, mask_BT=mask_BT)

    def _statement(self) -> Statement:
        return none_statement()

    def _facts(self) -> dict[str, Any]:
        return {}
