"""The top of one job in memory: forward, backward, optimiser step, checkpoint. Pure torch; one caller at a time.

The top of a job with a tail is frozen here, since the tail trains on the device; a step then only counts.
Dropout is a function of (seed, step, micro-batch), so a resumed job repeats an uninterrupted run exactly; where memory
runs out for a micro-batch it is computed in parts (`compute.parts`), which draw their own.

Shapes: B batch, T tokens, D hidden width, N read-out positions, C classes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from privtune.cloud.compute.host import Host
from privtune.cloud.compute.padding import together
from privtune.cloud.compute.parts import Part
from privtune.cloud.compute.passes import Company, Passes
from privtune.cloud.compute.work import Work, finished
from privtune.cloud.speeds import Pass
from privtune.shared.errors import FrameCorrupt, InvalidInput, JobConflict, NonFinite
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.checkpoint import (
    checkpoint_steps,
    load_checkpoint,
    load_parameters,
    save_checkpoint,
    training_state,
)
from privtune.shared.modeling.kv_cache import TopCache
from privtune.shared.modeling.lora import (
    adapter_state,
    attach_lora,
    load_adapter_state,
    save_adapter,
    train_fully,
    trainable_parameters,
)
from privtune.shared.modeling.optim import build_optimizer, build_schedule, clip_gradients
from privtune.shared.modeling.partition import Top
from privtune.shared.modeling.recompute import recompute_blocks
from privtune.shared.modeling.seeding import seeded
from privtune.shared.modeling.training_size import graph_bytes, weight_bytes
from privtune.shared.modeling.weights_hash import weights_sha256
from privtune.shared.wording import counted

# With shared labels the head trains in the cloud; the owner's export takes it from this file.
HEAD_WEIGHTS = "head.safetensors"


class TopSession:
    """One job's top with its adapter and optimiser.

    step: optimiser steps applied so far.
    total_steps: steps of the whole job, the length of the learning-rate schedule.
    folder: where checkpoints are kept.
    shared_loss: with shared labels, the mean loss of the step so far.
    """

    def __init__(self, host: Host, spec: JobSpec, total_steps: int, folder: Path) -> None:
        self.spec, self.folder, self.step = spec, folder, 0
        self.total_steps = total_steps
        self._host, self.device, self._speeds = host, host.device, host.speeds
        self._autocast = host.autocast_dtype(spec.train.precision)
        self._top = host.top(spec)
        self._blocks = host.partition(spec.model, spec.task).n_layers - spec.cut - spec.tail
        self._make_trainable(self._top)
        if spec.tuning.gradient_checkpointing:
            recompute_blocks(self._top)
        self._head = host.head(spec) if spec.labels == "shared" else None
        self._first_head = {name: value.clone() for name, value in self._head_state().items()}
        self._passes = Passes(
            self._top,
            self._head,
            self.device,
            self._autocast,
            self._seeded,
            recomputes=spec.tuning.gradient_checkpointing,
            company=self._company(host),
        )
        self._saved = 0  # step of the checkpoint that is on the disk; none is needed of the beginning
        self._moved = False  # from what the seed gave
        self._new_optimizer()

    @property
    def trainable_parameters(self) -> int:
        """Number of the top's parameters that train in the cloud."""
        return sum(parameter.numel() for parameter in trainable_parameters(self._top))

    @property
    def in_parts(self) -> bool:
        """Whether memory ran out for a micro-batch of the step, which was then computed in parts."""
        return self._passes.in_parts

    def training_state(self) -> dict[str, Tensor]:
        """A copy of what trains here and its moments; see `privtune.shared.modeling.checkpoint.training_state`."""
        return {name: value.clone() for name, value in training_state(self._state(), self._optimizer).items()}

    def state_sha256(self) -> str:
        """Hex hash of the same."""
        return weights_sha256(training_state(self._state(), self._optimizer))

    @property
    def weight_bytes(self) -> int:
        """What a job's own weights take beside the frozen base: as trained, gradient, two moments."""
        return weight_bytes(self.trainable_parameters)

    def positions(self, most: int) -> int:
        """Positions that the model has, `most` where it names no number or a larger one."""
        named = getattr(self._top.config, "max_position_embeddings", None)
        return min(named, most) if named is not None and named > 0 else most

    def graph_bytes(self, rows: int, width: int) -> int:
        """At most what the graph of one forward pass over `rows` padded rows keeps, in bytes."""
        return graph_bytes(rows, width, self._blocks, recomputed=self.spec.tuning.gradient_checkpointing)

    def compute_alone(self) -> None:
        """From here on no pass is computed with other jobs': its numbers repeat bit by bit."""
        self._passes.company = None

    def forward(
        self, micro_batch: int, h_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor, *, want_cut_gradient: bool
    ) -> Work[Tensor]:
        """Run the top in training mode and keep its graph; gives out_ND (float32, CPU)."""
        if self.spec.tail:
            raise FrameCorrupt("this job trains on its device: only forward-only frames are accepted")
        h_BTD.requires_grad_(want_cut_gradient)
        whole = Part.whole(micro_batch, h_BTD, mask_BT, readout_N)
        return self._counted(self._passes.forward(micro_batch, whole), "train", mask_BT)

    def forward_loss(
        self, micro_batch: int, h_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor, labels_N: Tensor, weight: float
    ) -> Work[float]:
        """With shared labels: loss and backward pass here. weight: the micro-batch's share of the step's mean loss.

        Gives the weighted loss; `shared_loss` is theirs added up by the caller.
        """
        if self._head is None:
            raise FrameCorrupt("labels came for a job whose labels are private; they were not used")
        whole = Part.whole(micro_batch, h_BTD, mask_BT, readout_N)
        return self._counted(self._passes.learn(whole, labels_N, weight), "train", mask_BT)

    def backward(self, micro_batch: int, dout_ND: Tensor) -> Work[Tensor | None]:
        """Accumulate gradients from dout_ND; gives d loss / d h_BTD (CPU) if `forward` was asked for it."""
        return self._counted(self._passes.backward(micro_batch, dout_ND), "train")

    def evaluating(self, h_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor) -> Generator[Work[Tensor], None, Tensor]:
        """out_ND (float32, CPU) without dropout or graph; logits_NC with shared labels. Yields the passes for it."""
        longest, works, places = h_BTD.shape[1], [], []
        for rows in together(mask_BT.sum(1).tolist()):
            T, which = int(mask_BT[rows].sum(1).max()), torch.full((len(h_BTD),), -1)
            which[rows] = torch.arange(len(rows))
            mine_N = which[readout_N // longest]
            readout = (mine_N * T + readout_N % longest)[mine_N >= 0]
            part = Part.whole(0, h_BTD[rows, :T], mask_BT[rows, :T], readout)
            work = self._counted(self._passes.evaluate(part), "forward", part.mask_BT)
            yield work
            works.append(work)
            places.append((mine_N >= 0).nonzero().flatten())
        return torch.cat([work.result() for work in works])[torch.cat(places).argsort()]

    def evaluate(self, h_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor) -> Tensor:
        """The same, at once."""
        return finished(self.evaluating(h_BTD, mask_BT, readout_N))

    def new_text(self) -> TopCache:
        """An empty cache of keys and values for one text."""
        return TopCache(self._top)

    @torch.no_grad()
    def extend(self, text: TopCache, h_TD: Tensor) -> Tensor:
        """out_TD of the new positions of one text (float32, CPU). Raises `InvalidInput` over the model's context."""
        self._check_length(text.past + len(h_TD))
        self._top.eval()
        with self._mixed():
            out_TD = text.extend(h_TD.to(self.device))
        return out_TD.float().cpu()

    @torch.no_grad()
    def extend_together(self, texts: Sequence[TopCache], h_ND: Tensor) -> Tensor:
        """out_ND of one new position per text, in one pass over the weights."""
        self._check_length(max(text.past for text in texts) + 1)
        self._top.eval()
        with self._mixed():
            out_ND = TopCache.extend_together(texts, h_ND.to(self.device))
        return out_ND.float().cpu()

    @torch.no_grad()
    def begin_together(self, texts: Sequence[TopCache], h_BTD: Tensor, lengths: Sequence[int]) -> Tensor:
        """out_BTD of the first positions of new texts, in one pass over the weights. h_BTD is padded on the right."""
        self._check_length(max(lengths))
        self._top.eval()
        with self._mixed():
            out_BTD = TopCache.begin_together(texts, h_BTD.to(self.device), lengths)
        return out_BTD.float().cpu()

    def _check_length(self, tokens: int) -> None:
        longest = getattr(self._top.config, "max_position_embeddings", None)
        if longest is not None and tokens > longest:
            raise InvalidInput(f"a text of {counted(tokens, 'token')} is over this model's {longest}")

    def apply(self) -> float:
        """One optimiser step; returns the gradient norm before clipping.

        Raises `FrameCorrupt` when a micro-batch still lacks its gradient, `NonFinite` for NaN or infinity.
        """
        if waiting := self._passes.waiting:
            raise FrameCorrupt(f"the step ended while micro-batch {min(waiting)} had no gradient")
        with self._timed("train"):
            norm = clip_gradients(trainable_parameters(self._top), self.spec.optim.max_grad_norm)
            if not torch.isfinite(torch.tensor(norm)):
                raise NonFinite(
                    "the cloud's gradient is NaN or infinite; lower --learning-rate or use --precision fp32"
                )
            if self._head is not None:
                clip_gradients(list(self._head.parameters()), self.spec.optim.max_grad_norm)
            self._advance()
        return norm

    def _advance(self) -> None:
        """The optimiser's step on the gradients that are there."""
        self._moved = True
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def begin_step(self) -> None:
        """Drop what an interrupted step left behind."""
        self._passes.clear()
        self.shared_loss = 0.0
        self._optimizer.zero_grad(set_to_none=True)

    def save(self, *, candidate: bool = False) -> None:
        """Write a checkpoint of the present step, once. candidate: it may become the model. Raises `StorageFull`."""
        if self._saved != self.step:
            save_checkpoint(
                self.folder,
                self.step,
                self._state(),
                self._optimizer,
                self._schedule,
                candidate=candidate,
                candidates=self.spec.train.candidates,
            )
            self._saved = self.step

    def rewind(self, step: int) -> None:
        """Restore the checkpoint of `step`, or the initial state for 0. Newer ones stay until the next is written."""
        self._new_optimizer()
        if step > 0:
            self._load(load_checkpoint(self.folder, step, self._optimizer, self._schedule))
        elif self._moved:
            self._load(self._first_state())
        self.step = self._saved = step
        self.begin_step()

    def load_newest(self, among: Collection[int]) -> None:
        """Load the parameters of the newest checkpoint of these steps, for inference; a frozen top has none.

        Raises `JobConflict` when there is no such checkpoint.
        """
        if self.spec.tail:
            return
        steps = [step for step in checkpoint_steps(self.folder) if step in among]
        if not steps:
            raise JobConflict("the cloud has no checkpoint of the step that this device is at; train the job further")
        self._load(load_parameters(self.folder, steps[-1]))
        self.step = steps[-1]

    def export(self, folder: Path) -> None:
        """Write the adapter's files; none for a job with a tail. Raises what safetensors raises on a full disk."""
        if self.spec.tail:
            return
        save_adapter(self._top, folder)
        if self._head is not None:
            head = {name: value.cpu().contiguous() for name, value in self._head.state_dict().items()}
            save_file(head, folder / HEAD_WEIGHTS)

    def _make_trainable(self, top: Top) -> None:
        if self.spec.tail:
            return
        if self.spec.tuning.method == "lora":
            attach_lora(top, self.spec.tuning, self.spec.train.seed)
        else:
            train_fully(top)

    def _first_state(self) -> dict[str, Tensor]:
        """What training began with, made once more: kept, it would be as large as the adapter of each job."""
        top = self._host.top(self.spec)
        self._make_trainable(top)
        return adapter_state(top) | self._first_head

    def _new_optimizer(self) -> None:
        self.step = 0
        optim = self.spec.optim
        # A frozen top has nothing to train; the placeholder keeps optimiser and checkpoints in one form.
        trained = trainable_parameters(self._top) or [torch.nn.Parameter(torch.zeros(1))]
        groups = [{"params": trained, "lr": optim.learning_rate}]
        if self._head is not None:
            groups.append(
                {"params": list(self._head.parameters()), "lr": optim.head_learning_rate or optim.learning_rate}
            )
        self._optimizer = build_optimizer(groups, optim)
        self._schedule = build_schedule(self._optimizer, optim, self.total_steps)
        self.begin_step()

    def _state(self) -> dict[str, Tensor]:
        return adapter_state(self._top) | self._head_state()

    def _head_state(self) -> dict[str, Tensor]:
        return {} if self._head is None else {f"head.{name}": v for name, v in self._head.state_dict().items()}

    def _load(self, state: dict[str, Tensor]) -> None:
        self._moved = True
        load_adapter_state(self._top, {k: v for k, v in state.items() if not k.startswith("head.")})
        if self._head is not None:
            self._head.load_state_dict({k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")})

    def _seeded(self, *part: int) -> contextlib.AbstractContextManager[None]:
        return seeded("top", self.spec.train.seed, self.step, *part)

    def _company(self, host: Host) -> Company | None:
        """Tops over the same slice in the same arithmetic, adapted by LoRA or not at all."""
        tuning = self.spec.tuning
        if not self.spec.tail and (tuning.method != "lora" or tuning.gradient_checkpointing):
            return None
        spec = self.spec
        key = (spec.model, spec.task, host.stored(spec), spec.cut, spec.tail, self._autocast)
        return Company(key=key, top=host.joint_top(spec))

    def _counted(self, work: Work[Any], kind: Pass, mask_BT: Tensor | None = None) -> Work[Any]:
        """Count how long a part of a step takes. mask_BT: of positions that no earlier part has counted."""
        tokens = 0 if mask_BT is None else mask_BT.numel() * self._blocks
        work.counted = partial(self._speeds.add, self.spec.model, kind, tokens)
        return work

    @contextlib.contextmanager
    def _timed(self, kind: Pass) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._speeds.add(self.spec.model, kind, 0, time.perf_counter() - began)

    def _mixed(self) -> contextlib.AbstractContextManager[object]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)
