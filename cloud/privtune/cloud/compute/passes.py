"""Forward and backward passes of one top, in parts where memory runs out; one caller at a time.

Shapes: B batch, T tokens, D hidden width, N read-out positions, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from privtune.cloud.compute.parts import Part, in_smaller_parts, joined
from privtune.shared.errors import FrameCorrupt
from privtune.shared.modeling.lora import trainable_parameters
from privtune.shared.modeling.partition import Top

Context = contextlib.AbstractContextManager[object]
Gradients = Sequence[Tensor | None]


@dataclass(kw_only=True)
class _Pass:
    """A forward pass that waits for its gradient.

    parts: how many it was computed in.
    graph: h_BTD and out_ND, while its graph is kept; a pass in parts is repeated instead.
    """

    whole: Part
    shape: torch.Size = field(default_factory=torch.Size)
    parts: int = 1
    graph: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Passes:
    """Passes of a top and, with shared labels, its head; gradients add up in their parameters.

    seeded: makes dropout a function of a part's key.
    recomputes: the backward pass draws dropout again (gradient checkpointing).
    in_parts: memory ran out for a pass of the step.
    """

    def __init__(
        self,
        top: Top,
        head: nn.Module | None,
        device: torch.device,
        autocast: torch.dtype | None,
        seeded: Callable[..., Context],
        *,
        recomputes: bool,
    ) -> None:
        self._top, self._head, self._device, self._autocast = top, head, device, autocast
        self._seeded, self._recomputes = seeded, recomputes
        self._waiting: dict[int, _Pass] = {}
        self.in_parts = False

    @property
    def waiting(self) -> list[int]:
        """Micro-batches whose gradient has not come."""
        return list(self._waiting)

    def clear(self) -> None:
        """Drop passes that wait; a step begins."""
        self._waiting.clear()
        self.in_parts = False

    def forward(self, micro_batch: int, whole: Part) -> Tensor:
        """out_ND (float32, CPU) in training mode; its gradient is expected in `backward`."""
        begun = _Pass(whole=whole)
        out_ND = in_smaller_parts(len(whole.h_BTD), partial(self._forward, begun))
        self._waiting[micro_batch] = begun
        return out_ND.detach().cpu()

    def backward(self, micro_batch: int, dout_ND: Tensor) -> Tensor | None:
        """Accumulate gradients from dout_ND; returns d loss / d h_BTD (CPU) if h_BTD requires one."""
        if micro_batch not in self._waiting:
            raise FrameCorrupt(f"a gradient came for micro-batch {micro_batch}, which has no forward pass")
        begun = self._waiting.pop(micro_batch)
        whole, trained, dout_ND = begun.whole, self._trained, dout_ND.to(self._device)
        if dout_ND.shape != begun.shape:
            raise FrameCorrupt(f"a gradient of shape {tuple(dout_ND.shape)} came for {tuple(begun.shape)}")

        def learn(parts: int) -> tuple[Gradients, Tensor | None]:
            cut_BTD = torch.zeros_like(whole.h_BTD) if whole.h_BTD.requires_grad else None
            total: Gradients = [None] * len(trained)
            self.in_parts |= parts > 1
            for part in whole.split(parts):
                h_BTD, out_ND = begun.graph.pop() if begun.graph else self._run(part)
                inputs = trained if cut_BTD is None else [*trained, h_BTD]
                found = self._gradients(part, out_ND, inputs, dout_ND[part.place_N])
                total = _sum(total, found[: len(trained)])
                if cut_BTD is not None and (of_part_BTD := found[-1]) is not None:
                    cut_BTD[part.first : part.first + len(of_part_BTD)] = of_part_BTD.cpu()
            return total, cut_BTD

        gradients, cut_BTD = in_smaller_parts(len(whole.h_BTD), learn, begun.parts)
        _accumulate(trained, gradients)
        return cut_BTD

    def learn(self, whole: Part, labels_N: Tensor, weight: float) -> float:
        """Forward pass, `weight` times the mean cross-entropy of the head, and backward pass; returns the loss."""
        trained, labels_N = self._trained, labels_N.to(self._device)

        def learn(parts: int) -> tuple[float, Gradients]:
            loss = 0.0
            total: Gradients = [None] * len(trained)
            for part in whole.split(parts):
                _, logits_NC = self._run(part, head=self._head)
                mean = nn.functional.cross_entropy(logits_NC, labels_N[part.place_N])
                share = mean * (weight * (len(part.place_N) / len(labels_N)))
                total = _sum(total, self._gradients(part, share, trained))
                loss += float(share.detach())
            return loss, total

        loss, gradients = in_smaller_parts(len(whole.h_BTD), learn)
        _accumulate(trained, gradients)
        return loss

    @torch.no_grad()
    def evaluate(self, whole: Part) -> Tensor:
        """out_ND (float32, CPU) without dropout or graph; logits_NC with a head."""

        def compute(parts: int) -> Tensor:
            split = whole.split(parts)
            return joined(split, [self._run(part, head=self._head, training=False)[1].cpu() for part in split])

        return in_smaller_parts(len(whole.h_BTD), compute)

    def _forward(self, begun: _Pass, parts: int) -> Tensor:
        if parts == 1:
            begun.graph = [self._run(begun.whole)]
            out_ND = begun.graph[0][1]
        else:
            split = begun.whole.split(parts)
            with torch.no_grad():
                out_ND = joined(split, [self._run(part)[1] for part in split])
        begun.parts, begun.shape = parts, out_ND.shape
        self.in_parts |= parts > 1
        return out_ND

    def _run(self, part: Part, *, head: nn.Module | None = None, training: bool = True) -> tuple[Tensor, Tensor]:
        """A part's h_BTD on the computing device, and its out_ND (float32), or logits_NC with a head."""
        h_BTD = part.h_BTD.detach().to(self._device).requires_grad_(part.h_BTD.requires_grad)
        for module in (self._top, *(() if head is None else (head,))):
            module.train(training)
        mixed = torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None)
        with self._seeded(*part.key) if training else contextlib.nullcontext(), mixed:
            out_ND = self._top(h_BTD, part.mask_BT.to(self._device), part.readout_N.to(self._device)).float()
            return h_BTD, out_ND if head is None else head(out_ND).float()

    def _gradients(self, part: Part, out: Tensor, inputs: Sequence[Tensor], dout: Tensor | None = None) -> Gradients:
        """Gradients of the inputs; nothing is accumulated, so that a pass which fails half-way leaves no trace."""
        # Recomputed blocks draw their dropout again, so no other thread may use torch's generator meanwhile.
        with self._seeded(*part.key) if self._recomputes else contextlib.nullcontext():
            return torch.autograd.grad(out, list(inputs), dout, allow_unused=True)

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [*trainable_parameters(self._top), *(() if self._head is None else self._head.parameters())]


def _sum(one: Gradients, other: Gradients) -> Gradients:
    return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]


def _accumulate(parameters: Sequence[nn.Parameter], gradients: Gradients) -> None:
    for parameter, more in zip(parameters, gradients, strict=True):
        if more is not None:
            parameter.grad = more if parameter.grad is None else parameter.grad + more
