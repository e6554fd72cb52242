"""`privtune plan`: what a job will take, before anything starts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.commands.finetune import TrainingData
from privtune.device.cli.connection import ModelConnection
from privtune.device.cli.error_report import guarded
from privtune.device.cli.job_flags import JobOptions
from privtune.device.cli.mechanism_options import Params, Protect, params_of
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson, limit_threads, to_stderr
from privtune.device.cli.printing import print_facts
from privtune.device.client.job_options import build_spec, flag_of
from privtune.device.protections.protection import DEFAULT, protection
from privtune.shared.wording import counted

if TYPE_CHECKING:
    from privtune.device.link.rest import ControlPlane
    from privtune.device.plan.planning import Plan, PlanRequest
    from privtune.device.protections.measured import Interval
    from privtune.shared.job_spec import Task


@guarded
@grouped
def plan(
    job: JobOptions,
    columns: TrainingData,
    connection: ModelConnection,
    data: Annotated[
        str | None,
        typer.Option(help="Your data, as of `privtune finetune`. It is read, and stays.", show_default=False),
    ] = None,
    protect: Protect = None,
    param: Params = None,
    gpu_hour: Annotated[
        float | None, typer.Option(help="Price of an hour of the cloud's GPU, to tell the cost.", min=0)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict what a job will take: time, bytes, memory, disk, money, and what an informed cloud would read.

    Takes the options of `privtune finetune`, and starts nothing. It reads your data, runs a few micro-batches on this
    machine, and asks the cloud how fast its own steps are and how fast the line is. Without a cloud, give your copy of
    the model: then the cloud counts as being as fast as this machine.

    \b
    Examples:
      privtune plan --model minilm --data reviews.csv --holdout 0.1 --gpu-hour 2
      privtune plan --local-model ./minilm --data reviews.csv --protect words
    """
    import contextlib
    import time
    from dataclasses import replace

    began = time.perf_counter()
    from privtune.device.plan.planning import plan_job
    from privtune.shared.errors import InvalidInput

    if not data:
        raise InvalidInput("--data is missing; `privtune plan --help` has examples.", param="data")
    if not connection.cloud and connection.local_model is None:
        raise InvalidInput(
            "Plan for which cloud? Set PRIVTUNE_CLOUD or give --cloud, or --local-model to plan without one.",
            param="cloud",
        )
    if connection.cloud and "model" not in job.given:
        raise InvalidInput("--model is missing; `privtune models` lists what there is.", param="model")
    limit_threads(connection.threads)
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(connection.control()) if connection.cloud else None
        request = _request(data, job, columns, connection, control, protect, param)
        say = (lambda _: None) if as_json else to_stderr
        found = plan_job(replace(request, started=began, price=gpu_hour), say)
    if as_json:
        typer.echo(json.dumps(found.document(), indent=1))
    else:
        _show(found)
        typer.echo(f"\nRun it: {_command(found, data, job, columns, protect, param)}")


def _request(
    data: str,
    job: JobOptions,
    columns: TrainingData,
    connection: ModelConnection,
    control: ControlPlane | None,
    protect: str | None,
    param: list[str] | None,
) -> PlanRequest:
    from dataclasses import replace

    from privtune.device.plan.planning import PlanRequest
    from privtune.device.training.submit import check_packages

    train, validation = columns.sources(data, job["seed"])
    blocks, name = _blocks(job, connection, control), protect or DEFAULT
    given = {"model": "local"} | {option: value for option, value in job.given.items() if option != "taught"}
    spec = build_spec(
        given | _shallow(given, name, job["task"], blocks),
        params_of(param or ()),
        protect=name,
        blocks=blocks,
        validated=validation is not None,
        num_labels=2 if job["labels"] == "shared" else None,
    )
    check_packages(spec, connection.local_model)
    settings = connection.local_settings("") if control is None else connection.settings(control)
    return PlanRequest(
        spec=spec,
        train=train,
        validation=validation,
        protect=name,
        open=frozenset({"cut", "tail", "batch_size"} - given.keys()),
        settings=replace(settings, local_model=connection.local_model),
        control=control,
        started=0.0,
    )


def _shallow(given: dict[str, Any], protect: str, task: Task, blocks: int) -> dict[str, int]:
    """A cut that leaves a block to the cloud, where the protection's would not and the owner named none."""
    fields = protection(protect).fields(task, blocks)
    most = blocks - 1 - given.get("tail", fields["tail"])
    return {"cut": most} if "cut" not in given and 0 <= most < fields["cut"] else {}


