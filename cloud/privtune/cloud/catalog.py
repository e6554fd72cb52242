"""The models that this cloud offers, by name: reads config.json, or the header of a GGUF file without torch.

A model of any type that transformers has a class for may be offered; whether it can be split is tried when it is loaded
(`privtune.shared.modeling.self_check`), and by `privtune-cloud models`.

A client names a model, never a path: only models that the operator registered are looked up on the disk. With
`allow_hub`, a name that looks like a hub id and is not a path here is looked up on the hub.

A reference (`--model REF` or `--model NAME=REF`) is one of
    /path/folder                  a folder with config.json and safetensors
    /path/file.gguf               a GGUF file
    pypi:PACKAGE/SUBPATH          a folder or file inside an installed Python package
    owner/name, owner/name::FILE  a hub id, or a GGUF file of it
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privtune.cloud.speeds import Speeds
from privtune.shared.errors import CutOutOfRange, InvalidInput, ModelNotFound, ModelUnsupported, PrivTuneError
from privtune.shared.files import files_identity
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.architectures import tasks_of
from privtune.shared.teaching_spec import TeachingSpec
from privtune.shared.wording import counted, install

_PYPI = "pypi:"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,199}$")
_HUB_ID = re.compile(
    r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?(::[A-Za-z0-9][A-Za-z0-9_.-]{0,150}\.gguf)?$"
)
_GGUF_FAMILY = {"gemma3": "gemma3_text", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a client may know of a model.

    architecture: transformers' `model_type`.
    max_positions: longest text in tokens; None if no limit is known.
    """

    name: str
    architecture: str
    layers: int
    hidden_size: int
    vocabulary: int | None
    max_positions: int | None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it can be tuned for."""
        return tasks_of(self.architecture)


class Catalog:
    """Names and references of models. Cards are read once, on first use. Thread-safe.

    speeds: how fast this process has computed with each.

    Raises InvalidInput for an unusable entry and ModelNotFound for one that points nowhere.
    """

    def __init__(self, models: Iterable[str] = (), *, allow_hub: bool = False) -> None:
        self.allow_hub = allow_hub
        self.created = int(time.time())
        self.speeds = Speeds()
        self._refs: dict[str, str] = {}
        self._cards: dict[str, ModelCard] = {}
        self._lock = threading.Lock()
        for entry in models:
            name, ref = _parse(entry)
            if name in self._refs:
                raise InvalidInput(f"--model names {name!r} twice; give one of them another name: NAME=REF")
            self._refs[name] = ref

    @property
    def names(self) -> list[str]:
        """The registered names, in the operator's order."""
        return list(self._refs)

    def resolve(self, name: str) -> str:
        """The reference that loads a model: the path of a registered one, or a hub id. Raises ModelNotFound."""
        if name in self._refs:
            return self._refs[name]
        # A hub id that is also a path here would load from the disk, which only the operator may offer.
        if self.allow_hub and _HUB_ID.match(name) and not Path(name.partition("::")[0]).exists():
            return name
        raise ModelNotFound(
            f"This cloud does not offer the model {name[:80]!r}; `privtune models` (GET /v1/models) lists all.",
            param="model",
        )

    def files(self, name: str) -> str | None:
        """Names the files of a model as they are now (`files_identity`); None while none are here.

        Raises ModelNotFound.
        """
        ref = self.resolve(name)
        if Path(ref).exists():
            return files_identity(Path(ref))
        from huggingface_hub import try_to_load_from_cache

        hub, _, inside = ref.partition("::")
        known = try_to_load_from_cache(hub, inside or "config.json")
        return files_identity(Path(known).parent) if isinstance(known, str) else None  # the folder of a commit

    def card(self, name: str) -> ModelCard:
        """The card of a model. Raises ModelNotFound or ModelUnsupported."""
        ref = self.resolve(name)
        with self._lock:
            known = self._cards.get(name)
        if known is not None:
            return known
        card = _read_card(name, ref)
        with self._lock:
            self._cards[name] = card
        return card

    def cards(self) -> list[ModelCard]:
        """The cards of all registered models."""
        return [self.card(name) for name in self._refs]

    def check(self, spec: JobSpec) -> None:
        """Refuse a job whose model, cut, tail, task or length does not fit.

        Raises ModelNotFound, ModelUnsupported, CutOutOfRange or InvalidInput.
        """
        card = self.check_blocks(spec, "privtune.")
        if card.max_positions is not None and spec.train.longest(card.max_positions) > card.max_positions:
            raise InvalidInput(
                f"max_length {spec.train.max_length} is over {spec.model}'s limit of {card.max_positions} tokens.",
                param="privtune.train.max_length",
            )

    def check_blocks(self, spec: JobSpec | TeachingSpec, inside: str = "") -> ModelCard:
        """The card of a model whose blocks and task a job or teaching may have so. inside: prefix of its fields.

        Raises ModelNotFound, ModelUnsupported, CutOutOfRange or InvalidInput.
        """
        card = self.card(spec.model)
        if spec.cut >= card.layers:
            raise CutOutOfRange(
                f"cut must be from 0 to {card.layers - 1} for {spec.model} ({counted(card.layers, 'block')}), "
                f"not {spec.cut}.",
                param=f"{inside}cut",
            )
        if spec.tail >= card.layers - spec.cut:
            raise CutOutOfRange(
                f"cut {spec.cut} and a tail of {spec.tail} leave none of {spec.model}'s "
                f"{counted(card.layers, 'block')} to the cloud; with this cut the tail is from 0 to "
                f"{card.layers - spec.cut - 1}.",
                param=f"{inside}tail",
            )
        if spec.task not in card.tasks:
            raise InvalidInput(
                f"{spec.model} ({card.architecture}) can't be tuned for {spec.task}; it takes {', '.join(card.tasks)}.",
                param=f"{inside}task",
            )
        return card


