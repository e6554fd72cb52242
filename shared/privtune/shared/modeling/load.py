"""Load a task model or a tokenizer from a hub id, a local folder or a GGUF file: safetensors only, no remote code.

    "org/name"                      a hub id (honours HF_HUB_OFFLINE)
    "path/to/folder"                config.json and *.safetensors
    "path/file.gguf", "org/name::file.gguf"   converted once to a cached safetensors folder

Everything fails with one line: `ModelNotFound`, `ModelUnsupported` or `InvalidInput`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.initialization import guard_torch_init_functions
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging

from privtune.shared.errors import ModelNotFound, ModelUnsupported, StorageFull
from privtune.shared.files import native_os_errors
from privtune.shared.job_spec import Task
from privtune.shared.modeling.anatomy import ENCODERS, SUPPORTED

log = logging.getLogger(__name__)

_SAFE: dict[str, Any] = {"trust_remote_code": False}


def load_task_model(ref: str, task: Task, *, num_labels: int = 2, seed: int = 0) -> Any:
    """The model for `task` in fp32 and eval mode, with every weight that its files lack drawn from `seed`.

    A classifier's last layer is always drawn anew: its classes are the data set's. The same `seed` gives the same
    weights on every machine and through a bottom package. `model.fresh_parameters` names what was drawn.
    """
    source = _local_source(ref)
    config = _load_config(source, ref, task, num_labels)
    factory = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    with quiet(), _one_line(ref):
        model, info = factory.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_SAFE,
        )
    missing = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    inside = {f"{model.base_model_prefix}.{name}" for name, _ in model.base_model.named_parameters()}
    lost = sorted(name for name in missing & inside if "pooler" not in name)
    if lost:
        raise ModelUnsupported(f"The files of '{ref}' lack weights of the base model ({lost[0]}, ...); not usable.")
    model.config._name_or_path = ref  # what an adapter will name as its base, and not the cache's path
    model.fresh_parameters = frozenset(missing) | fresh_by_design(model, task)
    draw_fresh(model, model.fresh_parameters, seed)
    return model.eval()


def load_tokenizer(ref: str) -> Any:
    """The fast tokenizer, padding on the right. Without a pad token the end-of-text token pads, which is logged."""
    source = _local_source(ref)
    with quiet(), _one_line(ref):
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, **_SAFE)
    return prepare_tokenizer(tokenizer, ref)


def gguf_file(ref: str) -> Path | None:
    """The GGUF file behind a reference, None for another kind of model. Raises `ModelNotFound`."""
    if "::" not in ref and not ref.endswith(".gguf"):
        return None
    where, file = _gguf_place(ref)
    if Path(where).is_dir():
        return Path(where) / file
    with _one_line(ref):
        return Path(cached_file(where, file))


def prepare_tokenizer(tokenizer: Any, ref: str) -> Any:
    """Check that it is a fast one and settle padding. Raises `ModelUnsupported`."""
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
    """The task model with its parameters on the meta device (no memory) and its computed buffers real."""
    factory = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    with quiet(), guard_torch_init_functions(), _parameters_on_meta():
        return factory.from_config(config, dtype=torch.float32, **_SAFE).eval()


def check_config(config: Any, task: Task, num_labels: int, ref: str) -> Any:
    """Refuse what can't be split for this task, and set the labels. Raises `ModelUnsupported`."""
    if config.model_type not in SUPPORTED:
        raise ModelUnsupported(
            f"'{ref}' is of type '{config.model_type}', which can't be split. Supported: {', '.join(SUPPORTED)}."
        )
    if task == "causal-lm":
        if config.model_type in ENCODERS:
            raise ModelUnsupported(f"'{ref}' is an encoder and writes no text: use it for classification.")
        return config
    config.num_labels = num_labels
    config.problem_type = None
    if getattr(config, "pad_token_id", None) is None and config.model_type not in ENCODERS:
        # Without one, the plain decoder classifiers refuse batches.
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    return config


def fresh_by_design(model: Any, task: Task) -> frozenset[str]:
    """Names of the classifier's last layer: the last linear layer outside the blocks. Empty for a language model."""
    if task == "causal-lm":
        return frozenset()
    base = model.base_model_prefix + "."
    last = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.startswith(base)][-1]
    return frozenset(f"{last}.{name}" for name, _ in model.get_submodule(last).named_parameters())


