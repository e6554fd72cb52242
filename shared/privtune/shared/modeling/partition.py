"""Cuts a Hugging Face task model into Bottom | Top | Head at a block boundary.

A slice is the original class with the same module tree, in which absent parts are pass-throughs: skipped blocks keep
their index, so parameter names, `layer_idx`, `config.layer_types` and PEFT keys are those of the full model. Every
slice runs the original code, unmodified, so Bottom + Top + Head equals the whole for every architecture.

Shapes: B batch, T tokens, D hidden width, E embedding width, V vocabulary, N read-out positions, C classes (V for a
language model). Padding is on the right, and every record has at least one token.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from privtune.shared.errors import CutOutOfRange
from privtune.shared.modeling.anatomy import Absent, Anatomy, SkippedBlock, clone_structure, dissect
from privtune.shared.modeling.stored_weights import Stored, store_blocks
from privtune.shared.wording import counted

# Settings that change what the same weights compute. Parameter shapes cover the rest.
_CONFIG_KEYS = (
    "model_type",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "activation",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "use_bidirectional_attention",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "is_decoder",
    "norm_eps",
    "partial_rotary_factor",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "logit_scale",
    "num_experts_per_tok",
    "norm_topk_prob",
    "routed_scaling_factor",
    "alibi",
    "parallel_attn",
    "use_parallel_residual",
    "do_layer_norm_before",
    "no_rope_layers",
    "classifier_pooling",
)


class _Slice(nn.Module):
    """A carved task model, under the parameter names of the full model."""

    task: Any

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.__dict__["task"] = task  # not registered itself: its children are, under the full model's names
        for name, child in task.named_children():
            self.add_module(name, child)

    @property
    def config(self) -> Any:
        """The slice's own copy of the model's configuration."""
        return self.task.config


class Bottom(_Slice):
    """Embedding stage and blocks[:cut]: frozen, and always in eval mode, so that a text has one representation."""

    _embed: Any
    _blocks: Any

    def __init__(self, anatomy: Anatomy, cut: int) -> None:
        task = _carve(anatomy, keep=range(cut), swaps={})
        super().__init__(task)
        self.cut = cut
        mine = anatomy.within(task)
        skips: dict[nn.Module, nn.Module] = {b: SkippedBlock(b, anatomy.blocks_return) for b in mine.blocks}
        self.__dict__["_embed"] = _view(mine, skips).base_model
        self.__dict__["_blocks"] = _unscaled(_view(mine, mine.embedding_substitutes())).base_model
        self.eval()

    def train(self, mode: bool = True) -> Bottom:
        """Stay in eval mode: dropout in a frozen bottom would be noise that no privacy statement covers."""
        super().train(False)
        self._embed.train(False)
        self._blocks.train(False)
        return self

    @property
    def embedding_VD(self) -> Tensor:
        """The vector of each token id as the embedding stage looks it up (scaled, in Gemma), without positions.

        As wide as the embedding, which may be narrower than D (ELECTRA).
        """
        table = self.task.base_model.get_input_embeddings()
        if type(table) is nn.Embedding:
            return table.weight.detach()
        ids_V = torch.arange(table.num_embeddings, device=table.weight.device)
        vectors: Tensor = table(ids_V).detach()
        return vectors

    def embed(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """h0_BTD, the input of block 0, with positions, embedding norm and projection."""
        h0_BTD: Tensor = self._embed(input_ids=ids_BT, attention_mask=mask_BT)[0]
        return h0_BTD

    def embed_vectors(self, e_BTE: Tensor, mask_BT: Tensor) -> Tensor:
        """`embed` for mixtures of `embedding_VD` rows instead of ids. Differentiable in e_BTE."""
        h0_BTD: Tensor = self._embed(inputs_embeds=e_BTE, attention_mask=mask_BT)[0]
        return h0_BTD

    def blocks(self, h0_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """h_BTD at the cut, from the result of `embed`. Differentiable in h0_BTD."""
        if self.cut == 0:
            return h0_BTD
        h_BTD: Tensor = self._blocks(inputs_embeds=h0_BTD, attention_mask=mask_BT)[0]
        return h_BTD

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """h_BTD at the cut; rows of padding are meaningless but never NaN."""
        return self.blocks(self.embed(ids_BT, mask_BT), mask_BT)


class Top(_Slice):
    """blocks[cut:stop], with the final stage if they end the model. Frozen until `shared.modeling.lora` trains it.

    block_names: the full model's names of its blocks.
    final_names: the full model's names of what follows the last block here, like a final norm.
    """

    def __init__(self, anatomy: Anatomy, cut: int, stop: int) -> None:
        last = stop == len(anatomy.blocks)
        substitutes = anatomy.embedding_substitutes()
        super().__init__(_unscaled(_carve(anatomy, keep=range(cut, stop), swaps=substitutes, final=last)))
        self.cut, self.stop = cut, stop
        self.block_names = tuple(anatomy.name_of(anatomy.blocks[index]) for index in range(cut, stop))
        self.final_names = tuple(anatomy.name_of(module) for module in anatomy.final) if last else ()

    def forward(self, h_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor) -> Tensor:
        """out_ND: the hidden states after the last block here at flat positions b * T + t. Differentiable in h_BTD."""
        out_BTD: Tensor = self.task.base_model(inputs_embeds=h_BTD, attention_mask=mask_BT)[0]
        return out_BTD.flatten(0, 1).index_select(0, readout_N.to(out_BTD.device))


class Head(_Slice):
    """The task model without its base: pooler and classifier (copied, trainable), or lm_head (shared, frozen)."""

    def __init__(self, anatomy: Anatomy) -> None:
        # A language model's head is the token table or as large: never copied.
        own = () if is_language_model(anatomy.task) else anatomy.head_modules()
        base: nn.Module = _HeadBase(anatomy.pooler, anatomy.stack_names)
        task: Any = clone_structure(anatomy.task, {anatomy.base: base}, own=own)
        # Decoder classifiers refuse batches without a pad id; the head sees one row per record and no padding.
        task.config.pad_token_id = 0
        super().__init__(task)
        self.requires_grad_(not is_language_model(anatomy.task))

    def forward(self, out_ND: Tensor) -> Tensor:
        """logits_NC by the model's own head code, including soft-capping. Differentiable in out_ND."""
        ids_N1 = torch.ones(len(out_ND), 1, dtype=torch.long, device=out_ND.device)
        logits: Tensor = self.task(input_ids=ids_N1, inputs_embeds=out_ND[:, None, :]).logits
        return logits.reshape(len(out_ND), logits.shape[-1])


