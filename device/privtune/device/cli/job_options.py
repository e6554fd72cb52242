"""The job's fields as options of a command: names, types, defaults and help are those of `JobSpec`."""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from privtune.device.cli.option_groups import OptionGroup
from privtune.shared.job_spec import JobSpec

DATA, NOISE, TRAINING = "Data", "Noise", "Training"
Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class JobOption:
    """One option: its place in the JobSpec, and its panel in `--help`."""

    path: Path
    panel: str | None = None


def _in(panel: str, **paths: str) -> dict[str, JobOption]:
    return {name: JobOption(path=tuple(path.split(".")), panel=panel) for name, path in paths.items()}


# Every option, in the order of `--help`. A field that is missing here is a field that the command line can't set, and
# tests/unit/shared/test_job_surfaces.py fails.
JOB_OPTIONS: dict[str, JobOption] = {
    "model": JobOption(path=("model",)),
    "task": JobOption(path=("task",)),
    **_in(DATA, max_length="train.max_length"),
    **_in(
        NOISE,
        mechanism="mechanism.name",
        cut="cut",
        tail="tail",
        skip="skip",
        labels="labels",
        label_epsilon="label_epsilon",
        codec="codec",
    ),
    **_in(
        TRAINING,
        epochs="train.epochs",
        max_steps="train.max_steps",
        batch_size="train.batch_size",
        accumulation="train.accumulation",
        learning_rate="optim.learning_rate",
        head_learning_rate="optim.head_learning_rate",
        weight_decay="optim.weight_decay",
        schedule="optim.schedule",
        warmup_ratio="optim.warmup_ratio",
        max_grad_norm="optim.max_grad_norm",
        tuning="tuning.method",
        lora_rank="tuning.rank",
        lora_alpha="tuning.alpha",
        lora_dropout="tuning.dropout",
        lora_targets="tuning.targets",
        gradient_checkpointing="tuning.gradient_checkpointing",
        precision="train.precision",
        in_flight="train.in_flight",
        checkpoint_every="train.checkpoint_every",
        seed="train.seed",
        suffix="suffix",
    ),
}


def field_at(path: Path) -> FieldInfo:
    """The field of the JobSpec, or of one of its parts, at a path like ("train", "epochs")."""
    model: type[BaseModel] = JobSpec
    for part in path[:-1]:
        inner = model.model_fields[part].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return model.model_fields[path[-1]]


def default_of(name: str) -> Any:
    """What a job gets when the option is not given."""
    return field_at(JOB_OPTIONS[name].path).get_default(call_default_factory=True)


class JobOptions(OptionGroup):
    """The options that were given, by name; those that were not are left out.

    names: the options of this group, all by default; a command that takes only some of them derives a class.
    """

    names: ClassVar[tuple[str, ...]] = tuple(JOB_OPTIONS)

    def __init__(self, **values: Any) -> None:
        self.given = {name: value for name, value in values.items() if value is not None and value != []}

    def __getitem__(self, name: str) -> Any:
        """The value that was given, or the job's default."""
        return self.given[name] if name in self.given else default_of(name)

    @classmethod
    def options(cls) -> list[inspect.Parameter]:
        """See `OptionGroup.options`."""
        return [_parameter(name) for name in cls.names]


@cache
def _parameter(name: str) -> inspect.Parameter:
    option = JOB_OPTIONS[name]
    field = field_at(option.path)
    kind, flag = _type_of(field), ()
    if kind is bool:
        flag = (f"--{name.replace('_', '-')}",)  # without typer's --no-...
    info = typer.Option(*flag, help=help_of(field), rich_help_panel=option.panel, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )


def help_of(field: FieldInfo) -> str:
    """The field's description, and its default where that is a value."""
    default = field.get_default(call_default_factory=True)
    told = field.is_required() or default is None or default == () or default is False
    return f"{field.description}" if told else f"{field.description} Default: {_shown(default)}."


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type_of(field: FieldInfo) -> Any:
    """The type that the option parses: without None, and a list where the job has a tuple."""
    kind: Any = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    return list[get_args(kind)[0]] if get_origin(kind) is tuple else kind
