"""The head that a zeroth-order job takes its slopes with: it moves and learns as the top in the cloud does.

What a slope depends on must be public or released already, or one record would reach the slopes of others unclipped. A
head that trains on gradients of the records is neither. So this one starts as the job's head and is changed by the
released slopes alone; the head that the owner gets trains beside it and touches no slope. N records, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from privtune.device.model.objectives import loss_N
from privtune.shared.errors import FrameCorrupt, NonFinite
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.optim import build_optimizer, build_schedule
from privtune.shared.modeling.partition import Head
from privtune.shared.modeling.random_directions import direction, moved, set_gradients

_MOST = 1e6  # of an output's element


class SlopeHead:
    """A copy of the job's head at its beginning, taken through the slopes that were sent.

    Args:
        head: as the job begins with it; a copy is made.
        spec: the job.
        total_steps: of the whole job, the schedule's length.
        slopes: of all steps before the present one, in order.
    """

    def __init__(self, head: Head, spec: JobSpec, total_steps: int, slopes: Sequence[float]) -> None:
        self._head, self._spec, self._step = copy.deepcopy(head).eval(), spec, 0
        self._parameters = [parameter for parameter in self._head.parameters() if parameter.requires_grad]
        rate = spec.optim.head_learning_rate or spec.optim.learning_rate
        self._optimizer = build_optimizer([{"params": self._parameters, "lr": rate}], spec.optim)
        self._schedule = build_schedule(self._optimizer, spec.optim, total_steps)
        for slope in slopes:
            self.learn(slope)

    @torch.no_grad()
    def slopes(self, out_2ND: Tensor, targets_N: Tensor) -> Tensor:
        """slope_N of each record's loss along the step's direction, of top and head together; float64.

        out_2ND: outputs with the top moved forwards, then backwards.

        Raises `FrameCorrupt` for outputs that no top has, whatever the labels: huge ones would make the loss of one
        class overflow, and the job's failure would name the labels without noise. `NonFinite` once the head diverged.
        """
        if not bool((out_2ND.abs() <= _MOST).all()):
            raise FrameCorrupt("the cloud sent outputs that are not finite, or larger than any that a model has")
        scale, z = self._spec.zeroth_order.scale, self._z()
        losses = []
        for by, out_ND in zip((scale, -scale), out_2ND.chunk(2), strict=True):
            with moved(self._parameters, z, by):
                losses.append(loss_N(self._head(out_ND).double(), targets_N))
        slope_N: Tensor = (losses[0] - losses[1]) / (2 * scale)
        if not torch.isfinite(slope_N).all():
            raise NonFinite("a loss is not finite; lower --learning-rate or --zeroth-order-scale")
        return slope_N

    def learn(self, slope: float) -> None:
        """One step along its direction."""
        set_gradients(self._parameters, self._z(), slope)
        self._optimizer.step()
        self._schedule.step()
        self._step += 1

    def _z(self) -> list[Tensor]:
        return direction(self._parameters, "head", self._spec.train.seed, self._step)
