"""Several tops of one base in one pass: the frozen layers run once for the records of all, each adapter on its own.

Batched LoRA as in S-LoRA (Sheng et al. 2023, arXiv 2311.03285) and mLoRA (Ye et al. 2023, arXiv 2312.02515). Each
member draws its dropout from its own generator in the order and shape of a pass alone, so the numbers are those of
separate passes up to rounding. Records never meet: what one member sends can't change another's numbers.

Shapes: B records of all members, T positions of the longest, D width; b records and t positions of one member; N
read-out positions of one, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from privtune.shared.modeling.partition import Top
from privtune.shared.modeling.seeding import started_at
from privtune.shared.modeling.training_size import linear_layers


class NotJoint(Exception):
    """This model does something in a pass that can't be told apart by member; compute its members alone."""


@dataclass(kw_only=True)
class Member:
    """One job's part of a joint pass.

    top: with its own LoRA layers, or frozen.
    head: runs on the read-out rows; None: they are the result.
    h_BTD, mask_BT: padded to the member's own longest record.
    readout_N: flat positions b * t of them.
    seeded: makes torch's random numbers those of this member's pass.
    """

    top: Top
    h_BTD: Tensor
    mask_BT: Tensor
    readout_N: Tensor
    seeded: AbstractContextManager[object]
    head: nn.Module | None = None
    adapters: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.adapters = {name: m for name, m in self.top.task.named_modules() if hasattr(m, "lora_A")}


