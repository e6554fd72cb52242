"""Loads a task model or a tokenizer from a hub id, a local folder or a GGUF file: safetensors only, no remote code.

    "org/name"                                a hub id (honours HF_HUB_OFFLINE)
    "path/to/folder"                          config.json and *.safetensors
    "path/file.gguf", "org/name::file.gguf"   converted once to a cached safetensors folder

Every failure is one line: `ModelNotFound`, `ModelUnsupported` or `StorageFull`.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_buffer_registration_hook
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.initialization import guard_torch_init_functions

from privtune.shared.errors import ModelNotFound, ModelUnsupported
from privtune.shared.job_spec import Task
from privtune.shared.modeling.architectures import is_encoder, tasks_of
from privtune.shared.modeling.fresh_weights import draw_fresh, fresh_by_design
from privtune.shared.modeling.gguf_source import converted_gguf, is_gguf
from privtune.shared.modeling.hf_calls import SAFE, one_line, quiet
from privtune.shared.modeling.self_check import check_split

log = logging.getLogger(__name__)

_MAX_BUFFERS = 1 << 30  # bytes


def load_task_model(ref: str, task: Task, *, num_labels: int = 2, seed: int = 0) -> Any:
    """The model for `task` in fp32 and eval mode, with every weight that its files lack drawn from `seed`.

    A classifier's last layer is always drawn, because its classes are the data set's. The same `seed` gives the same
    weights on every machine and through a bottom package. `model.fresh_parameters` names what was drawn.
    """
    source = _local_source(ref)
    config = _load_config(source, ref, task, num_labels)
    factory = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    with quiet(), one_line(ref):
        model, info = factory.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **SAFE,
        )
    missing = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    inside = {f"{model.base_model_prefix}.{name}" for name, _ in model.base_model.named_parameters()}
    lost = sorted(name for name in missing & inside if "pooler" not in name)
    if lost:
        raise ModelUnsupported(f"The files of '{ref}' lack weights of the base model ({lost[0]}, ...); not usable.")
    model.config._name_or_path = ref  # the base that an adapter names, instead of the cache's path
    model.fresh_parameters = frozenset(missing) | fresh_by_design(model, task)
    _own_weights(model)
    draw_fresh(model, model.fresh_parameters, seed)
    return model.eval()


def _own_weights(model: torch.nn.Module) -> None:
    """Copy the weights out of the mapped file: whoever overwrites the file in place would change a model in use."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def load_tokenizer(ref: str) -> Any:
    """The fast tokenizer, padding on the right. Without a pad token the end-of-text token pads, which is logged."""
    source = _local_source(ref)
    with quiet(), one_line(ref):
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, **SAFE)
    return prepare_tokenizer(tokenizer, ref)


def prepare_tokenizer(tokenizer: Any, ref: str) -> Any:
    """Set up padding. Raises `ModelUnsupported` for a slow tokenizer and for one without a token to pad with."""
    if not tokenizer.is_fast:
        raise ModelUnsupported(f"'{ref}' has no fast tokenizer (tokenizer.json); convert it with transformers first.")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelUnsupported(f"The tokenizer of '{ref}' has neither a pad nor an end-of-text token.")
        tokenizer.pad_token = tokenizer.eos_token
        log.info("the tokenizer of %s has no pad token: padding with %s", ref, tokenizer.eos_token)
    tokenizer.padding_side = "right"
    return tokenizer


def build_task_model(config: Any, task: Task) -> Any:
    """The task model with parameters on the meta device, which take no memory, and real, computed buffers."""
    factory = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    with quiet(), guard_torch_init_functions(), _parameters_on_meta():
        return factory.from_config(config, dtype=torch.float32, **SAFE).eval()


