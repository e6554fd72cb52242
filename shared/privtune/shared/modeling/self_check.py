"""Tries on a small copy whether a model splits exactly, before it is used: no list of architectures says so.

The copy (`small_copy`) has the model's class and flags and random weights. Bottom + Top + Head must give its outputs at
every cut, and its gradients at the cut, with texts of different lengths whose padding the top never sees, as on the
wire; a language model must also give the same token by token. The verdict is kept on disk, by the copy's configuration,
the task, this code and the versions of torch and transformers.

Shapes: B batch, T tokens, D hidden width, N read-out positions, C classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from privtune.shared.errors import ModelUnsupported, StorageFull
from privtune.shared.files import write_json
from privtune.shared.job_spec import Task
from privtune.shared.modeling.cache_folder import cache_folder
from privtune.shared.modeling.hf_calls import SAFE, quiet
from privtune.shared.modeling.kv_cache import BottomCache, TopCache, check_cache
from privtune.shared.modeling.partition import Partition, classification_readout
from privtune.shared.modeling.seeding import seeded
from privtune.shared.modeling.small_copy import VOCABULARY, kept_small, small_config

TOLERANCE = 1e-5
LIMIT_S = 60.0  # of this thread's processor time; a copy that is decided takes about a second
ROUNDING = 1e-4  # of gradients and of tokens one by one, which are computed in another order
VERSIONS = (transformers.__version__, torch.__version__)
_LENGTHS = (9, 1, 4)
_MORE = 3  # columns of padding that the top gets and the whole does not; and tokens that are written one by one


def check_split(config: Any, task: Task, ref: str) -> None:
    """Raises `ModelUnsupported` with what differs, unless a small copy of the model `ref` splits exactly."""
    if fault := split_fault(config, task):
        raise ModelUnsupported(f"'{ref}' (type '{config.model_type}') can't be split for {task}: {fault}")


def split_fault(config: Any, task: Task) -> str | None:
    """What keeps a model from being split; None when nothing does. From the disk if it was tried before."""
    try:
        small = small_config(config)
    except Exception as error:  # a configuration may refuse any change
        return _fault(error)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, StorageFull):
        known: str | None = json.loads(_cache_file(small, task).read_text(encoding="utf-8"))["fault"]
        return known
    fault = try_split(small, task)
    with contextlib.suppress(OSError, StorageFull):  # it is only slower without
        file = _cache_file(small, task)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"fault": fault, "model_type": config.model_type, "task": task})
    return fault


def try_split(small: Any, task: Task) -> str | None:
    """`split_fault` of a small configuration, without the disk."""
    try:
        with quiet(), seeded("self-check"), _within(LIMIT_S):
            if task == "causal-lm":
                check_cache(small)
            partition = Partition(_random_model(small, task))
            return _compare(partition, task) or (_compare_caches(partition) if task == "causal-lm" else None)
    except Exception as error:  # whatever a model that was not made for this runs into
        return _fault(error)


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises `ModelUnsupported` at the next module that runs in this thread after so much of its processor time."""
    end, thread = time.thread_time() + seconds, threading.get_ident()

    def look(*_: object) -> None:
        if threading.get_ident() == thread and time.thread_time() > end:
            raise ModelUnsupported(f"a small copy of it takes more than {seconds:.0f} s to run, so it can't be tried.")

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _fault(error: Exception) -> str:
    if isinstance(error, ModelUnsupported):
        return str(error)
    line = (str(error).splitlines() or [""])[0][:160]
    return f"a small copy of it does not run in parts ({type(error).__name__}: {line})."


def _cache_file(small: Any, task: Task) -> Path:
    about = {k: v for k, v in small.to_dict().items() if k not in ("id2label", "label2id", "transformers_version")}
    key = [about, task, type(small).__name__, VERSIONS, _code()]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "split-checks" / f"{digest[:32]}.json"