@dataclass
class _HeadInput(BaseModelOutputWithPoolingAndCrossAttentions):  # type: ignore[misc]
    """What heads read of a base's output; a mixture of experts' also its routing, for a loss that is not computed."""

    router_logits: Any = None
    cache: Any = None


class _HeadBase(nn.Module):
    """Replaces the base in a head: takes final hidden states and runs only the pooler.

    `stack` names the base's parts that hold its blocks: OPT's head calls one of them instead of the base.
    """

    def __init__(self, pooler: nn.Module | None, stack: tuple[str, ...] = ()) -> None:
        super().__init__()
        for name in stack:
            self.add_module(name, _HeadBase(None))
        if pooler is not None:
            self.pooler = clone_structure(pooler, {}, own=(pooler,))

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> _HeadInput:
        """(N, 1, D) -> the base's kind of output."""
        pooled_ND = self.pooler(inputs_embeds) if hasattr(self, "pooler") else None
        return _HeadInput(last_hidden_state=inputs_embeds, pooler_output=pooled_ND)


class Partition:
    """Cuts one task model anywhere, any number of times, over one set of weights.

    Freezes the model and puts it in eval mode; move it to its device before cutting. Raises `ModelUnsupported`.
    """

    def __init__(self, model: Any) -> None:
        model.requires_grad_(False)
        model.eval()
        self._anatomy = dissect(model)
        self._fingerprint: str | None = None

    @property
    def model(self) -> Any:
        """The whole task model."""
        return self._anatomy.task

    @property
    def n_layers(self) -> int:
        """Number of blocks L; a cut is from 0 to L-1."""
        return len(self._anatomy.blocks)

    @property
    def blocks(self) -> nn.ModuleList:
        """The whole model's blocks."""
        return self._anatomy.blocks

    @property
    def hidden_size(self) -> int:
        """D, the width at every cut."""
        return int(self.model.config.hidden_size)

    @property
    def readout(self) -> Literal["first", "last"]:
        """The token that a classifier reads: the first ([CLS]) in an encoder, the last in a decoder."""
        return self._anatomy.readout

    def store_blocks(self, stored: Stored, device: torch.device) -> None:
        """Keep the blocks' weights in another form, and move them and the final stage to `device`; before any cut.

        The token table, which only bottoms and heads need, stays where it is. Raises as `store_blocks` of
        `privtune.shared.modeling.stored_weights`.
        """
        self.fingerprint()  # which is of the shapes in the files
        store_blocks(self.blocks, stored, device)
        self.model.to(device)
        for module in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            if module is not None:
                module.to("cpu")

    def fingerprint(self) -> str:
        """SHA-256 over sizes, names and settings of the base, without weights, labels and head.

        The same for the whole model in the cloud and for a device that has only a bottom package.
        """
        if self._fingerprint is None:
            self._fingerprint = self._new_fingerprint()
        return self._fingerprint

    def _new_fingerprint(self) -> str:
        config = self.model.config.to_dict()
        shapes = {name: list(p.shape) for name, p in self._anatomy.base.named_parameters()}
        about = {"config": {key: config.get(key) for key in _CONFIG_KEYS}, "shapes": shapes}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def check_cut(self, cut: int) -> int:
        """Returns `cut`. Raises `CutOutOfRange`."""
        if not 0 <= cut < self.n_layers:
            raise CutOutOfRange(f"Cut {cut} is out of range: this model takes 0 to {self.n_layers - 1}.", param="cut")
        return cut

    def check_tail(self, cut: int, tail: int) -> int:
        """Returns `tail`. Raises `CutOutOfRange` when it leaves no block between itself and the cut."""
        if not 0 <= tail < self.n_layers - cut:
            raise CutOutOfRange(
                f"Cut {cut} and a tail of {tail} leave none of this model's {counted(self.n_layers, 'block')} "
                "to the cloud.",
                param="tail",
            )
        return tail

    def bottom(self, cut: int) -> Bottom:
        """Embedding stage and the first `cut` blocks. Raises `CutOutOfRange`."""
        return Bottom(self._anatomy, self.check_cut(cut))

    def top(self, cut: int, tail: int = 0) -> Top:
        """The blocks from `cut` on without the last `tail`, in a tree of its own over the shared frozen weights.

        Raises `CutOutOfRange`.
        """
        return Top(self._anatomy, self.check_cut(cut), self.n_layers - self.check_tail(cut, tail))

    def below(self, cut: int) -> Top:
        """The blocks before `cut` in a tree of their own, which can be trained without changing the bottom."""
        return Top(self._anatomy, 0, self.check_cut(cut))

    def tail(self, count: int) -> Top:
        """The last `count` blocks and the final stage, which continue `top(cut, count)`."""
        return self.top(self.n_layers - count)

    def head(self) -> Head:
        """Pooler and classifier with weights of their own, or the shared lm_head."""
        return Head(self._anatomy)