def draw_fresh(model: Any, names: frozenset[str], seed: int) -> None:
    """Initialise parameters from (seed, name) alone: matrices normal with the model's own spread, vectors zero."""
    for name, parameter in model.named_parameters():
        if name in names:
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            values = torch.zeros(parameter.shape)
            if parameter.dim() > 1:
                values.normal_(0.0, model.config.initializer_range, generator=generator)
            with torch.no_grad():
                parameter.copy_(values)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no table of 'missing keys' for a head that is meant to be new."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def check_folder(folder: Path) -> None:
    """Refuse a folder that would need pickle or its own code. Raises `ModelNotFound` or `ModelUnsupported`."""
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
    """A hub id as it is, or the checked local folder behind a path or a GGUF reference."""
    if "::" in ref or ref.endswith(".gguf"):
        return str(_converted_gguf(ref))
    path = Path(ref).expanduser()
    if path.is_dir():
        check_folder(path)
        return str(path)
    if path.exists() or ref.startswith((".", "/", "~")):
        raise ModelNotFound(f"{ref} is not a model folder.")
    return ref


def _load_config(source: str, ref: str, task: Task, num_labels: int) -> Any:
    with quiet(), _one_line(ref):
        config = AutoConfig.from_pretrained(source, **_SAFE)
    if getattr(config, "auto_map", None):
        raise ModelUnsupported(f"'{ref}' needs its own Python code (auto_map), which is never run.")
    return check_config(config, task, num_labels, ref)


@contextlib.contextmanager
def _one_line(ref: str) -> Iterator[None]:
    """Turn what transformers raises into one line of ours; the original stays as the cause."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise ModelUnsupported(f"'{ref}' needs its own Python code, which is never run.") from error
        if "safetensors" in text and isinstance(error, OSError):
            raise ModelUnsupported(f"'{ref}' has no safetensors weights; pickle files are never loaded.") from error
        if isinstance(error, OSError):
            offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
            raise ModelNotFound(
                f"No model '{ref}' here or on the hub{offline}. Give a folder, a hub id or a .gguf file."
            ) from error
        raise ModelUnsupported(f"'{ref}' can't be loaded: {text.splitlines()[0][:200]}") from error


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Put each parameter on the meta device as it is made; buffers, being computed and not stored, stay real."""
    original = nn.Module.register_parameter
    thread = threading.get_ident()  # modules that other threads make meanwhile are none of our business

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta and threading.get_ident() == thread:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
            param._is_hf_initialized = True  # type: ignore[attr-defined]  # the mark that the guard goes by: nothing to draw
        original(self, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def _converted_gguf(ref: str) -> Path:
    """A safetensors folder made from a GGUF file, cached by the file's identity: reading a GGUF takes 12-30 s."""
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ModelUnsupported(f"GGUF files need the package {package}: pip install 'privtune[gguf]'")
    where, file = _gguf_place(ref)
    path = Path(where) / file
    stat = path.stat() if path.is_file() else None
    identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}" if stat else ref
    root = Path(os.environ.get("PRIVTUNE_CACHE", Path.home() / ".cache" / "privtune")) / "gguf"
    target = root / hashlib.sha256(identity.encode()).hexdigest()[:24]
    if not (target / "config.json").exists():
        log.info("converting %s to safetensors, once", ref)
        try:
            root.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=root, prefix=".part-"))
            try:
                with native_os_errors():
                    _convert_gguf(where, file, ref, scratch)
            except Exception:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
        except OSError as error:
            raise StorageFull(f"The converted copy of '{ref}' can't be written to {root}: {error}") from error
    return target


def _gguf_place(ref: str) -> tuple[str, str]:
    """(folder or hub id, file name)."""
    where, _, file = ref.partition("::")
    if not file:
        path = Path(ref).expanduser()
        if not path.is_file():
            raise ModelNotFound(f"There is no file {ref}.")
        return str(path.parent), path.name
    if Path(where).is_dir() and not (Path(where) / file).is_file():
        raise ModelNotFound(f"There is no file {file} in {where}.")
    return where, file


def _convert_gguf(where: str, file: str, ref: str, target: Path) -> None:
    with quiet(), _one_line(ref):
        loaded = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32, **_SAFE)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file, **_SAFE)
    # A GGUF-loaded model calls itself quantised and refuses to be saved: rebuild it from a clean configuration.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    with quiet():
        clean = type(loaded)(config)
        clean.load_state_dict(loaded.state_dict())
        clean.tie_weights()
        clean.save_pretrained(target)
        tokenizer.save_pretrained(target)