def _blocks(job: JobOptions, connection: ModelConnection, control: ControlPlane | None) -> int:
    if control is not None:
        return control.blocks(job["model"])
    from privtune.shared.modeling.load import count_blocks

    return count_blocks(str(connection.local_model), job["task"])


def _show(found: Plan) -> None:
    """The plan for a person."""
    print_facts(dict(_facts(found)))


def _facts(found: Plan) -> Iterator[tuple[str, str]]:
    from privtune.device.client.training_screen import duration, megabytes

    times, room = found.times, found.room
    unknown = times.cloud is None
    most = " at most" if found.spec.train.early_stopping else ""
    cut = f", {found.truncated:,} of them longer than the limit" if found.truncated else ""
    yield "Records", f"{found.records:,}, about {found.tokens:,} tokens{cut}; {counted(found.work.steps, 'step')}{most}"
    yield "Picked", "; ".join(found.picks) or "nothing: cut, tail and batch size were given"
    yield "Time", f"{'at least ' if unknown else ''}{duration(found.seconds)}, of it {duration(times.total)} of steps"
    if found.prepare:
        yield "  before", ", ".join(f"{what} {duration(seconds)}" for what, seconds in found.prepare.items())
    busy = {"device": times.device, "line": times.line, "cloud": times.cloud}
    yield "  busy", ", ".join(f"{who} {'unknown' if s is None else duration(s)}" for who, s in busy.items())
    yield "Limited by", f"the {times.limit}" + (": the cloud has not measured itself yet" if unknown else "")
    yield "Cloud's speed", found.speed.source
    if found.line is not None:
        line = found.line
        yield (
            "Line",
            (f"{megabytes(line.up)}/s up, {megabytes(line.down)}/s down, {1000 * line.round_trip:.0f} ms round trip"),
        )
    yield "Bytes", f"{megabytes(found.work.up)} up, {megabytes(found.work.down)} down"
    if found.padding is not None:
        yield "  of padding", f"{megabytes(found.padding.up)} up, {megabytes(found.padding.down)} down"
    yield "Device", f"{megabytes(room.device_memory)} of memory, {megabytes(room.device_disk)} of disk"
    yield "Cloud", f"{megabytes(room.cloud_memory)} of memory, {megabytes(room.cloud_disk)} of disk"
    if found.cost is not None:
        held, computing = found.cost
        paid = "" if computing is None else f", {computing:.2f} if only computing is paid"
        yield "Cost", f"{held:.2f} for a GPU that is held all the time{paid}"
    yield from _reads(found)


def _reads(found: Plan) -> Iterator[tuple[str, str]]:
    """What an informed cloud would read, and what that costs and is worth."""
    from privtune.device.protections.measured import NOT_MEASURED, cloud_gain, points
    from privtune.device.protections.readable import what_the_cloud_reads

    row = found.measured
    yield "Cloud sees", _lengths(found)
    for line in what_the_cloud_reads(found.spec):
        about, _, text = line.partition(": ")
        yield f"Cloud reads, {about.lower()}", text
    if row is not None and row.content is not None:
        yield "  95% interval", f"{_percent(row.content)} of content words ({row.where})"
    if row is not None and row.strong is not None:
        yield "  strongest", f"{_percent(row.strong)} of all words, with {counted(row.strong_texts, 'public text')}"
    yield "Points it costs", NOT_MEASURED if row is None or row.drop is None else f"{points(row.drop)} ({row.where})"
    yield "Cloud gain", cloud_gain(found.spec).removeprefix("Cloud gain: ")


def _lengths(found: Plan) -> str:
    seen = found.lengths
    text = f"{counted(seen.different, 'different length')} of records: {seen.bits:.1f} bits about each"
    text += f", and {counted(seen.alone, 'record')} alone with theirs" if seen.alone else ""
    if found.padding is None:
        return f"{text} (--pad-to hides lengths)"
    return f"{text} ({found.padding.without.bits:.1f} bits without padding)"


def _percent(interval: Interval) -> str:
    value, low, high = (100 * one for one in interval)
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def _command(
    found: Plan, data: str, job: JobOptions, columns: TrainingData, protect: str | None, param: list[str] | None
) -> str:
    """`privtune finetune` with what was planned."""
    words = ["privtune", "finetune", "--data", data]
    words += [] if "model" in job.given else ["--model", "NAME"]
    words += [] if protect is None else ["--protect", protect]
    given = dict(job.given) | {"cut": found.spec.cut, "batch_size": found.spec.train.batch_size}
    given |= {name: value for name, value in vars(columns).items() if value}
    for name, value in given.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [word for one in values for word in ((flag_of(name),) if one is True else (flag_of(name), str(one)))]
    words += [word for one in param or () for word in ("--param", one)]
    return shlex.join(words)
