"""Forward and backward passes of one top, in parts where memory runs out, together with other tops' where asked.

Shapes: B batch, T tokens, D hidden width, N read-out positions, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from privtune.cloud.compute.parts import Part, in_smaller_parts, joined
from privtune.cloud.compute.work import Work
from privtune.shared.errors import FrameCorrupt
from privtune.shared.modeling.joint_top import JointTop, Member
from privtune.shared.modeling.lora import trainable_parameters
from privtune.shared.modeling.partition import Top

Context = contextlib.AbstractContextManager[object]
Gradients = Sequence[Tensor | None]


@dataclass(kw_only=True, eq=False)
class _Pass:
    """A forward pass that waits for its gradient.

    parts: how many it was computed in.
    graph: h_BTD and out_ND, while its graph is kept; a pass without is repeated instead.
    shared: the graph is one of several passes.
    """

    whole: Part
    shape: torch.Size = field(default_factory=torch.Size)
    parts: int = 1
    graph: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    shared: _SharedGraph | None = None

    @property
    def rows(self) -> int:
        """Positions, padding included."""
        return self.whole.mask_BT.numel()


class _SharedGraph:
    """The graph of passes that went forward together. A backward pass runs through the rows of all of them."""

    def __init__(self, passes: Sequence[_Pass]) -> None:
        self._rows = sum(one.rows for one in passes)
        self._passes = WeakSet(passes)  # one whose device has gone holds nothing for the others

    def leave_to(self, mine: Sequence[_Pass]) -> None:
        """Only they go back through it, if they have at least half of its rows; else only the others may."""
        worth = 2 * sum(one.rows for one in mine) >= self._rows
        for one in self._passes:
            if (one in mine) != worth:
                one.graph.clear()


@dataclass(frozen=True, kw_only=True)
class Company:
    """Whose passes may be computed together: equal `key`. top: runs them over the slice of the base they share."""

    key: Hashable
    top: JointTop


class Passes:
    """Passes of a top and, with shared labels, its head; gradients add up in their parameters.

    seeded: makes dropout a function of a part's key.
    recomputes: the backward pass draws dropout again (gradient checkpointing).
    company: with whom passes may be computed; None: always alone.
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
        company: Company | None = None,
    ) -> None:
        self._top, self._head, self._device, self._autocast = top, head, device, autocast
        self._seeded, self._recomputes, self.company = seeded, recomputes, company
        self._waiting: dict[int, _Pass] = {}
        self._era = 0  # of works: those from before `clear` are void
        self.in_parts = False

    @property
    def waiting(self) -> list[int]:
        """Micro-batches whose gradient has not come."""
        return list(self._waiting)

    def clear(self) -> None:
        """Drop passes that wait; a step begins."""
        self._waiting.clear()
        self._era += 1
        self.in_parts = False

    def forward(self, micro_batch: int, whole: Part) -> Work[Tensor]:
        """out_ND (float32, CPU) in training mode; its gradient is expected in `backward`."""
        begun = _Pass(whole=whole)

        def alone() -> Tensor:
            out_ND = in_smaller_parts(len(whole.h_BTD), partial(self._forward, begun))
            self._waiting[micro_batch] = begun
            return out_ND.detach().cpu()

        return self._work("forward", alone, _forward_together, begun, micro_batch)

    def backward(self, micro_batch: int, dout_ND: Tensor) -> Work[Tensor | None]:
        """Accumulate gradients from dout_ND; gives d loss / d h_BTD (CPU) if h_BTD requires one."""
        if micro_batch not in self._waiting:
            raise FrameCorrupt(f"a gradient came for micro-batch {micro_batch}, which has no forward pass")
        begun = self._waiting.pop(micro_batch)
        whole, dout_ND = begun.whole, dout_ND.to(self._device)
        if dout_ND.shape != begun.shape:
            raise FrameCorrupt(f"a gradient of shape {tuple(dout_ND.shape)} came for {tuple(begun.shape)}")

        def learn(parts: int) -> tuple[Gradients, Tensor | None]:
            trained = self._trained
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

        def alone() -> Tensor | None:
            if begun.shared is not None:
                begun.shared.leave_to([begun])
            gradients, cut_BTD = in_smaller_parts(len(whole.h_BTD), learn, begun.parts)
            _accumulate(self._trained, gradients)
            return cut_BTD

        return self._work("backward", alone, _backward_together, begun, dout_ND, company=begun.parts == 1)

    def learn(self, whole: Part, labels_N: Tensor, weight: float) -> Work[float]:
        """Forward pass, `weight` times the mean cross-entropy of the head, and backward pass; gives the loss."""
        labels_N = labels_N.to(self._device)

        def learn(parts: int) -> tuple[float, Gradients]:
            loss, trained = 0.0, self._trained
            total: Gradients = [None] * len(trained)
            for part in whole.split(parts):
                _, logits_NC = self._run(part, head=self._head)
                mean = nn.functional.cross_entropy(logits_NC, labels_N[part.place_N])
                share = mean * (weight * (len(part.place_N) / len(labels_N)))
                total = _sum(total, self._gradients(part, share, trained))
                loss += float(share.detach())
            return loss, total

        def alone() -> float:
            loss, gradients = in_smaller_parts(len(whole.h_BTD), learn)
            _accumulate(self._trained, gradients)
            return loss

        return self._work("learn", alone, _learn_together, _Pass(whole=whole), (labels_N, weight))

    def evaluate(self, whole: Part) -> Work[Tensor]:
        """out_ND (float32, CPU) without dropout or graph; logits_NC with a head."""

        def compute(parts: int) -> Tensor:
            split = whole.split(parts)
            return joined(split, [self._run(part, head=self._head, training=False)[1].cpu() for part in split])

        @torch.no_grad()
        def alone() -> Tensor:
            return in_smaller_parts(len(whole.h_BTD), compute)

        return self._work("evaluate", alone, _evaluate_together, _Pass(whole=whole), None)

    def _work(
        self, kind: str, alone: Callable[[], Any], together: Any, begun: _Pass, more: Any, *, company: bool = True
    ) -> Work[Any]:
        era, key = self._era, None
        if company and self.company is not None and not self.company.top.refused:
            key = (kind, self.company.key)
        return Work(
            alone=alone,
            key=key,
            together=together,
            shape=(begun.whole.mask_BT.shape[0], begun.whole.mask_BT.shape[1]),
            most_rows=0 if self.company is None else self.company.top.most_rows,
            valid=lambda: era == self._era,
            about=(self, begun, more),
        )

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
        h_BTD = self._input(part)
        for module in (self._top, *(() if head is None else (head,))):
            module.train(training)
        with self._seeded(*part.key) if training else contextlib.nullcontext(), self._mixed():
            out_ND = self._top(h_BTD, part.mask_BT.to(self._device), part.readout_N.to(self._device)).float()
            return h_BTD, out_ND if head is None else head(out_ND).float()

    def _input(self, part: Part) -> Tensor:
        return part.h_BTD.detach().to(self._device).requires_grad_(part.h_BTD.requires_grad)

    def _mixed(self) -> Context:
        return torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None)

    def _member(self, part: Part, *, head: bool = False) -> Member:
        return Member(
            top=self._top,
            head=self._head if head else None,
            h_BTD=self._input(part),
            mask_BT=part.mask_BT.to(self._device),
            readout_N=part.readout_N.to(self._device),
            seeded=self._seeded(*part.key),
        )

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
    """Add to the gradients of all parameters, or of none where memory runs out."""
    sums = [
        p.grad if more is None or p.grad is None else p.grad + more
        for p, more in zip(parameters, gradients, strict=True)
    ]
    for parameter, total, more in zip(parameters, sums, gradients, strict=True):
        parameter.grad = more if total is None else total


