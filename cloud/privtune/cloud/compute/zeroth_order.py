"""The top of a zeroth-order job (DP-ZO, Tang et al. 2024, arXiv 2401.04343): it trains, and no gradient comes back.

For each micro-batch the device gets the outputs at theta + scale z and at theta - scale z, z a public direction of the
step. It answers each step with one number: the noised mean slope of its records' losses. N read-out positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privtune.cloud.compute.host import Host
from privtune.cloud.compute.step_machine import StepMachine, resend
from privtune.cloud.compute.top_session import TopSession
from privtune.shared.errors import FrameCorrupt, NonFinite
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.lora import trainable_parameters
from privtune.shared.modeling.random_directions import direction, moved, set_gradients
from privtune.shared.wire import OUTPUT, Message, tensor_message
from privtune.split.v1 import split_pb2 as pb


class ZerothOrderTop(TopSession):
    """A top that learns from slopes. Both outputs are without dropout, in float32: their difference is small.

    slope: what the device answered to the present step.
    """

    def __init__(self, host: Host, spec: JobSpec, total_steps: int, folder: Path) -> None:
        self.slope: float | None = None
        self._direction: tuple[int, list[Tensor]] = (-1, [])
        exact = spec.train.model_copy(update={"precision": "fp32"})
        super().__init__(host, spec.model_copy(update={"train": exact}), total_steps, folder)

    @property
    def weight_bytes(self) -> int:
        """As of any top, the direction, and the parameters as they were before they moved."""
        return super().weight_bytes + 2 * 4 * self.trainable_parameters

    def both(self, h_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor) -> Tensor:
        """out_2ND (float32, CPU): the N outputs at theta + scale z, then those at theta - scale z."""
        parameters, scale = trainable_parameters(self._top), self.spec.zeroth_order.scale
        outputs = []
        for by in (scale, -scale):
            with moved(parameters, self._z(), by):
                outputs.append(self.evaluate(h_BTD, mask_BT, readout_N))
        return torch.cat(outputs)

    def apply(self) -> float:
        """One optimiser step along z; returns the norm of the estimate.

        Raises `FrameCorrupt` when no slope came, `NonFinite` for NaN or infinity.
        """
        if self.slope is None:
            raise FrameCorrupt("a step of a zeroth-order job ended without its slope")
        if not math.isfinite(self.slope):
            raise NonFinite("the device's slope is NaN or infinite")
        norm = set_gradients(trainable_parameters(self._top), self._z(), self.slope)
        self.slope = None
        self._advance()
        return norm

    def _z(self) -> list[Tensor]:
        """The step's direction; kept for its micro-batches."""
        if self._direction[0] != self.step:
            z = direction(trainable_parameters(self._top), "top", self.spec.train.seed, self.step)
            self._direction = (self.step, z)
        return self._direction[1]


class ZerothOrderMachine(StepMachine):
    """The messages of a zeroth-order session: both outputs for each micro-batch, a slope with each step."""

    def __init__(self, top: ZerothOrderTop, *arguments: Any, **options: Any) -> None:
        super().__init__(top, *arguments, **options)
        self._perturbed = top

    def _forward(self, message: Message) -> Iterator[Message]:
        if message.micro_batch in self._done:
            return
        batch = self._unpack(message)
        if batch is None:
            yield resend(message)
            return
        with self._span(message, batch):
            out_2ND = self._perturbed.both(batch.h_BTD, batch.mask_BT, batch.readout_N)
        self._done.add(message.micro_batch)
        yield tensor_message(OUTPUT, message.step, message.micro_batch, out_2ND.numpy(), "fp32")

    def _backward(self, message: Message) -> Iterator[Message]:
        raise FrameCorrupt("this job trains without gradients, and one came")

    def _apply(self, message: Message) -> Message:
        control = message.control or pb.StepControl()
        self._perturbed.slope = control.slope if control.HasField("slope") else None
        return super()._apply(message)
