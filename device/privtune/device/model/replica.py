"""The cloud's blocks on this device, from the owner's own copy of the model: what an honest cloud would answer.

B records, T tokens, D hidden width, M rows without padding, N read-out positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privtune.device.data.batches import IndexArray
from privtune.device.model.tail import padded
from privtune.device.release.perturber import Released
from privtune.shared.errors import ArtifactCorrupt
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.checkpoint import moments_of, parameters_of, training_state
from privtune.shared.modeling.load import load_task_model
from privtune.shared.modeling.lora import (
    adapter_state,
    attach_lora,
    check_lora,
    load_adapter_state,
    train_fully,
    trainable_parameters,
)
from privtune.shared.modeling.optim import build_optimizer, clip_gradients, rate
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.seeding import seeded
from privtune.shared.public_table import PublicTable, released_vectors

State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AnsweredBatch:
    """A micro-batch of a step as it was answered.

    number: its place in the step.
    answer_ND: what came.
    gradient_ND: what was sent for it, as the cloud decodes it.
    """

    number: int
    released: Released
    readout_N: IndexArray
    answer_ND: Tensor
    gradient_ND: Tensor


def check_replica(spec: JobSpec) -> None:
    """Raises `PackageMissing` where this machine can't repeat the steps of a job."""
    if not spec.tail and spec.tuning.method == "lora":
        check_lora()


class Replica:
    """The top of one job, in float32 on the CPU.

    total_steps: of the whole job, the schedule's length.
    table: what the job's ids stand for; None: vectors are sent.
    blocks: how many it has.
    width: D.
    initial: the training state before the first step.

    Raises as `load_task_model` and `attach_lora`.
    """

    def __init__(self, local_model: str, spec: JobSpec, total_steps: int, table: PublicTable | None) -> None:
        self._spec, self._total_steps, self._table = spec, total_steps, table
        partition = Partition(load_task_model(local_model, spec.task))
        self.width = partition.hidden_size
        self.blocks = partition.n_layers - spec.cut - spec.tail
        self._top = partition.top(spec.cut, spec.tail)
        if not spec.tail:
            if spec.tuning.method == "lora":
                attach_lora(self._top, spec.tuning, spec.train.seed)
            else:
                train_fully(self._top)
        self.initial = {f"param.{name}": value.clone() for name, value in adapter_state(self._top).items()}

    @property
    def state_bytes(self) -> int:
        """Roughly what a training state takes: the parameters and two moments."""
        return 3 * sum(value.nbytes for value in self.initial.values())

    @torch.no_grad()
    def states(self, released: Released) -> Tensor:
        """z_MD of the frozen top, for a job with a tail."""
        h_BTD, mask_BT = self._inputs(released)
        z_MD: Tensor = self._top.eval()(h_BTD, mask_BT, mask_BT.flatten().nonzero().flatten())
        return z_MD

    def draws(self, released: Released, readout_N: IndexArray) -> bool:
        """Whether the top draws dropout in training, so that a step can be repeated only with the same draws."""
        with seeded("draws"):
            before = torch.get_rng_state()
            self._run(released, readout_N)
            return not torch.equal(torch.get_rng_state(), before)

    def starts_with(self, state: State) -> bool:
        """Whether a state is the one before the first step."""
        return self.initial.keys() == state.keys() and all(
            state[name].shape == value.shape and torch.allclose(state[name], value)
            for name, value in self.initial.items()
        )

    def repeat(self, step: int, before: State, batches: Sequence[AnsweredBatch]) -> tuple[list[Tensor], list[Tensor]]:
        """out_ND of each micro-batch of a step, and the clipped gradient of each parameter.

        before: the training state before the step. Raises ArtifactCorrupt for one that is none of this job.
        """
        load_adapter_state(self._top, parameters_of(before))
        trained = trainable_parameters(self._top)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        outs = []
        for batch in batches:
            out_ND = self._forward(batch.released, batch.readout_N, step, batch.number)
            (out_ND * batch.gradient_ND).sum().backward()  # type: ignore[no-untyped-call]
            outs.append(out_ND.detach())
        clip_gradients(trained, self._spec.optim.max_grad_norm)
        return outs, [p.grad.clone() for p in trained if p.grad is not None]

    def advance(self, step: int, before: State, gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """The training state that the optimiser leaves when it takes these gradients in `before`."""
        load_adapter_state(self._top, parameters_of(before))
        trained, optim = trainable_parameters(self._top), self._spec.optim
        optimizer = build_optimizer(trained, optim)
        groups = optimizer.state_dict()["param_groups"]
        groups[0]["lr"] = optim.learning_rate * rate(optim, self._total_steps, step)
        optimizer.load_state_dict({"state": moments_of(before), "param_groups": groups})
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        return training_state(adapter_state(self._top), optimizer)

    def gradients_in(self, before: State, after: State) -> list[Tensor | None]:
        """The gradient of each parameter by which the first moments moved; None for one without a moment.

        Raises ArtifactCorrupt for moments that are none of this job's.
        """
        old, new = moments_of(before), moments_of(after)
        beta = build_optimizer([torch.nn.Parameter(torch.zeros(1))], self._spec.optim).param_groups[0]["betas"][0]
        found: list[Tensor | None] = []
        for index, parameter in enumerate(trainable_parameters(self._top)):
            moment = new.get(index, {}).get("exp_avg")
            past = old.get(index, {}).get("exp_avg", torch.zeros_like(parameter))
            if past.shape != parameter.shape or (moment is not None and moment.shape != parameter.shape):
                raise ArtifactCorrupt("the states of a step do not fit this model and tuning")
            found.append(None if moment is None else (moment - beta * past) / (1 - beta))
        return found

    def _forward(self, released: Released, readout_N: IndexArray, step: int, number: int) -> Tensor:
        with seeded("top", self._spec.train.seed, step, number):
            return self._run(released, readout_N)

    def _run(self, released: Released, readout_N: IndexArray) -> Tensor:
        """out_ND in training mode."""
        h_BTD, mask_BT = self._inputs(released)
        out_ND: Tensor = self._top.train()(h_BTD, mask_BT, torch.from_numpy(readout_N))
        return out_ND

    def _inputs(self, released: Released) -> tuple[Tensor, Tensor]:
        """h_BTD and mask_BT, as the cloud makes them of the released bytes."""
        payload = b"".join(release.data for release in released.releases)
        h_MD = released_vectors(
            payload, released.lengths_B, width=self.width, codec=self._spec.codec, table=self._table
        )
        h_BTD, mask_BT = padded(torch.from_numpy(h_MD), released.lengths_B)
        return h_BTD, mask_BT.long()
