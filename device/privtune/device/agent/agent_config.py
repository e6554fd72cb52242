"""agent.yaml: the data sets that jobs may name, the policy, and the owner's own copies of models.

datasets:
  reviews: {path: reviews.csv, text: body, label: stars, holdout: 0.1}
policy:
  protections: [words]
local_models:
  minilm: /models/minilm
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, PrivateAttr, field_validator

from privtune.device.data.records import Columns
from privtune.device.data.source import DataSource
from privtune.device.home.policy import Policy
from privtune.device.home.policy_file import read_mapping, validated
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import DEVICE_SCHEME, JobSpec
from privtune.shared.validation import Strict

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


def check_name(name: str) -> None:
    """Raises ValueError unless `device://NAME` is a valid handle."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' can't be a data set's name: letters, digits, '.', '_' and '-' only")


class DataSetting(Strict):
    """One registered data set: its file or hub name, its columns, and which records of it."""

    path: str = Field(min_length=1)
    text: str | None = None
    text2: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    chat_template: str | None = Field(None, description="Your own chat template for `messages`, a Jinja file.")
    own_terms: str | None = Field(None, description="File with words that surrogates always replace, one a line.")
    limit: int | None = Field(None, ge=1)
    holdout: float = Field(0.0, ge=0, lt=1, description="Fraction held out when a job names no validation file.")
    seed: int = Field(0, ge=0)

    def source(self, base: Path) -> DataSource:
        """The data set. A relative path starts at the folder `base` if the file exists there."""
        here = base / Path(self.path).expanduser()
        template = base / Path(self.chat_template).expanduser() if self.chat_template else None
        names = ("text", "text2", "label", "prompt", "completion", "messages")
        return DataSource(
            path=str(here) if here.exists() else self.path,
            columns=Columns(**{name: getattr(self, name) for name in names}),
            limit=self.limit,
            seed=self.seed,
            chat_template=str(template) if template else None,
            own_terms=str(base / Path(self.own_terms).expanduser()) if self.own_terms else None,
        )


class AgentConfig(Strict):
    """The whole file.

    datasets: the data sets that jobs may name, by name.
    policy: what jobs may ask for.
    local_models: the owner's own copies of models, by the name that the cloud gives them.
    """

    datasets: dict[str, DataSetting] = Field(default_factory=dict)
    policy: Policy = Field(default_factory=lambda: Policy.model_validate({}))
    local_models: dict[str, str] = Field(default_factory=dict)
    _folder: Path = PrivateAttr(Path())  # relative paths start here

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
        """The training data of a job, and its held-out data if any. Raises InvalidInput for an unregistered name."""
        for handle in (spec.training_file, spec.validation_file):
            if handle is not None and not self.knows(handle):
                raise InvalidInput(f"This device has no data set named {handle}.", param="validation_file")
        setting = self.datasets[spec.training_file.removeprefix(DEVICE_SCHEME)]
        train = setting.source(self._folder)
        if spec.validation_file is not None:
            named = self.datasets[spec.validation_file.removeprefix(DEVICE_SCHEME)]
            return train, named.source(self._folder)
        if setting.holdout:
            return train.with_holdout(setting.holdout)
        return train, None


def load_agent_config(path: Path) -> AgentConfig:
    """Read and check the file.

    Raises:
        DataInvalid: the file can't be read or is not YAML (names the line).
        InvalidInput: a key or value is wrong (names the key).
    """
    config = validated(path, AgentConfig, read_mapping(path, "`datasets:`"))
    config._folder = path.parent.resolve()
    return config