def _accumulate_all(passes: Sequence[Passes], gradients: Sequence[Gradients]) -> None:
    """The same for several tops; the gradients of each begin with those of what it trains."""
    trained = [one._trained for one in passes]
    own = [gradient for mine, of_one in zip(trained, gradients, strict=True) for gradient in of_one[: len(mine)]]
    _accumulate([parameter for mine in trained for parameter in mine], own)


def _run_together(members: Sequence[tuple[Passes, Member]], *, training: bool) -> list[Tensor]:
    first = members[0][0]
    if first.company is None:
        raise RuntimeError("a pass that has no company was computed with others")
    with first._mixed():
        return first.company.top.forward([member for _, member in members], training=training)


def _forward_together(works: Sequence[Work[Tensor]]) -> list[Tensor]:
    mine = [(passes, begun, micro_batch) for passes, begun, micro_batch in (work.about for work in works)]
    members = [(passes, passes._member(begun.whole)) for passes, begun, _ in mine]
    outs = _run_together(members, training=True)
    shared = _SharedGraph([begun for _, begun, _ in mine])
    for (passes, begun, micro_batch), (_, member), out_ND in zip(mine, members, outs, strict=True):
        begun.graph, begun.shape, begun.shared = [(member.h_BTD, out_ND)], out_ND.shape, shared
        passes._waiting[micro_batch] = begun
    return [out_ND.detach().cpu() for out_ND in outs]