@cache
def _code() -> str:
    """A hash of the modules that the verdict is about."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _random_model(small: Any, task: Task) -> Any:
    """The small model with weights large enough for each part to show in the output."""
    factory = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    with kept_small():
        model = factory.from_config(small, dtype=torch.float32, **SAFE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.1 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model


def _compare(partition: Partition, task: Task) -> str | None:
    """Outputs and gradients of the parts against those of the whole, at every cut and with tails."""
    model, lengths_B = partition.model, torch.tensor(_LENGTHS)
    ids_BT, mask_BT = _texts(model.config.pad_token_id)
    kept_N = mask_BT.flatten().nonzero().flatten()
    width = ids_BT.shape[1] + _MORE
    if task == "causal-lm":
        whole_NC, readout_N = model(input_ids=ids_BT, attention_mask=mask_BT).logits.flatten(0, 1)[kept_N], None
    else:
        whole_NC = model(input_ids=ids_BT, attention_mask=mask_BT).logits
        readout_N = classification_readout(partition.readout, lengths_B, width)
    if not whole_NC.isfinite().all():
        return "a small copy of it gives no finite outputs."
    scale = whole_NC.detach().abs().max()
    mask_wide_BT = nn.functional.pad(mask_BT, (0, _MORE))
    readout_N = mask_wide_BT.flatten().nonzero().flatten() if readout_N is None else readout_N
    head, last = partition.head(), partition.n_layers - 1
    for cut in range(partition.n_layers):
        bottom = partition.bottom(cut)
        h_BTD = nn.functional.pad(bottom(ids_BT, mask_BT) * mask_BT[..., None], (0, 0, 0, _MORE)).requires_grad_()
        for tail in sorted({0, 1, last - cut} - {last - cut + 1}):
            out_ND = _through(partition, cut, tail, h_BTD, mask_wide_BT, readout_N)
            split_NC = head(out_ND)
            where = f"at cut {cut}" + (f" with a tail of {tail}" if tail else "")
            if off := _off(split_NC, whole_NC):
                return f"outputs differ by {off} {where}{_hint(partition, ids_BT, mask_BT)}."
            if tail:
                continue
            (gradient_BTD,) = torch.autograd.grad((split_NC / scale).square().sum(), h_BTD)
            expected_BTD = _gradient_in_whole(partition, cut, ids_BT, mask_BT, task, scale)
            kept = gradient_BTD[:, : ids_BT.shape[1]].flatten(0, 1)[kept_N]
            if off := _off(kept, expected_BTD.flatten(0, 1)[kept_N], ROUNDING, least=1e-9):
                return f"gradients differ by {off} {where}."
    return None


@torch.no_grad()
def _hint(partition: Partition, ids_BT: Tensor, mask_BT: Tensor) -> str:
    """What about the whole model explains that its parts differ, where that is known."""
    model, text_BT = partition.model, ids_BT[:1]  # the first text has no padding
    alone = model(input_ids=text_BT, attention_mask=mask_BT[:1])
    padded_BT = nn.functional.pad(text_BT, (0, _MORE), value=model.config.pad_token_id)
    padded = model(input_ids=padded_BT, attention_mask=nn.functional.pad(mask_BT[:1], (0, _MORE)))
    logits_C = alone.logits.flatten(0, -2)[-1]
    if _off(padded.logits[:, : alone.logits.shape[1]] if padded.logits.dim() > 2 else padded.logits, alone.logits):
        return "; the whole model's own outputs depend on how far a text is padded"
    final_BTD = model.base_model(input_ids=text_BT, attention_mask=mask_BT[:1])[0]
    read_BD = final_BTD[:, 0 if partition.readout == "first" else -1]
    if _off(partition.head()(read_BD)[-1], logits_C):
        return f"; its head reads more than the {partition.readout} token of a text"
    return ""


def _texts(pad: int) -> tuple[Tensor, Tensor]:
    """ids_BT, padded on the right with `pad`, and mask_BT."""
    mask_BT = (torch.arange(max(_LENGTHS))[None] < torch.tensor(_LENGTHS)[:, None]).long()
    ids_BT = torch.randint(5, VOCABULARY, mask_BT.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(mask_BT.bool(), ids_BT, pad), mask_BT


def _through(partition: Partition, cut: int, tail: int, h_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor) -> Tensor:
    """out_ND of top and tail together."""
    if not tail:
        whole_ND: Tensor = partition.top(cut)(h_BTD, mask_BT, readout_N)
        return whole_ND
    z_BTD = partition.top(cut, tail)(h_BTD, mask_BT, torch.arange(mask_BT.numel())).view(*mask_BT.shape, -1)
    out_ND: Tensor = partition.tail(tail)(z_BTD, mask_BT, readout_N)
    return out_ND


def _gradient_in_whole(
    partition: Partition, cut: int, ids_BT: Tensor, mask_BT: Tensor, task: Task, scale: Tensor
) -> Tensor:
    """The gradient at the input of block `cut` when the whole model runs."""
    seen: list[Tensor] = []

    def leaf(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        state = args[0] if args else named["hidden_states"]
        seen.append(state.detach().requires_grad_())
        return ((seen[0], *args[1:]), named) if args else (args, {**named, "hidden_states": seen[0]})

    handle = partition.blocks[cut].register_forward_pre_hook(leaf, with_kwargs=True)
    try:
        logits = partition.model(input_ids=ids_BT, attention_mask=mask_BT).logits
    finally:
        handle.remove()
    kept = logits[mask_BT.bool()] if task == "causal-lm" else logits
    (gradient_BTD,) = torch.autograd.grad((kept / scale).square().sum(), seen[0])
    return gradient_BTD


@torch.no_grad()
def _compare_caches(partition: Partition) -> str | None:
    """Tokens one by one after a prompt, of one text and of two together, against one pass of the whole."""
    ids_BT = torch.randint(5, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(2))
    lengths = (6, 3)
    head = partition.head()
    whole = [partition.model(input_ids=ids_T[None]).logits[0] for ids_T in ids_BT]
    for cut in range(partition.n_layers):
        bottom, top = partition.bottom(cut), partition.top(cut)
        alone, together = TopCache(top), [TopCache(top) for _ in lengths]
        bottoms = [BottomCache(bottom) for _ in lengths]
        first = [mine.blocks(mine.embed(ids_T[:n])) for mine, ids_T, n in zip(bottoms, ids_BT, lengths, strict=True)]
        prompts_NTD = nn.utils.rnn.pad_sequence(first, batch_first=True)
        out_NTD = TopCache.begin_together(together, prompts_NTD, lengths)
        pairs = [(head(out_NTD[row, :n]), whole[row][:n]) for row, n in enumerate(lengths)]
        pairs.append((head(alone.extend(first[0])), whole[0][: lengths[0]]))
        for step in range(_MORE):
            ids_N = torch.stack([ids_T[n + step] for ids_T, n in zip(ids_BT, lengths, strict=True)])
            h_ND = BottomCache.blocks_together(bottoms, BottomCache.embed_together(bottoms, ids_N))
            expected = torch.stack([whole[row][n + step] for row, n in enumerate(lengths)])
            pairs.append((head(TopCache.extend_together(together, h_ND)), expected))
            pairs.append((head(alone.extend(h_ND[:1])), expected[:1]))
        for got, expected in pairs:
            if off := _off(got, expected, ROUNDING):
                return f"outputs token by token differ by {off} at cut {cut}."
    return None


def _off(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE, least: float = 1.0) -> str:
    """The largest difference, relative to the largest value, if it is beyond rounding."""
    if got.shape != expected.shape:
        return f"their shape ({list(got.shape)} instead of {list(expected.shape)})"
    off = float((got.detach() - expected.detach()).abs().max() / expected.detach().abs().max().clamp(min=least))
    return "" if off <= tolerance else f"{off:.0e}"