def classification_readout(readout: Literal["first", "last"], lengths_B: Tensor, width: int) -> Tensor:
    """readout_B: the flat position b * T + t that a classifier reads of each record; `width` is T."""
    starts_B = torch.arange(len(lengths_B), device=lengths_B.device) * width
    return starts_B if readout == "first" else starts_B + lengths_B.long() - 1


def is_language_model(model: Any) -> bool:
    """Whether the head predicts tokens."""
    return model.get_output_embeddings() is not None


def _carve(anatomy: Anatomy, *, keep: range, swaps: dict[nn.Module, nn.Module], final: bool = False) -> Any:
    """The task model with only the blocks of `keep` and without its head, over the same tensors."""
    swaps = dict(swaps)
    for index, block in enumerate(anatomy.blocks):
        if index not in keep:
            swaps[block] = SkippedBlock(block, anatomy.blocks_return)
    if not final:
        swaps.update({module: nn.Identity() for module in anatomy.final})
    if anatomy.pooler is not None:
        swaps[anatomy.pooler] = Absent()
    swaps.update({module: Absent() for module in anatomy.head_modules()})
    task: Any = clone_structure(anatomy.task, swaps)
    if anatomy.pooler is not None:
        task.base_model.pooler = None
    task.config.use_cache = False
    return task


def _unscaled(task: Any) -> Any:
    """A clone that starts from hidden states, without the factor by which Granite's base scales what comes in."""
    if hasattr(task.base_model, "embedding_multiplier"):
        task.base_model.embedding_multiplier = 1.0
    return task


def _view(anatomy: Anatomy, swaps: dict[nn.Module, nn.Module]) -> Any:
    """Another module tree over the very modules of a slice, so that `.to()` on the slice moves this one as well."""
    spine = [m for m in anatomy.task.modules() if any(child is anatomy.blocks for child in m.modules())]
    shared = {m: m for m in anatomy.task.modules() if not any(m is s for s in spine)}
    return clone_structure(anatomy.task, {**shared, **swaps})
