"""`RemoteTop`: the cloud's blocks as a module, for a training loop, a loss or a trainer of one's own.

    numbers of records -> [released once, sent] -> the cloud's blocks -> out_ND -> your head -> your loss
                                  the gradient at out_ND, sent <------- backward

The parameters of the blocks are in the cloud, and so is their optimiser, with the settings of the job: the module has
none of its own. B records, N read-out positions (one a record; of a language model one a predicted token), D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.data import Dataset

from privtune.device.client.begin import Begun, Say
from privtune.device.data.batches import IndexArray
from privtune.device.training.own_loop import OwnLoop, StepDone, own_loop
from privtune.shared.errors import InvalidInput, JobConflict

if TYPE_CHECKING:
    from privtune.device.privacy.statements import Statement
    from privtune.device.training.job import RunResult
    from privtune.device.training.progress import EvalInfo, StartInfo, StepInfo


class RecordNumbers(Dataset[dict[str, int]]):
    """The records of a job by number, for a DataLoader or a trainer: `{"records": n}`, with a classifier's `labels`."""

    def __init__(self, first: int, labels: Sequence[int] | None, count: int) -> None:
        self._first, self._labels, self._count = first, labels, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> dict[str, int]:
        if not 0 <= place < self._count:
            raise IndexError(place)
        number = {"records": self._first + place}
        return number if self._labels is None else number | {"labels": int(self._labels[place])}