def _parse(entry: str) -> tuple[str, str]:
    name, equals, ref = entry.partition("=")
    if not equals:
        name, ref = "", entry
    if not ref or (equals and not _NAME.match(name)):
        raise InvalidInput(f"--model {entry!r} is not NAME=REF or REF; a name has letters, digits, '.', '-', '_', '/'.")
    if ref.startswith(_PYPI):
        package, _, inside = ref.removeprefix(_PYPI).partition("/")
        return name or package.replace("_", "-"), str(_checked(inside_package("--model", package, inside)))
    path = Path(ref).expanduser()
    if path.exists():
        return name or (path.stem if path.suffix == ".gguf" else path.resolve().name), str(_checked(path))
    if _HUB_ID.match(ref):
        return name or ref, ref
    raise ModelNotFound(f"--model {entry}: there is no {ref}.")


def inside_package(option: str, package: str, inside: str) -> Path:
    """A path inside an installed package, found without running the package's code. Raises ModelNotFound.

    option: that names it, for the message.
    """
    try:
        found = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        found = None
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    if not folders:
        raise ModelNotFound(f"{option} {_PYPI}{package}/…: the package is not installed: pip install {package}")
    path = Path(folders[0]) / inside
    if not path.exists():
        raise ModelNotFound(f"{option} {_PYPI}{package}/{inside}: the package has no {inside or 'such path'!r}.")
    return path


def _checked(path: Path) -> Path:
    path = path.resolve()
    if path.is_file() and path.suffix == ".gguf":
        return path
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"{path} is not a model: expected a folder with config.json, or a .gguf file.")
    if not any(path.glob("*.safetensors")):
        raise ModelUnsupported(f"{path} has no .safetensors file; only that format is loaded, as it can't run code.")
    return path


def _read_card(name: str, ref: str) -> ModelCard:
    try:
        if ref.endswith(".gguf"):
            return _gguf_card(name, Path(_hub_file(*ref.split("::", 1)) if "::" in ref else ref))
        path = Path(ref) / "config.json" if Path(ref).is_dir() else Path(_hub_file(ref, "config.json"))
        return _config_card(name, json.loads(path.read_text("utf-8")))
    except PrivTuneError:
        raise
    except (OSError, ValueError) as error:
        raise ModelUnsupported(f"The description of {name} can't be read.", detail=repr(error)) from error


def _config_card(name: str, config: dict[str, Any]) -> ModelCard:
    family = str(config.get("model_type", "unknown"))
    return _card(
        name,
        family,
        layers=_first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        hidden_size=_first(config, "hidden_size", "n_embd", "dim", "n_embed", "d_model"),
        vocabulary=_first(config, "vocab_size"),
        max_positions=_positions(family, config),
    )


def _positions(family: str, config: dict[str, Any]) -> int | None:
    """The longest text in tokens; None if no limit is known."""
    rows = _first(config, "max_position_embeddings", "n_positions")
    if rows is None or not tasks_of(family):
        return rows
    from transformers import AutoConfig  # with torch: a card is read by who serves or lists models

    from privtune.shared.modeling.positions import kept_rows

    return rows - kept_rows(AutoConfig.for_model(family, **{k: v for k, v in config.items() if k != "model_type"}))


def _gguf_card(name: str, path: Path) -> ModelCard:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise ModelUnsupported(f"GGUF models need an extra: {install('gguf')}", detail=str(error)) from error
    fields = GGUFReader(str(path)).fields

    def value(key: str) -> Any:
        return fields[key].contents() if key in fields else None

    family = str(value("general.architecture"))
    tokens = fields.get("tokenizer.ggml.tokens")
    return _card(
        name,
        _GGUF_FAMILY.get(family, family),
        layers=value(f"{family}.block_count"),
        hidden_size=value(f"{family}.embedding_length"),
        vocabulary=len(tokens.data) if tokens is not None else None,
        max_positions=value(f"{family}.context_length"),
    )


def _card(name: str, family: str, *, layers: Any, hidden_size: Any, vocabulary: Any, max_positions: Any) -> ModelCard:
    if not tasks_of(family):
        raise ModelUnsupported(
            f"{name} is of type {family!r}, which can't be split; docs/models.md lists what can.",
            param="model",
        )
    if layers is None or hidden_size is None:
        raise ModelUnsupported(f"The description of {name} lacks the number of layers or the width.", param="model")
    return ModelCard(
        name=name,
        architecture=family,
        layers=int(layers),
        hidden_size=int(hidden_size),
        vocabulary=None if vocabulary is None else int(vocabulary),
        max_positions=None if max_positions is None else int(max_positions),
    )


def _first(config: dict[str, Any], *keys: str) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)


def _hub_file(repository: str, file: str) -> str:
    """A file of a hub model, from the local cache if it is there. Raises ModelNotFound."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(hf_hub_download(repository, file))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelNotFound(
            f"The hub has no model {repository!r} with {file}, or can't be reached from this cloud.",
            detail=repr(error),
            param="model",
        ) from error
