"""Finds the parts of a Hugging Face task model by structure, without a list per architecture.

Every supported task model is `task(base(embedding stage -> blocks -> final norm?) -> pooler? -> head)`:

    embedding stage   direct children of the base registered before the blocks, and a dropout after them (Phi)
    blocks            the one ModuleList of `config.num_hidden_layers` modules
    final norm        direct children of the base after the blocks whose class is a norm
    pooler            the base's child of that name
    head              the pooler and every child of the task model except the base

Shapes: B batch, T tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from privtune.shared.errors import ModelUnsupported
from privtune.shared.modeling.architectures import ENCODERS, SUPPORTED


class SkippedBlock(nn.Module):
    """Replaces a block that a slice lacks: returns its input, as a tensor (`tuple_of` 0) or first in a tuple."""

    def __init__(self, tuple_of: int) -> None:
        super().__init__()
        self.tuple_of = tuple_of

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor | tuple[Tensor | None, ...]:
        """(B, T, D) -> the same, whatever else the model passes to a block; None for attention weights."""
        return (hidden_states, *[None] * (self.tuple_of - 1)) if self.tuple_of else hidden_states


class PassEmbeddings(nn.Module):
    """Replaces an encoder's `embeddings` where hidden states come in ready-made, as `inputs_embeds`."""

    def forward(self, *args: Any, inputs_embeds: Tensor | None = None, **_: object) -> Tensor:
        """(B, T, D) -> the same. DistilBERT passes (ids, inputs_embeds, positions) by position, the others by name."""
        found = inputs_embeds if inputs_embeds is not None else args[1]
        if not isinstance(found, Tensor):
            raise TypeError("this slice has no embedding: call it with inputs_embeds")
        return found


class NoPositions(nn.Module):
    """Replaces a learned position table whose rows the hidden states already contain: adds zero."""

    def forward(self, position_ids: Tensor) -> Tensor:
        """Any ids -> a scalar zero, which keeps the dtype of the states that it is added to."""
        return torch.zeros((), device=position_ids.device)


class Absent(nn.Module):
    """Replaces a part that a slice must not hold and never calls, like the token table of a top."""

    def forward(self, *_: object, **__: object) -> Tensor:
        """Never called while the slice gets `inputs_embeds`. Raises RuntimeError."""
        raise RuntimeError("this slice does not hold that part of the model")


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of one task model, by reference.

    task: the model with its head.
    base: the model without its head.
    blocks: its transformer blocks, in order.
    embedding: the modules before the blocks.
    norm: the final norm, if there is one.
    pooler: an encoder's pooler, if there is one.
    input_embedding: the token table.
    readout: which token a classifier reads.
    blocks_return: 0 when a block returns a tensor, else the length of the tuple that it returns.
    """

    task: Any
    base: Any
    blocks: nn.ModuleList
    embedding: tuple[nn.Module, ...]
    norm: nn.Module | None
    pooler: nn.Module | None
    input_embedding: nn.Module
    readout: Literal["first", "last"]
    blocks_return: int

    def embedding_substitutes(self) -> dict[nn.Module, nn.Module]:
        """Replacements of the embedding stage for a slice that starts from hidden states."""
        return {module: self._substitute(module) for module in self.embedding}

    def _substitute(self, module: nn.Module) -> nn.Module:
        if module is self.input_embedding:
            return Absent()
        if any(child is self.input_embedding for child in module.modules()):
            return PassEmbeddings()
        return NoPositions() if isinstance(module, nn.Embedding) else nn.Identity()

    def within(self, task: Any) -> Anatomy:
        """The same parts, by name, in a clone of the task model that contains them."""
        names = {id(module): name for name, module in self.task.named_modules()}

        def there(module: nn.Module) -> Any:
            return task.get_submodule(names[id(module)])

        blocks = there(self.blocks)
        stage = tuple(there(module) for module in self.embedding)
        table = there(self.input_embedding)
        return replace(self, task=task, base=there(self.base), blocks=blocks, embedding=stage, input_embedding=table)

    def name_of(self, module: nn.Module) -> str:
        """The module's name in the full task model."""
        return next(str(name) for name, found in self.task.named_modules() if found is module)

    def head_modules(self) -> tuple[nn.Module, ...]:
        """The task model's direct children except the base."""
        return tuple(child for child in self.task.children() if child is not self.base)