def check_buffers(config: Any, task: Task, ref: str) -> None:
    """Refuse a configuration of whose model the computed buffers would take much memory: they are as large as it says.

    Raises `ModelUnsupported`.
    """
    size, thread = 0, threading.get_ident()

    def add(_: nn.Module, __: str, buffer: torch.Tensor | None) -> None:
        nonlocal size
        if buffer is not None and threading.get_ident() == thread:
            size += buffer.nbytes
            if size > _MAX_BUFFERS:
                raise ModelUnsupported(f"'{ref}' computes tables of more than {_MAX_BUFFERS >> 20} MiB; not usable.")

    factory = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    handle = register_module_buffer_registration_hook(add)
    try:
        with quiet(), torch.device("meta"):
            factory.from_config(copy.deepcopy(config), dtype=torch.float32, **SAFE)
    except ModelUnsupported:
        raise
    except Exception as error:  # what is wrong with it, the checks that follow say better
        log.debug("no model of %s on the meta device: %r", config.model_type, error)
    finally:
        handle.remove()


def check_config(config: Any, task: Task, num_labels: int, ref: str) -> Any:
    """Refuse a model that can't be split for this task, and set its number of labels. Raises `ModelUnsupported`.

    The first time that a configuration is seen, a small copy of it is tried (`self_check`): about a second.
    """
    config._attn_implementation = None  # by such a name in a file transformers would fetch code from the hub
    tasks = tasks_of(config.model_type)
    if task == "causal-lm" and tasks == ("classification",):
        raise ModelUnsupported(f"'{ref}' is an encoder and generates no text: use it for classification.")
    if task not in tasks:
        raise ModelUnsupported(
            f"'{ref}' is of type '{config.model_type}', which can't be split for {task}; docs/models.md lists what can."
        )
    if task == "classification":
        config.num_labels = num_labels
        config.problem_type = None
        if getattr(config, "pad_token_id", None) is None and not is_encoder(config.model_type):
            # Decoder classifiers refuse batches without one.
            eos = getattr(config, "eos_token_id", None)
            config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    check_split(config, task, ref)
    return config


def check_model(ref: str, task: Task) -> None:
    """Refuse a model that can't be loaded and split, without reading its weights.

    Raises `ModelNotFound`, `ModelUnsupported`, and `StorageFull` when a GGUF file can't be converted.
    """
    _load_config(_local_source(ref), ref, task, num_labels=2)


def count_blocks(ref: str, task: Task) -> int:
    """How many blocks a model has, without reading its weights. Raises `ModelNotFound` or `ModelUnsupported`."""
    return int(_load_config(_local_source(ref), ref, task, 2).num_hidden_layers)


def check_folder(folder: Path) -> None:
    """Refuse a folder that needs pickle or its own code. Raises `ModelNotFound` or `ModelUnsupported`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFound(f"{folder} has no config.json: not a Hugging Face model folder.") from None
    except ValueError:
        raise ModelUnsupported(f"{folder}/config.json is not valid JSON.") from None
    if "auto_map" in config:
        raise ModelUnsupported(f"{folder} needs its own Python code (auto_map), which is never run.")
    if not any(folder.glob("*.safetensors")):
        kind = "only pickle files" if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) else "no weights"
        raise ModelUnsupported(f"{folder} holds {kind}; save the model as safetensors first.")


def _local_source(ref: str) -> str:
    """A hub id unchanged, or the checked local folder of a path or a GGUF reference."""
    if is_gguf(ref):
        return str(converted_gguf(ref))
    path = Path(ref).expanduser()
    if path.is_dir():
        check_folder(path)
        return str(path)
    if path.exists() or ref.startswith((".", "/", "~")):
        raise ModelNotFound(f"{ref} is not a model folder.")
    return ref


def _load_config(source: str, ref: str, task: Task, num_labels: int) -> Any:
    with quiet(), one_line(ref):
        config = AutoConfig.from_pretrained(source, **SAFE)
    if getattr(config, "auto_map", None):
        raise ModelUnsupported(f"'{ref}' needs its own Python code (auto_map), which is never run.")
    return check_config(config, task, num_labels, ref)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Create each parameter on the meta device; buffers stay real, because they are computed and not stored."""
    original = nn.Module.register_parameter
    thread = threading.get_ident()  # leave modules of other threads alone

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta and threading.get_ident() == thread:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
            param._is_hf_initialized = True  # type: ignore[attr-defined]  # tells the guard that there is nothing to draw
        original(self, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
