"""The job's fields as options, of commands and of Python alike: names, defaults, bounds and help are `JobSpec`'s."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from privtune.device.client.panels import DATA, NOISE, TRAINING
from privtune.device.protections.protection import DEFAULT, protection
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import DEVICE_SCHEME, JobSpec
from privtune.shared.validation import first_problem

Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class JobOption:
    """One option: the path of its field in the JobSpec, and its panel in `--help`."""

    path: Path
    panel: str | None = None


def _in(panel: str, **paths: str) -> dict[str, JobOption]:
    return {name: JobOption(path=tuple(path.split(".")), panel=panel) for name, path in paths.items()}


# Every option, in the order of `--help`. tests/unit/shared/test_job_surfaces.py fails for a field that is missing here.
JOB_OPTIONS: dict[str, JobOption] = {
    "model": JobOption(path=("model",)),
    "task": JobOption(path=("task",)),
    **_in(DATA, max_length="train.max_length", pad_to="train.pad_to"),
    **_in(
        NOISE,
        mechanism="mechanism.name",
        cut="cut",
        tail="tail",
        skip="skip",
        taught="taught",
        labels="labels",
        label_epsilon="label_epsilon",
        codec="codec",
        states="states",
        surrogates="surrogates.replace",
        surrogate_rank="surrogates.rank",
        surrogate_language="surrogates.language",
        zeroth_order_epsilon="zeroth_order.epsilon",
        zeroth_order_delta="zeroth_order.delta",
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
        zeroth_order_clip="zeroth_order.clip",
        zeroth_order_scale="zeroth_order.scale",
        zeroth_order_support="zeroth_order.support",
        zeroth_order_support_ratio="zeroth_order.support_ratio",
        precision="train.precision",
        in_flight="train.in_flight",
        checkpoint_every="train.checkpoint_every",
        evaluate_every="train.evaluate_every",
        early_stopping="train.early_stopping",
        best_by="train.best_by",
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


def build_spec(
    given: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    protect: str = DEFAULT,
    blocks: int | None = None,
    name: str | None = None,
    validated: bool = False,
    num_labels: int | None = None,
) -> JobSpec:
    """The job of these options; those left out take the protection's settings, then JobSpec's defaults.

    Args:
        given: values of options by name, as `JobOptions.given`.
        params: of the mechanism, from `params_of`. The protection's own are kept unless another mechanism is given.
        protect: name of the protection.
        blocks: of the model; as of `Protection.fields`.
        name: of the data set in the handle that the cloud sees; None: a random one, which reveals nothing.
        validated: the job has held-out records.
        num_labels: number of classes; None where the job does not need it.

    Raises:
        InvalidInput: names the option.
    """
    from privtune.device.noise.registry import check_job

    fields = protection(protect).fields(given.get("task", default_of("task")), blocks)
    replace = given.get("surrogates", fields["surrogates"]["replace"])
    if replace == "nothing" and {"surrogate_rank", "surrogate_language"} & set(given):
        raise InvalidInput("--surrogate-rank and --surrogate-language need --surrogates identifying.")
    for needy in {"skip", "states"} & set(given):
        if not given.get("tail", fields["tail"]):
            raise InvalidInput(f"--{needy} needs a tail: give --tail as well.", param=needy)
    if "early_stopping" in given and not validated:
        raise InvalidInput(
            "--early-stopping needs held-out records: give --validation or --holdout.", param="early_stopping"
        )
    handle = f"{DEVICE_SCHEME}{name or 'local-' + secrets.token_hex(4)}"
    fields |= {"training_file": handle, "num_labels": num_labels}
    if given.get("mechanism", fields["mechanism"]["name"]) != fields["mechanism"]["name"]:
        fields["mechanism"]["params"] = {}
    fields["mechanism"]["params"] |= params
    if validated:
        fields["validation_file"] = f"{handle}-validation"
    for option_name, value in given.items():
        *groups, last = JOB_OPTIONS[option_name].path
        place = fields
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    try:
        spec = JobSpec.model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(_in_options_words(error)) from None
    check_job(spec)
    return spec


def _in_options_words(error: ValidationError) -> str:
    """The first problem, by the name of the option that it is about."""
    first = error.errors()[0]
    problem = first_problem([first])
    if problem.where[:1] in (("training_file",), ("validation_file",)):
        return "--name: letters, digits, '.', '_' and '-' only, at most 100 of them."
    for name, job_option in JOB_OPTIONS.items():
        if job_option.path == problem.where[: len(job_option.path)]:
            like = field_at(job_option.path).examples if problem.kind == "string_pattern_mismatch" else None
            text = f"write it like {' or '.join(like)}" if like else problem.text.removeprefix("input ")
            return f"{flag_of(name)} {first['input']!r}: {text}."
    return f"{problem.text}."


def flag_of(name: str) -> str:
    """`--max-length` for `max_length`."""
    return f"--{name.replace('_', '-')}"


def help_of(field: FieldInfo) -> str:
    """The field's description, and its default unless the description says what is done without a value."""
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default is None or default == () or default is False:
        return f"{field.description}"
    return (
        f"{field.description} Default: {default:g}."
        if isinstance(default, float)
        else (f"{field.description} Default: {default}.")
    )
