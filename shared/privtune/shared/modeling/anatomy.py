"""Finds the parts of a Hugging Face task model by structure, without a list per architecture.

Every task model that can be split is `task(base(embedding stage -> blocks -> final stage) -> pooler? -> head)`:

    blocks            the one ModuleList of `config.num_hidden_layers` modules
    spine             the modules from the base down to the list of blocks
    embedding stage   children of the spine that make hidden states before the blocks run
    final stage       children of the spine that make hidden states after them: a norm, a projection
    pooler            the base's child of that name
    head              the pooler and every child of the task model except the base

A small copy of the model is run once to see in which order its modules run (`small_copy`). Whether the parts add up to
the whole is for `self_check` to find out.

Shapes: B batch, T tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from privtune.shared.errors import ModelUnsupported
from privtune.shared.modeling.architectures import is_encoder
from privtune.shared.modeling.seeding import seeded
from privtune.shared.modeling.small_copy import kept_small, small_config


class SkippedBlock(nn.Module):
    """Replaces a block that a slice lacks: returns its input, as a tensor (`tuple_of` 0) or first in a tuple.

    Keeps the block's plain attributes, by which some models choose its mask.
    """

    def __init__(self, block: nn.Module, tuple_of: int) -> None:
        super().__init__()
        self.tuple_of = tuple_of
        plain = {k: v for k, v in vars(block).items() if isinstance(v, str | int | float) and not k.startswith("_")}
        self.__dict__.update({k: v for k, v in plain.items() if k != "training"})

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

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """Any ids -> a scalar zero, which keeps the dtype of the states that it is added to."""
        given = next(value for value in (*args, *named.values()) if isinstance(value, Tensor))
        return torch.zeros((), device=given.device)


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
    final: the modules after the blocks, like a norm.
    pooler: an encoder's pooler, if there is one.
    input_embedding: the token table.
    readout: which token a classifier reads.
    blocks_return: 0 when a block returns a tensor, else the length of the tuple that it returns.
    """

    task: Any
    base: Any
    blocks: nn.ModuleList
    embedding: tuple[nn.Module, ...]
    final: tuple[nn.Module, ...]
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

    @property
    def stack_names(self) -> tuple[str, ...]:
        """The base's direct child that holds the blocks, unless that is their list."""
        held = [(name, child) for name, child in self.base.named_children() if child is not self.blocks]
        return tuple(name for name, child in held if any(part is self.blocks for part in child.modules()))

    def name_of(self, module: nn.Module) -> str:
        """The module's name in the full task model."""
        return next(str(name) for name, found in self.task.named_modules() if found is module)

    def head_modules(self) -> tuple[nn.Module, ...]:
        """The task model's direct children except the base."""
        return tuple(child for child in self.task.children() if child is not self.base)


def dissect(task: Any) -> Anatomy:
    """Find the parts of a sequence classifier or a causal language model. Raises `ModelUnsupported`."""
    if getattr(task.config, "is_encoder_decoder", False):
        raise ModelUnsupported(f"'{task.config.model_type}' is an encoder-decoder, which can't be split.")
    if task.base_model is task:
        raise ModelUnsupported("A bare model has no head to split off: load it for classification or causal LM.")
    course = _course(task)
    base = task.base_model
    return Anatomy(
        task=task,
        base=base,
        blocks=_find_blocks(base),
        embedding=tuple(base.get_submodule(name) for name in course.before),
        final=tuple(base.get_submodule(name) for name in course.after),
        pooler=getattr(base, "pooler", None),
        input_embedding=base.get_input_embeddings(),
        readout="first" if is_encoder(task.config.model_type) else "last",
        blocks_return=course.blocks_return,
    )


def _find_blocks(base: Any) -> nn.ModuleList:
    count = getattr(base.config, "num_hidden_layers", None)
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    if getattr(base.config, "num_hidden_groups", count) != count:
        raise ModelUnsupported("This model runs one block as several layers: bottom and top would share it.")
    raise ModelUnsupported(f"No list of {count} blocks was found in this model; it can't be split.")


@dataclass(kw_only=True)
class _Course:
    """What ran in one pass: children of the spine before and after the blocks, by name, and the blocks."""

    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    blocks_return: int = 0


_RECORDS, _TOKENS = 2, 7  # a shape that no width or number of heads of the small copy has


def _course(task: Any) -> _Course:
    """How a small copy of the model runs. Raises `ModelUnsupported` unless each block runs once, in order."""
    with seeded("course"), torch.no_grad():
        with kept_small():
            base = type(task)(small_config(task.config)).base_model.eval()
        blocks, course = _find_blocks(base), _Course()
        for name, module in _stages(base, blocks):
            module.register_forward_hook(_noting(course, name, len(blocks)))
        for index, block in enumerate(blocks):
            block.register_forward_hook(_counting(course, index))
        ids_BT = torch.full((_RECORDS, _TOKENS), 5)
        try:
            base(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            reason = (str(error).splitlines() or [repr(error)])[0][:120]
            raise ModelUnsupported(f"A small copy of this model does not run on token ids alone: {reason}") from error
    if course.blocks != list(range(len(blocks))):
        raise ModelUnsupported("This model does not run its blocks once each, in order; it can't be split.")
    return course


def _stages(base: nn.Module, blocks: nn.ModuleList) -> Iterator[tuple[str, nn.Module]]:
    """Children of the spine, by name."""
    spine = [m for m in base.modules() if any(child is blocks for child in m.modules())]
    names = {id(module): name for name, module in base.named_modules()}
    for level in spine[:-1]:  # the last is the list itself
        for child in level.children():
            if not any(child is part for part in spine) and child is not getattr(base, "pooler", None):
                yield names[id(child)], child


def _noting(course: _Course, name: str, count: int) -> Any:
    def hook(module: nn.Module, _: Any, output: Any) -> None:
        hidden = isinstance(output, Tensor) and output.dim() == 3 and output.shape[1] == _TOKENS
        hidden = hidden and output.shape[0] in (1, _RECORDS)
        if 0 < len(course.blocks) < count and any(True for _ in module.parameters()):
            last = name.rpartition(".")[2]
            raise ModelUnsupported(f"This model has a layer '{last}' between its blocks; it can't be split.")
        place = course.after if course.blocks else course.before
        if hidden and name not in course.before + course.after:
            place.append(name)

    return hook


def _counting(course: _Course, index: int) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        course.blocks.append(index)
        course.blocks_return = len(output) if isinstance(output, tuple) else 0

    return hook


def clone_structure(
    root: nn.Module, swaps: Mapping[nn.Module, nn.Module], own: tuple[nn.Module, ...] = ()
) -> nn.Module:
    """A new module tree over the SAME tensors, with the modules of `swaps` replaced.

    This lets many jobs share one frozen base in memory, each with a tree of its own for peft to change. Only the
    tensors of the modules in `own` are copied.
    """
    copied = {id(t) for module in own for t in _tensors(module)}
    memo: dict[int, Any] = {id(t): t for t in _tensors(root) if id(t) not in copied}
    # What bitsandbytes' layers keep of their weights beside the parameter.
    kept = [vars(module).get(name) for module in root.modules() for name in ("state", "quant_state")]
    memo.update({id(one): one for one in kept if one is not None})
    memo.update({id(old): new for old, new in swaps.items()})
    return copy.deepcopy(root, memo)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
