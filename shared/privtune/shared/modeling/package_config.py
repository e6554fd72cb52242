"""A package's configuration, of which only what describes the model's shape is believed.

The package comes from the cloud, and a configuration reaches many of transformers' loaders: kernels from a hub
(`attn_implementation`), quantisers, code. So only numbers and plain words are kept, in bounds, and no field that names
a way to load. The fields that a type declares are not enough: models also read others.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

from privtune.shared.errors import ArtifactCorrupt, ModelUnsupported

MAX_BYTES = 1 << 20
MAX_NUMBER = 1 << 24  # of rows, positions or units
MAX_LAYERS = 1024
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WORD = re.compile(r"^[A-Za-z0-9_. -]{0,64}$")  # no path, no name on a hub
_NEVER = {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_kernels"}
_LABELS = {"id2label", "label2id"}  # the data set's, set later


def package_config(folder: Path) -> Any:
    """The configuration of a package's model.

    Raises ArtifactCorrupt for nonsense, ModelUnsupported for a type that transformers does not know.
    """
    file = folder / "config.json"
    if file.stat().st_size > MAX_BYTES:
        raise ArtifactCorrupt(f"{folder.name}: config.json is over {MAX_BYTES:,} bytes; do not use this package")
    facts = json.loads(file.read_text(encoding="utf-8"))
    kind = facts.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelUnsupported(f"{folder.name} is of type {str(kind)[:40]!r}, which can't be split.")
    named = CONFIG_MAPPING[kind]
    kept = {
        name: value
        for name, value in _shape_only(facts).items()
        if name not in _LABELS | {"model_type"} and not callable(getattr(named, name, None))
    }
    if _largest(kept) > MAX_NUMBER or any(_largest(kept.get(name)) > MAX_LAYERS for name in _LAYERS):
        raise ArtifactCorrupt(f"{folder.name}: config.json describes an impossible model; do not use this package")
    return AutoConfig.for_model(kind, **kept)


def _shape_only(value: Any) -> Any:
    """A JSON value with its numbers and plain words; other texts, and fields that reach loaders, are left out."""
    if isinstance(value, dict):
        return {
            name: _shape_only(part)
            for name, part in value.items()
            if not _reaches_loaders(name) and (not isinstance(part, str) or _WORD.fullmatch(part))
        }
    if isinstance(value, list):
        return [_shape_only(part) for part in value if not isinstance(part, str) or _WORD.fullmatch(part)]
    return value


def _reaches_loaders(name: str) -> bool:
    private = name.startswith("_") and name != "_sliding_window_pattern"
    settings = name.endswith("_config") and name != "text_config"
    return private or settings or name in _NEVER or "implementation" in name


def _largest(value: Any) -> float:
    if isinstance(value, dict):
        return max(map(_largest, value.values()), default=0)
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, int) else 0