class RemoteTop(nn.Module):
    """The cloud's blocks of one job. `Client.remote_top` opens it.

        with client.remote_top("reviews.csv", model="minilm", max_steps=100) as top:
            head = top.head
            optimizer = top.follow(torch.optim.AdamW(head.parameters(), lr=5e-4))
            for step in range(top.steps, top.total_steps):
                for records in top.batches(step):
                    loss = my_loss(head(top(records)), top.targets(records))
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            result = top.finish()

    What a pass costs and reveals is what a step of `Client.finetune` does: a record is released once, however often it
    is passed, and the ledger is charged once. Gradients at the cloud's output leave, and reveal what your loss says.

    Records are numbered in the job's secret order, so that the order of sending says nothing of their file.
    """

    def __init__(self, job_id: str, loop: OwnLoop) -> None:
        super().__init__()
        self.job_id, self._loop = job_id, loop
        self._place: Tensor
        self.register_buffer("_place", torch.zeros(()), persistent=False)  # moves with `to(device)`

    def forward(self, records: Tensor | Sequence[int]) -> Tensor:
        """out_ND, float32, in the order of the records; with a gradient while the module trains.

        records: their numbers, B; training ones, or held-out ones under `eval()` or `torch.no_grad()`.

        Raises InvalidInput for more records, passes in a step or passes without backward than the job's batch_size,
        accumulation and in_flight allow; CloudUnreachable and the like, after which the module is closed.
        """
        numbers_B = _numbers(records)
        # A message names a record once.
        different_B, places_B = np.unique(numbers_B, return_inverse=True)
        if self.training and torch.is_grad_enabled():
            anchor = torch.zeros((), requires_grad=True)
            out_ND: Tensor = _OverTheWire.apply(anchor, self._loop, different_B)  # type: ignore[no-untyped-call]
        else:
            out_ND = self._loop.forward(different_B, learning=False)[1]
        if not np.array_equal(numbers_B, different_B):
            out_ND = out_ND[self._rows(different_B, places_B)]
        return out_ND.to(self._place.device)

    def targets(self, records: Tensor | Sequence[int]) -> Tensor:
        """targets_N, int64: the class of each record, or the token that follows each position of `forward`."""
        numbers_B = _numbers(records)
        different_B, places_B = np.unique(numbers_B, return_inverse=True)
        targets_N = self._loop.targets(different_B)
        return targets_N[self._rows(different_B, places_B)].to(self._place.device)

    def batches(self, step: int) -> list[Tensor]:
        """The records of each pass of a step, as the built-in loop would have them."""
        return [torch.from_numpy(indices) for indices in self._loop.job.plan.micro_batches(step)]

    def step(self, *, checkpoint: bool | None = None) -> StepDone:
        """Let the cloud's optimiser step on the gradients since the last step. See `follow`.

        checkpoint: keep this state, on both sides; None: every `checkpoint_every` steps and at the end.

        Raises InvalidInput where nothing was passed, JobPaused, JobCancelled.
        """
        return self._loop.step(checkpoint=checkpoint)

    def follow(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Step in the cloud after each step of this optimizer, and return it: a trainer then needs no other change."""
        optimizer.register_step_post_hook(lambda *_: self._followed())
        return optimizer

    def finish(self) -> RunResult:
        """End the job: the cloud writes the adapter, the device keeps `head`, and `Client.job` gives the model.

        Raises JobConflict where steps are left and the present one has no checkpoint.
        """
        return self._loop.finish()

    @property
    def head(self) -> nn.Module:
        """The model's own head, out_ND to logits_NC; trainable for a classifier, frozen for a language model."""
        return self._loop.head.head

    @property
    def dataset(self) -> RecordNumbers:
        """The training records."""
        train = self._loop.job.train
        return RecordNumbers(0, None if train.labels is None else train.labels.tolist(), len(train))

    @property
    def held_out(self) -> RecordNumbers | None:
        """The held-out records, numbered after the others; None without any."""
        found, first = self._loop.job.validation, len(self._loop.job.train)
        if found is None:
            return None
        return RecordNumbers(first, None if found.labels is None else found.labels.tolist(), len(found))

    def rows(self, records: Tensor | Sequence[int]) -> list[int]:
        """Which row of the data, from 1, each of these is (of a text file: which line); for targets of your own."""
        job, numbers_B = self._loop.job, _numbers(records)
        (lines, held_out), found = job.lines, []
        for number in numbers_B.tolist():
            own, data = (lines, job.train) if number < len(job.train) else (held_out, job.validation)
            if own is None or data is None:
                raise InvalidInput(f"there is no record {number}")
            found.append(int(own.number_N[data.places[number % len(job.train)]]))
        return found

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, by number."""
        return self._loop.job.train.label_names

    @property
    def statement(self) -> Statement:
        """What may be claimed for the releases."""
        return self._loop.job.releasing.statement

    @property
    def steps(self) -> int:
        """Optimiser steps done; more than 0 where an earlier loop left a checkpoint."""
        return self._loop.steps

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the job, to which the cloud's learning rate is scheduled."""
        return self._loop.job.plan.total_steps

    def get_extra_state(self) -> Tensor:
        """What `state_dict` holds: the job and its step."""
        return torch.tensor([_named(self.job_id), self.steps])

    def set_extra_state(self, state: Tensor) -> None:
        """`load_state_dict` takes the cloud back to the step. Raises JobConflict where it has no checkpoint of it."""
        job, step = torch.as_tensor(state).tolist()
        if job != _named(self.job_id):
            raise JobConflict(f"this state is not of job {self.job_id}")
        self._loop.rewind(step)

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"job={self.job_id!r}, step={self.steps}/{self.total_steps}"

    def _followed(self) -> None:
        self.step()

    def _rows(self, different_B: IndexArray, places_B: IndexArray) -> Tensor:
        """Where in the output for different records that for each asked one is, N."""
        counts = self._loop.readouts(different_B)
        starts = np.cumsum(counts) - counts
        return torch.from_numpy(
            np.concatenate([np.arange(starts[place], starts[place] + counts[place]) for place in places_B.tolist()])
        )


class _OverTheWire(torch.autograd.Function):
    """A pass through the cloud: its gradient is sent, and the cloud's parameters learn from it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, loop: OwnLoop, records_B: IndexArray) -> Tensor:
        """anchor: requires a gradient, since numbers of records can't."""
        ctx.loop, ctx.step = loop, loop.steps
        ctx.number, out_ND = loop.forward(records_B, learning=True)
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor | None, None, None]:
        ctx.loop.backward(ctx.step, ctx.number, gradient_ND.float().cpu())
        return torch.zeros(()), None, None


class _Spoken:
    """What is reported before the first step, as lines."""

    def __init__(self, say: Say) -> None:
        self.message = say

    def started(self, info: StartInfo) -> None:
        self.message(f"Privacy: {info.statement.text}")
        for caveat in info.statement.caveats:
            self.message(f"  - {caveat}")

    def step(self, info: StepInfo) -> None:
        pass

    def evaluated(self, info: EvalInfo) -> None:
        pass


@contextmanager
def opened_top(begun: Begun, say: Say) -> Iterator[RemoteTop]:
    """The module of a job; see `Client.remote_top`."""
    with own_loop(begun.job_id, begun.request, begun.settings, _Spoken(say)) as loop:
        yield RemoteTop(begun.job_id, loop)


def _numbers(records: Tensor | Sequence[int]) -> IndexArray:
    return np.atleast_1d(torch.as_tensor(records, dtype=torch.long).cpu().numpy())


def _named(job_id: str) -> int:
    """A number for a job, since trainers keep tensors alone."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:7], "big")
