"""Models in GGUF files: found by reference, and converted once to a cached safetensors folder."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from privtune.shared.errors import ModelNotFound, ModelUnsupported, StorageFull
from privtune.shared.files import held, replacing_folder
from privtune.shared.modeling.cache_folder import cache_folder
from privtune.shared.modeling.hf_calls import SAFE, one_line, quiet
from privtune.shared.packages import require

log = logging.getLogger(__name__)


def is_gguf(ref: str) -> bool:
    """Whether a reference names a GGUF file."""
    return "::" in ref or ref.endswith(".gguf")


def gguf_file(ref: str) -> Path | None:
    """The GGUF file that a reference names; None for another kind of model. Raises `ModelNotFound`."""
    if not is_gguf(ref):
        return None
    return _found(*_place(ref), ref)


def check_gguf_reader() -> None:
    """Raises `PackageMissing` where GGUF files can't be read."""
    require("GGUF files need", ("gguf", "accelerate"), "gguf")


def converted_gguf(ref: str) -> Path:
    """A safetensors folder converted from a GGUF file, cached by the file's identity: reading a GGUF takes 12-30 s.

    Raises `ModelNotFound`, `ModelUnsupported`, `PackageMissing`, and `StorageFull` when the cache can't be written.
    """
    check_gguf_reader()
    where, file = _place(ref)
    path = _found(where, file, ref)
    stat = path.stat()  # of a hub's file, the path differs with its contents
    identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    root = cache_folder() / "gguf"
    target = root / hashlib.sha256(identity.encode()).hexdigest()[:24]
    if not (target / "config.json").exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
            with held(target.with_suffix(".lock"), wait=True):  # another process may be converting the same file
                if not (target / "config.json").exists():
                    log.info("converting %s to safetensors, once", ref)
                    _check_rope(path, ref)
                    with replacing_folder(target) as scratch:
                        _convert(where, file, ref, scratch)
        except OSError as error:
            raise StorageFull(f"The converted copy of '{ref}' can't be written to {root}: {error}") from error
    return target


def _place(ref: str) -> tuple[str, str]:
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


def _found(where: str, file: str, ref: str) -> Path:
    if Path(where).is_dir():
        return Path(where) / file
    with one_line(ref):
        return Path(cached_file(where, file))


def _check_rope(path: Path, ref: str) -> None:
    """Refuse scaled positions (Llama 3.1 has them), which transformers does not read: answers would be off."""
    from gguf import GGUFReader

    with one_line(ref):
        reader = GGUFReader(path)
    scaling = next((f.contents() for key, f in reader.fields.items() if key.endswith(".rope.scaling.type")), "none")
    factors = any(tensor.name.startswith(("rope_freqs", "rope_factors")) for tensor in reader.tensors)
    if factors or (scaling != "none" and "gpt-oss.rope.scaling.type" not in reader.fields):
        raise ModelUnsupported(
            f"'{ref}' scales its positions, which is lost when it is read; use the safetensors files."
        )


def _convert(where: str, file: str, ref: str, target: Path) -> None:
    with quiet(), one_line(ref):
        loaded = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32, **SAFE)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file, **SAFE)
    # A model loaded from GGUF counts as quantised and can't be saved: rebuild it from a clean configuration.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    with quiet():
        with torch.device("meta"):  # takes over the weights instead of holding them a second time
            clean = type(loaded)(config)
        clean.load_state_dict(loaded.state_dict(), assign=True)
        clean.tie_weights()
        clean.save_pretrained(target)
        tokenizer.save_pretrained(target)