def dissect(task: Any) -> Anatomy:
    """Find the parts of a sequence classifier or a causal language model. Raises `ModelUnsupported`."""
    kind = getattr(task.config, "model_type", "unknown")
    if kind not in SUPPORTED:
        raise ModelUnsupported(f"Models of type '{kind}' can't be split. Supported: {', '.join(SUPPORTED)}.")
    base = task.base_model
    if base is task:
        raise ModelUnsupported("A bare model has no head to split off: load it for classification or causal LM.")
    blocks = _find_blocks(base, task.config.num_hidden_layers)
    _check_nothing_between(base, blocks)
    children = list(base.children())
    index = next(i for i, child in enumerate(children) if any(m is blocks for m in child.modules()))
    late = [child for child in children[index + 1 :] if isinstance(child, nn.Dropout)]  # of the embedding, in Phi
    norms = [child for child in children[index + 1 :] if "Norm" in type(child).__name__]
    partial = {
        "task": task,
        "base": base,
        "blocks": blocks,
        "embedding": (*children[:index], *late),
        "norm": norms[0] if norms else None,
        "pooler": getattr(base, "pooler", None),
        "input_embedding": base.get_input_embeddings(),
        "readout": "first" if kind in ENCODERS else "last",
    }
    anatomy = Anatomy(**partial, blocks_return=0)
    return replace(anatomy, blocks_return=_blocks_return(anatomy))


def _find_blocks(base: nn.Module, count: int) -> nn.ModuleList:
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelUnsupported(f"No list of {count} blocks was found in this model; it can't be split.")


def _check_nothing_between(base: nn.Module, blocks: nn.ModuleList) -> None:
    """Refuse a stack that runs layers of its own between its blocks: skipping blocks would not skip those."""
    stack = next(module for module in base.modules() if any(child is blocks for child in module.children()))
    if stack is base:
        return
    for name, child in stack.named_children():
        harmless = child is blocks or isinstance(child, nn.Embedding) or "Norm" in type(child).__name__
        if not harmless and any(True for _ in child.parameters()):
            raise ModelUnsupported(f"This model has a layer '{name}' between its blocks; it can't be split.")


def clone_structure(
    root: nn.Module, swaps: Mapping[nn.Module, nn.Module], own: tuple[nn.Module, ...] = ()
) -> nn.Module:
    """A new module tree over the SAME tensors, with the modules of `swaps` replaced.

    This lets many jobs share one frozen base in memory, each with a tree of its own for peft to change. Only the
    tensors of the modules in `own` are copied.
    """
    copied = {id(t) for module in own for t in _tensors(module)}
    memo: dict[int, Any] = {id(t): t for t in _tensors(root) if id(t) not in copied}
    memo.update({id(old): new for old, new in swaps.items()})
    return copy.deepcopy(root, memo)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


class _FirstBlockDone(Exception):
    """Stops the probe after the first block."""


class _Flat(nn.Module):
    """A linear layer without weights: returns zeros of its output width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """(..., any) -> (..., width)."""
        return x.new_zeros(*x.shape[:-1], self.width)


def _blocks_return(anatomy: Anatomy) -> int:
    """`Anatomy.blocks_return`, found by running the first block with linear layers that cost nothing.

    The model may be on the meta device, where running anything would load 25 MB of symbolic algebra.
    """
    swaps = {**anatomy.embedding_substitutes(), **{block: nn.Identity() for block in list(anatomy.blocks)[1:]}}
    swaps |= {module: _Flat(width) for module, width in _linear_layers(anatomy.blocks[0])}
    swaps |= {part: nn.Identity() for part in (anatomy.norm, anatomy.pooler) if part is not None}
    gone = {id(p) for module in swaps for p in module.parameters()}
    memo: dict[int, Any] = {id(old): new for old, new in swaps.items()}
    memo |= {id(buffer): buffer.detach().cpu() for buffer in anatomy.base.buffers()}
    memo |= {id(p): nn.Parameter(torch.zeros(p.shape)) for p in anatomy.base.parameters() if id(p) not in gone}
    seen: list[int] = []

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(len(output) if isinstance(output, tuple) else 0)
        raise _FirstBlockDone

    base = copy.deepcopy(anatomy.base, memo)
    _find_blocks(base, len(anatomy.blocks))[0].register_forward_hook(stop)
    h_BTD = torch.zeros(1, 2, anatomy.task.config.hidden_size)
    try:
        base(inputs_embeds=h_BTD)
    except _FirstBlockDone:
        return seen[0]
    raise ModelUnsupported("This model does not run its blocks in order; it can't be split.")


def _linear_layers(block: nn.Module) -> list[tuple[nn.Module, int]]:
    """The linear layers of a block with their output widths: torch's own, and GPT-2's transposed ones."""
    kinds = [(m, getattr(m, "out_features", None) or getattr(m, "nf", None)) for m in block.modules()]
    return [(module, int(width)) for module, width in kinds if width is not None]