def _backward_together(works: Sequence[Work[Tensor | None]]) -> list[Tensor | None]:
    mine = [(passes, begun, dout_ND) for passes, begun, dout_ND in (work.about for work in works)]
    for shared in {id(begun.shared): begun.shared for _, begun, _ in mine}.values():
        if shared is not None:
            shared.leave_to([begun for _, begun, _ in mine if begun.shared is shared])
    again = [(passes, begun, passes._member(begun.whole)) for passes, begun, _ in mine if not begun.graph]
    if again:
        outs = _run_together([(passes, member) for passes, _, member in again], training=True)
        for (_, begun, member), out_ND in zip(again, outs, strict=True):
            begun.graph = [(member.h_BTD, out_ND)]
    graphs = [begun.graph.pop() for _, begun, _ in mine]
    inputs = [
        [*passes._trained, *([h_BTD] if h_BTD.requires_grad else [])]
        for (passes, _, _), (h_BTD, _) in zip(mine, graphs, strict=True)
    ]
    found = _gradients_by_member([out_ND for _, out_ND in graphs], inputs, [dout_ND for _, _, dout_ND in mine])
    _accumulate_all([passes for passes, _, _ in mine], found)
    return [
        (torch.zeros_like(h_BTD) if gradients[-1] is None else gradients[-1]).cpu() if h_BTD.requires_grad else None
        for (h_BTD, _), gradients in zip(graphs, found, strict=True)
    ]


def _learn_together(works: Sequence[Work[float]]) -> list[float]:
    mine = [(passes, begun.whole, *more) for passes, begun, more in (work.about for work in works)]
    outs = _run_together([(passes, passes._member(whole, head=True)) for passes, whole, _, _ in mine], training=True)
    shares = [
        nn.functional.cross_entropy(logits_NC, labels_N) * weight
        for logits_NC, (_, _, labels_N, weight) in zip(outs, mine, strict=True)
    ]
    found = _gradients_by_member(shares, [passes._trained for passes, *_ in mine], None)
    _accumulate_all([passes for passes, *_ in mine], found)
    return [float(share.detach()) for share in shares]


@torch.no_grad()
def _evaluate_together(works: Sequence[Work[Tensor]]) -> list[Tensor]:
    members = [(passes, passes._member(begun.whole, head=True)) for passes, begun, _ in (work.about for work in works)]
    return [out_ND.cpu() for out_ND in _run_together(members, training=False)]


def _gradients_by_member(
    outs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], douts: Sequence[Tensor] | None
) -> list[Gradients]:
    flat = [one for of_member in inputs for one in of_member]
    found = iter(torch.autograd.grad(list(outs), flat, douts, allow_unused=True))
    return [[next(found) for _ in of_member] for of_member in inputs]