class JointTop:
    """Runs members over one plain top, whose weights are those of the members' bases. One caller at a time.

    refused: a pass raised `NotJoint`, so the next one would.
    grouped: adapters of the same shape in one batched product: fewer kernels for a GPU, more copies for a CPU.
    most_rows: from how many rows on further members gain nothing.
    """

    def __init__(self, top: Top, *, grouped: bool, most_rows: int = 8192) -> None:
        self._top, self._grouped, self.most_rows, self.refused = top, grouped, most_rows, False
        self._pass: _Pass | None = None
        for name, layer in linear_layers(top).items():
            layer.register_forward_hook(self._adapting(name))

    def forward(self, members: Sequence[Member], *, training: bool) -> list[Tensor]:
        """out_ND of each member, or logits_NC with a head. Raises `NotJoint`; then nothing has changed."""
        longest = max(member.h_BTD.shape[1] for member in members)
        h_BTD = torch.cat([_padded(member.h_BTD, longest) for member in members])
        mask_BT = torch.cat([F.pad(m.mask_BT, (0, longest - m.mask_BT.shape[1])) for m in members])
        self._top.train(training)
        for member in members:
            if member.head is not None:
                member.head.train(training)
        places, first = [], 0
        for member in members:
            b, t = member.mask_BT.shape
            places.append((first + member.readout_N // t) * longest + member.readout_N % t)
            first += b
        with started_at(0):
            self._pass = _Pass(members, longest, h_BTD.device, training=training, grouped=self._grouped)
            untouched = self._pass.state()
            try:
                with self._pass:
                    out_ND = self._top(h_BTD, mask_BT, torch.cat(places)).float()
                parts = torch.split(out_ND, [len(place) for place in places])
                outs = [self._headed(number, part) for number, part in enumerate(parts)]
                if not _equal(untouched, self._pass.state()):
                    raise NotJoint("this model draws random numbers that no member's generator gives")
            except NotJoint:
                self.refused = True
                raise
            finally:
                self._pass = None
        return outs

    def _headed(self, number: int, out_ND: Tensor) -> Tensor:
        if self._pass is None or (head := self._pass.members[number].head) is None:
            return out_ND
        logits_NC: Tensor = self._pass.drawn(number, lambda: head(out_ND).float())
        return logits_NC

    def _adapting(self, name: str) -> Callable[..., Tensor | None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            return None if self._pass is None else self._pass.adapted(name, given[0], output)

        return hook


class _Pass(TorchFunctionMode):
    """While it is entered, dropout and dropout inside attention are drawn by member."""

    def __init__(
        self, members: Sequence[Member], longest: int, device: torch.device, *, training: bool, grouped: bool
    ) -> None:
        super().__init__()
        self.members, self._longest, self._device = members, longest, device
        self._training, self._grouped = training, grouped
        self._sizes = [len(member.mask_BT) for member in members]
        ends = [0, *torch.tensor(self._sizes).cumsum(0).tolist()]
        self._rows = [slice(*pair) for pair in pairwise(ends)]
        self._lengths = [member.mask_BT.shape[1] for member in members]
        self._drawing, self._states = False, []
        for member in members:
            with member.seeded:
                self._states.append(self.state())

    def state(self) -> tuple[Tensor, ...]:
        """Of torch's generators: the CPU's, and that of the GPU which computes."""
        on_gpu = (torch.cuda.get_rng_state(self._device),) if self._device.type == "cuda" else ()
        return torch.get_rng_state(), *on_gpu

    def _restore(self, state: tuple[Tensor, ...]) -> None:
        torch.set_rng_state(state[0])
        if len(state) > 1:
            torch.cuda.set_rng_state(state[1], self._device)

    def drawn(self, number: int, draw: Callable[[], Tensor]) -> Tensor:
        """draw() with the generators of one member."""
        before = self.state()
        self._restore(self._states[number])
        self._drawing = True  # what is called here is that member's already
        out = draw()
        self._drawing = False
        self._states[number] = self.state()
        self._restore(before)
        return out

    def adapted(self, name: str, x_BTD: Tensor, out: Tensor) -> Tensor | None:
        """A linear layer's output with what the members' adapters add to it; None where no member adapts it."""
        layers = [member.adapters.get(name) for member in self.members]
        if not any(layers):
            return None
        if x_BTD.shape[:2] != (sum(self._sizes), self._longest):
            raise NotJoint(f"the layer {name} does not take its rows by record")
        inputs = torch.split(x_BTD, self._sizes)
        dropped = [self._dropped(i, layer, inputs[i]) for i, layer in enumerate(layers) if layer is not None]
        adapters = [layer for layer in layers if layer is not None]
        deltas = iter(_low_rank(dropped, adapters, grouped=self._grouped))
        whole = [
            x[..., :0].new_zeros(*x.shape[:2], out.shape[-1]) if layer is None else _padded(next(deltas), x.shape[1])
            for x, layer in zip(inputs, layers, strict=True)
        ]
        return (out + torch.cat(whole)).to(out.dtype)

    def _dropped(self, number: int, layer: Any, x_BTD: Tensor) -> Tensor:
        """A member's own positions, as its adapter's dropout leaves them."""
        (name,) = layer.active_adapters
        own_BTD = x_BTD[:, : self._lengths[number]].to(layer.lora_A[name].weight.dtype)
        rate = getattr(layer.lora_dropout[name], "p", 0.0)
        if not rate or not self._training:
            return own_BTD
        return self.drawn(number, lambda: F.dropout(own_BTD, rate))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Draw by member what would be drawn for all."""
        named = kwargs or {}
        if self._drawing:
            return func(*args, **named)
        if func is F.dropout:
            return self._dropout(*args, **named)
        if func is F.scaled_dot_product_attention and named.get("dropout_p"):
            return self._attention(*args, **named)
        return func(*args, **named)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p:
            return x
        places = {3: (1,), 4: (2, 3)}.get(x.dim())  # where positions are: of states, of attention weights
        if places is None or len(x) != sum(self._sizes) or any(x.shape[place] != self._longest for place in places):
            raise NotJoint(f"dropout of a tensor {tuple(x.shape)} can't be told apart by record")
        return self._by_member(lambda number, own: F.dropout(own, p), places, x)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **named: Any
    ) -> Tensor:
        if query.shape[2] != self._longest or key.shape[2] != self._longest:
            raise NotJoint("attention over other positions than the records'")

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            mask, t = attn_mask, self._lengths[number]
            if mask is not None:
                mask = (mask[self._rows[number]] if len(mask) > 1 else mask)[..., :t, :t]
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **named)

        return self._by_member(attend, (2,), query, key, value)

    def _by_member(self, draw: Callable[..., Tensor], places: tuple[int, ...], *tensors: Tensor) -> Tensor:
        """draw(number, own slice of each tensor) of all members, padded again at `places` and put together."""
        split, outs = [torch.split(tensor, self._sizes) for tensor in tensors], []
        for number, length in enumerate(self._lengths):
            own = [parts[number] for parts in split]
            for place in places:
                own = [tensor.narrow(place, 0, length) for tensor in own]
            out = self.drawn(number, lambda number=number, own=own: draw(number, *own))  # type: ignore[misc]
            missing = self._longest - length
            if missing:
                wider = [0] * (2 * out.dim())
                for place in places:
                    wider[2 * (out.dim() - 1 - place) + 1] = missing
                out = F.pad(out, wider)
            outs.append(out)
        return torch.cat(outs)


def _low_rank(inputs: Sequence[Tensor], layers: Sequence[Any], *, grouped: bool) -> list[Tensor]:
    """scale * B A x of each member's layer. grouped: in one product for all where their shapes are the same."""
    downs = [layer.lora_A[layer.active_adapters[0]].weight for layer in layers]
    ups = [layer.lora_B[layer.active_adapters[0]].weight for layer in layers]
    scales = [layer.scaling[layer.active_adapters[0]] for layer in layers]
    if grouped and len(inputs) > 1 and len({(x.shape, a.shape) for x, a in zip(inputs, downs, strict=True)}) == 1:
        b, t, width = inputs[0].shape
        x_JMD = torch.stack([x.reshape(b * t, width) for x in inputs])
        low_JMR = torch.bmm(x_JMD, torch.stack(downs).mT)
        scale_J11 = torch.tensor(scales, device=x_JMD.device, dtype=low_JMR.dtype)[:, None, None]
        out_JMD = torch.bmm(low_JMR, torch.stack(ups).mT) * scale_J11
        return [out_MD.view(b, t, -1) for out_MD in out_JMD.unbind()]
    return [F.linear(F.linear(x, a), b) * s for x, a, b, s in zip(inputs, downs, ups, scales, strict=True)]


def _padded(x_BTD: Tensor, longest: int) -> Tensor:
    missing = longest - x_BTD.shape[1]
    return F.pad(x_BTD, (0, 0, 0, missing)) if missing else x_BTD


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
