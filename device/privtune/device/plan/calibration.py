"""A few real micro-batches of a job on this device: the job's own code, its own records, and answers made up here.

Nothing leaves. What is drawn goes into a scratch store, so it is never a release of the job that may follow.
B records, T tokens, D width, N read-out positions.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from privtune.device.data.batches import BatchPlan, IndexArray
from privtune.device.data.encode import EncodedDataset
from privtune.device.model.final_states import FinalStates, StateStore
from privtune.device.model.head import HeadTrainer
from privtune.device.model.objectives import targets
from privtune.device.model.tail import Tail
from privtune.device.release.noising import Noise
from privtune.device.release.perturber import Perturber, Uploader
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.modeling.partition import Top
from privtune.shared.wire import GRADIENT, OUTPUT, FrameWriter, Message, tensor_message

_BATCHES = 6  # measured ones
_ENOUGH_S = 20.0  # no further micro-batch is begun after this
_STORE_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Seconds on this device, for a position of a micro-batch unless said otherwise.

    draw: bottom, noise, encoding, store and frames, at the first use of a record.
    again: the same at a later use, from the store.
    learn: head, loss and gradient; with a tail its blocks, forward and backward.
    score: head, and tail, without gradients.
    step: the optimiser here, for a step.
    top: the cloud's blocks without gradients on this machine; None where this device does not have them.
    rows: released rows for a token.
    trained: weights that train here.
    """

    draw: float
    again: float
    learn: float
    score: float
    step: float
    top: float | None
    rows: float
    trained: int


def calibrate(
    spec: JobSpec, package: BottomPackage, noise: Noise, data: EncodedDataset, folder: Path, top: Top | None = None
) -> Calibration:
    """Measure. folder: for the scratch stores, on the disk that the job will use. top: the cloud's blocks."""
    seconds: Counter[str] = Counter()
    positions = rows = tokens = 0
    with _bench(spec, package, noise, folder) as bench:
        lengths_R = bench.perturber.lengths(data)
        began, chosen = time.perf_counter(), _spread(lengths_R, spec)
        for number, indices in enumerate(chosen):
            took, released = bench.micro_batch(data, indices, top)
            if number == 0 and len(chosen) > 1:  # a rehearsal: first calls allocate
                continue
            seconds.update(took)
            positions += len(indices) * int(lengths_R[indices].max())
            rows, tokens = rows + released, tokens + int(lengths_R[indices].sum())
            if time.perf_counter() - began > _ENOUGH_S:
                break
        measured = {name: seconds[name] / positions for name in ("draw", "again", "learn", "score")}
        steps = max(1, len(bench.steps) - (len(chosen) > 1))
        return Calibration(
            **measured,
            step=sum(bench.steps[-steps:]) / steps,
            top=None if top is None else seconds["top"] / positions,
            rows=rows / tokens,
            trained=bench.head.trainable_parameters if spec.labels == "private" else 0,
        )


def _spread(lengths_R: IndexArray, spec: JobSpec) -> list[IndexArray]:
    """Micro-batches of all widths, each of other records; the first is for the rehearsal."""
    plan = BatchPlan(lengths_R, spec.train)
    every = [batch for step in range(plan.steps_per_epoch) for batch in plan.micro_batches(step)]
    every.sort(key=lambda batch: int(lengths_R[batch].max()))
    count = min(_BATCHES, len(every))
    places = [(2 * place + 1) * len(every) // (2 * count) for place in range(count)]
    rehearsed = next((place for place in range(len(every)) if place not in places), None)
    return [every[place] for place in ([] if rehearsed is None else [rehearsed]) + places]


@contextlib.contextmanager
def _bench(spec: JobSpec, package: BottomPackage, noise: Noise, folder: Path) -> Iterator[_Bench]:
    store = ReleaseStore(folder / "releases.sqlite", "plan", _STORE_BYTES)
    states = StateStore(folder / "states.sqlite", "plan", _STORE_BYTES)
    with contextlib.closing(store), contextlib.closing(states):
        yield _Bench(spec, package, noise, store, states if spec.tail else None)


class _Bench:
    """The device's parts of a job, as its session has them. steps: seconds of each optimiser step."""

    def __init__(
        self, spec: JobSpec, package: BottomPackage, noise: Noise, store: ReleaseStore, kept: StateStore | None
    ) -> None:
        self._spec, self._package, self.steps = spec, package, list[float]()
        self.perturber = Perturber(
            package.bottom, noise.mechanism, noise.source, store, spec.codec, noise.importance, padding=noise.padding
        )
        self.head = HeadTrainer(
            package.head,
            spec.optim,
            tail=Tail.of(package, spec),
            seed=spec.train.seed,
            total_steps=1000,
            label_epsilon=spec.label_epsilon,
        )
        self._states = FinalStates(self.head, self.perturber, package, spec, kept)
        self._uploader = Uploader(*noise.mechanism.sent_as(spec.codec))
        self._writer = FrameWriter(epoch=1)

    def micro_batch(self, data: EncodedDataset, indices: IndexArray, top: Top | None) -> tuple[Counter[str], int]:
        """Seconds by part, and released rows."""
        took: Counter[str] = Counter()
        spec, states, head = self._spec, self._states, self.head
        for use in ("draw", "again"):
            with _timed(took, use):
                released = states.perturber.release(data, indices)
                readout_N, targets_N = targets(data, indices, released, self._package.readout)
                message = self._uploader.forward(
                    released, states.asked(readout_N), step=0, micro_batch=0, forward_only=spec.tail > 0
                )
                self._frames(message)
        rows = released.rows() if spec.tail else len(readout_N)
        answer = tensor_message(OUTPUT, 0, 0, torch.randn(rows, self._package.hidden_size).numpy(), spec.output_codec)
        place = {"step": len(self.steps), "micro_batch": 0, "items": len(targets_N)}
        with _timed(took, "learn"):
            if spec.tail:
                inputs = states.states(data, indices, released, answer)
                head.learn(inputs, torch.from_numpy(readout_N), targets_N, **place)
            elif spec.labels == "private":
                _, gradient_ND = head.loss(torch.from_numpy(answer.tensor()), targets_N, **place)
                self._frames(tensor_message(GRADIENT, 0, 0, gradient_ND.numpy(), spec.codec))
        with _timed(took, "step"):
            head.step()
        self.steps.append(took.pop("step"))
        with _timed(took, "score"), torch.no_grad():
            out_ND = states.out(data, indices, released, readout_N, answer) if spec.labels == "private" else None
            for some_ND in () if out_ND is None else torch.split(out_ND, head.rows_at_once):
                states.logits(some_ND)
        if top is not None:
            self._pass(took, top, released.lengths_B)
        return took, released.rows()

    def _frames(self, message: Message) -> None:
        for frame in self._writer.frames(message):
            frame.SerializeToString()

    def _pass(self, took: Counter[str], top: Top, lengths_B: IndexArray) -> None:
        lengths = torch.from_numpy(lengths_B)
        mask_BT = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        h_BTD = torch.randn(*mask_BT.shape, self._package.hidden_size)
        with _timed(took, "top"), torch.no_grad():
            top(h_BTD, mask_BT, torch.arange(len(lengths)))


@contextlib.contextmanager
def _timed(took: Counter[str], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    took[part] += time.perf_counter() - began  # type: ignore[assignment]
