"""agent.yaml: the data sets that jobs may name, the policy, and the owner's own copies of models.

datasets:
  reviews: {path: reviews.csv, text: body, label: stars, holdout: 0.1}
policy:
  mechanisms: [dchi]
  bounds: {dchi: {noise_ratio: {min: 8}}}
local_models:
  minilm: /models/minilm
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from privtune.device.data.records import Columns
from privtune.device.data.source import DataSource
from privtune.device.home.policy import AuditRule, Budget, Policy
from privtune.shared.errors import DataInvalid, InvalidInput
from privtune.shared.job_spec import DEVICE_SCHEME, JobSpec
from privtune.shared.validation import Strict

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


def check_name(name: str) -> None:
    """Raises ValueError unless `device://NAME` can be a handle."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' can't be a data set's name: letters, digits, '.', '_' and '-' only")


class DataSetting(Strict):
    """One registered data set: the file, its columns, and which part of it."""

    path: str = Field(min_length=1)
    text: str | None = None
    text2: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    chat_template: str | None = Field(None, description="Your own chat template for `messages`, a Jinja file.")
    limit: int | None = Field(None, ge=1)
    holdout: float = Field(0.0, ge=0, lt=1, description="Held out where a job names no validation file.")
    seed: int = Field(0, ge=0)

    def source(self, base: Path) -> DataSource:
        """The data set; a relative path counts from `base` if the file is there."""
        here = base / Path(self.path).expanduser()
        template = base / Path(self.chat_template).expanduser() if self.chat_template else None
        names = ("text", "text2", "label", "prompt", "completion", "messages")
        return DataSource(
            path=str(here) if here.exists() else self.path,
            columns=Columns(**{name: getattr(self, name) for name in names}),
            limit=self.limit,
            seed=self.seed,
            chat_template=str(template) if template else None,
        )


class AgentConfig(Strict):
    """The whole file. `base`: the folder that relative paths count from."""

    datasets: dict[str, DataSetting] = Field(default_factory=dict)
    policy: Policy = Field(default_factory=lambda: Policy.model_validate({}))
    local_models: dict[str, str] = Field(default_factory=dict)
    base: Path = Path()

    @field_validator("datasets")
    @classmethod
    def _names_fit_handles(cls, value: dict[str, DataSetting]) -> dict[str, DataSetting]:
        for name in value:
            check_name(name)
        return value

    def knows(self, handle: str | None) -> bool:
        """Whether the handle `device://NAME` is registered here."""
        return handle is not None and handle.removeprefix(DEVICE_SCHEME) in self.datasets

    def sources(self, spec: JobSpec) -> tuple[DataSource, DataSource | None]:
        """Training and validation data of a job. Raises InvalidInput for a name that is not registered."""
        for handle in (spec.training_file, spec.validation_file):
            if handle is not None and not self.knows(handle):
                raise InvalidInput(f"This device has no data set named {handle}.", param="validation_file")
        setting = self.datasets[spec.training_file.removeprefix(DEVICE_SCHEME)]
        train = setting.source(self.base)
        if spec.validation_file is not None:
            named = self.datasets[spec.validation_file.removeprefix(DEVICE_SCHEME)]
            return train, named.source(self.base)
        if setting.holdout:
            return train.with_holdout(setting.holdout)
        return train, None


def load_agent_config(path: Path) -> AgentConfig:
    """Read and check the file.

    Raises:
        DataInvalid: it can't be read or is not YAML (names the line).
        InvalidInput: a key or value is wrong (names the key).
    """
    raw = _mapping(path, "`datasets:`")
    if "base" in raw:
        raise InvalidInput(_unknown(path, ("base",)))
    return _validated(path, raw)


def home_policy(home: Path) -> Policy | None:
    """The device's own policy, `policy.yaml` in its folder: the keys of agent.yaml's policy section. None: no file.

    Raises as `load_agent_config`.
    """
    path = home / "policy.yaml"
    if not path.exists():
        return None
    return _validated(path, {"policy": _mapping(path, "`mechanisms:`")}).policy


def _mapping(path: Path, example: str) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataInvalid(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataInvalid(f"{path} is not UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise DataInvalid(f"{path}{where}: not valid YAML: {problem}.") from None
    if raw is None:
        raise DataInvalid(f"{path} is empty; it needs at least {example}.")
    if not isinstance(raw, dict):
        raise InvalidInput(f"{path}: keys like {example} are expected, not a {type(raw).__name__}.")
    return raw


def _validated(path: Path, raw: dict[str, Any]) -> AgentConfig:
    try:
        return AgentConfig.model_validate(raw | {"base": path.parent.resolve()})
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            raise InvalidInput(_unknown(path, first["loc"])) from None
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{path}: {key}: {message[:1].lower()}{message[1:]}") from None


def _unknown(path: Path, location: tuple[int | str, ...]) -> str:
    """`unknown key`, with the keys that there are at that place."""
    key = ".".join(str(part) for part in location)
    if location[0] == "datasets":
        known = list(DataSetting.model_fields)
    elif location[0] == "policy" and len(location) == 2:
        known = list(Policy.model_fields)
    elif location[:2] == ("policy", "budget"):
        known = list(Budget.model_fields)
    elif location[:2] == ("policy", "audit"):
        known = list(AuditRule.model_fields)
    elif location[0] == "policy":
        known = ["min", "max", "allowed"]
    else:
        known = [name for name in AgentConfig.model_fields if name != "base"]
    return f"{path}: unknown key {key}; known here: {', '.join(known)}"
