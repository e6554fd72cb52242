"""`privtune finetune`: submit a job and train it here, in one command; the same command again resumes it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.interrupt import pausing
from privtune.device.cli.options import (
    DATA,
    ApiKey,
    AsJson,
    CaCert,
    Cloud,
    GrpcAddress,
    Home,
    LocalModel,
    Patience,
    Text2Column,
    TextColumn,
    Threads,
    check_skip,
    control_plane,
    home_folder,
    limit_threads,
    run_settings,
)

if TYPE_CHECKING:
    from privtune.device.cli.run_screen import Screen
    from privtune.device.data.source import DataSource
    from privtune.device.home.run_request import RunRequest
    from privtune.device.link.rest import ControlPlane
    from privtune.shared.job_spec import JobSpec

NOISE = "Noise"
TRAINING = "Training"
EPILOG = "Exit codes: docs/exit-codes.md. Ctrl-C pauses: exit code 130; run the command again to go on."


def _option(help_text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False, **more)


@guarded
def finetune(
    model: Annotated[str | None, typer.Option(help="A model that the cloud offers.", show_default=False)] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Your data: .jsonl, .csv, .tsv, .parquet, or a hub data set OWNER/NAME. It never leaves this machine.",
            show_default=False,
        ),
    ] = None,
    job: Annotated[str | None, typer.Option(help="Resume this job; needs no other option.", show_default=False)] = None,
    new: Annotated[bool, typer.Option("--new", help="Start anew even if the same job is unfinished.")] = False,
    task: Annotated[
        Literal["classification", "causal-lm"] | None,
        typer.Option(help="Default: classification.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    text_column: TextColumn = None,
    text2_column: Text2Column = None,
    label_column: Annotated[str | None, _option("Column of the label. Default: by the header.", DATA)] = None,
    prompt_column: Annotated[str | None, _option("Column of the prompt (causal-lm).", DATA)] = None,
    completion_column: Annotated[str | None, _option("Column of the completion (causal-lm).", DATA)] = None,
    messages_column: Annotated[
        str | None, _option("Column of conversations: lists of role and content (causal-lm).", DATA)
    ] = None,
    chat_template: Annotated[
        str | None, _option("Your own Jinja file for conversations. Default: the model's.", DATA)
    ] = None,
    validation: Annotated[str | None, _option("File of held-out records to evaluate on.", DATA)] = None,
    holdout: Annotated[float | None, _option("Share of --data held out instead, like 0.1.", DATA)] = None,
    limit: Annotated[int | None, _option("At most this many records, drawn at random.", DATA)] = None,
    name: Annotated[str | None, _option("Name of the data set, as the cloud sees it. Default: random.", DATA)] = None,
    max_length: Annotated[int | None, _option("Tokens a record; longer ones are cut. Default: 128.", DATA)] = None,
    mechanism: Annotated[str | None, _option("See `privtune mechanisms`. Default: dchi.", NOISE)] = None,
    param: Annotated[list[str] | None, _option("NAME=VALUE of the mechanism; may be repeated.", NOISE)] = None,
    no_noise: Annotated[
        bool, _option("Send clean vectors: nearly every word can be recovered.", NOISE, "--no-noise")
    ] = (False),
    cut: Annotated[int | None, _option("Blocks of the model that run here. Default: 1.", NOISE)] = None,
    tail: Annotated[
        int | None,
        _option(
            "Last blocks that run and train here, on states that the cloud computes once a record: no gradient leaves. "
            "Default: 0, the cloud trains.",
            NOISE,
        ),
    ] = None,
    skip: Annotated[
        Literal["none", "frozen", "tuned"] | None,
        _option(
            "With --tail, what goes past the cloud into it: the clean vectors, which stay here (frozen), or those of a "
            "copy of the bottom's blocks that trains as well (tuned). Better answers; only with none can the model be "
            "exported. Default: frozen.",
            NOISE,
        ),
    ] = None,
    text_gradients: Annotated[
        bool,
        _option(
            "Train a language model in the cloud, without a tail: the gradients name its text, whatever the noise.",
            NOISE,
            "--text-gradients",
        ),
    ] = False,
    labels: Annotated[
        Literal["private", "shared"] | None, _option("shared: labels go to the cloud. Default: private.", NOISE)
    ] = None,
    label_epsilon: Annotated[
        float | None,
        _option(
            "Train with labels that were randomised once, so that gradients tell at most so many nats of each, like 2. "
            "Default: gradients tell them.",
            NOISE,
        ),
    ] = None,
    codec: Annotated[Literal["fp32", "bf16"] | None, _option("Of vectors on the wire. Default: bf16.", NOISE)] = None,
    epochs: Annotated[int | None, _option("Passes over the data. Default: 3.", TRAINING)] = None,
    max_steps: Annotated[int | None, _option("Stop after so many optimiser steps.", TRAINING)] = None,
    batch_size: Annotated[int | None, _option("Records in a micro-batch. Default: 16.", TRAINING)] = None,
    accumulation: Annotated[int | None, _option("Micro-batches in a step. Default: 1.", TRAINING)] = None,
    learning_rate: Annotated[float | None, _option("Default: 0.0005.", TRAINING)] = None,
    head_learning_rate: Annotated[float | None, _option("Default: that of the rest.", TRAINING)] = None,
    weight_decay: Annotated[float | None, _option("Default: 0.", TRAINING)] = None,
    schedule: Annotated[
        Literal["linear", "cosine", "constant"] | None, _option("Of the learning rate. Default: linear.", TRAINING)
    ] = None,
    warmup_ratio: Annotated[float | None, _option("Share of steps that warm up. Default: 0.06.", TRAINING)] = None,
    max_grad_norm: Annotated[float | None, _option("Clip gradients; 0: off. Default: 1.", TRAINING)] = None,
    tuning: Annotated[Literal["lora", "full"] | None, _option("Of the cloud's part. Default: lora.", TRAINING)] = None,
    lora_rank: Annotated[int | None, _option("Default: 8.", TRAINING)] = None,
    lora_alpha: Annotated[float | None, _option("Default: 16.", TRAINING)] = None,
    lora_dropout: Annotated[float | None, _option("Default: 0.05.", TRAINING)] = None,
    lora_targets: Annotated[
        list[str] | None, _option("Layers with LoRA; repeat. Default: all linear.", TRAINING)
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        _option("The cloud computes twice and needs less memory.", TRAINING, "--gradient-checkpointing"),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"] | None,
        _option("Of the cloud's compute. Default: auto, bf16 on a GPU that has it.", TRAINING),
    ] = None,
    in_flight: Annotated[int | None, _option("Micro-batches under way at once. Default: 2.", TRAINING)] = None,
    checkpoint_every: Annotated[int | None, _option("Steps between checkpoints. Default: 50.", TRAINING)] = None,
    seed: Annotated[int | None, _option("Of order, dropout and adapter; never of the noise. Default: 0.", TRAINING)] = (
        None
    ),
    suffix: Annotated[str | None, _option("Becomes part of the tuned model's name.", TRAINING)] = None,
    record_frames: Annotated[
        bool,
        _option(
            "Keep all frames for `privtune audit --transcript`: as much disk as goes over the wire.",
            NOISE,
            "--record-frames",
        ),
    ] = False,
    audit: Annotated[
        bool,
        _option(
            "Attack your own data first, here (minutes), and refuse the job if over 20% of content words or 30% of "
            "all words can be named (upper ends of 95% intervals; `audit:` in policy.yaml sets others).",
            NOISE,
            "--audit",
        ),
    ] = False,
    cloud: Cloud = None,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
    grpc_address: GrpcAddress = None,
    local_model: LocalModel = None,
    patience: Patience = 600.0,
    home: Home = None,
    threads: Threads = None,
) -> None:
    """Fine-tune a model in the cloud on text that stays here.

    Reads and checks your data, submits a job, and trains: this machine runs the first blocks of the model, adds noise,
    and sends vectors; labels, head and loss stay here. Run the same command again to resume.

    \b
    Examples:
      privtune finetune --model minilm --data reviews.csv --holdout 0.1
      privtune finetune --model minilm --data train.tsv --validation dev.tsv \\
          --text-column sentence --mechanism dchi --param noise_ratio=8
      privtune finetune --model smollm2 --task causal-lm --tail 4 --data chats.jsonl \\
          --prompt-column question --completion-column answer
      privtune finetune --model smollm2 --task causal-lm --tail 4 --data chats.jsonl --messages-column messages
      privtune finetune --job ftjob-abc123
    """
    options = dict(locals())
    from dataclasses import replace

    from privtune.device.cli.run_screen import make_screen
    from privtune.device.home.policy import AuditRule

    rule = AuditRule() if audit else None
    folder = home_folder(home)
    with make_screen(as_json=as_json) as screen:
        prepared = _prepare(options, folder, screen) if job is None else None
        with control_plane(cloud, api_key, ca_cert) as control:
            settings = run_settings(
                control,
                api_key=api_key,
                ca_cert=ca_cert,
                home=folder,
                grpc_address=grpc_address,
                patience=patience,
            )
            if prepared is not None:
                job_id, request = _submit(prepared, folder, control, screen, new=new)
            else:
                job_id = job or ""
                request = _request_of(job_id, options, folder, control, screen)
            limit_threads(threads)
            _train(job_id, request, replace(settings, record_frames=record_frames, audit=rule), screen)


def _prepare(options: dict[str, Any], folder: Path, screen: Screen) -> RunRequest:
    """Check the options, the device's policy and the data; nothing has been sent yet."""
    from privtune.device.agent.config import home_policy
    from privtune.device.cli.spec_options import PATHS, build_spec, mechanism_of
    from privtune.device.home.run_request import RunRequest
    from privtune.shared.errors import InvalidInput

    for needed in ("model", "data"):
        if not options[needed]:
            raise InvalidInput(f"--{needed} is missing. `privtune finetune --help` has examples.", param=needed)
    mechanism = mechanism_of(options["mechanism"], options["param"] or (), no_noise=options["no_noise"])
    given = {option: options.get(option) for option in PATHS if option != "num_labels"}
    check_skip(options["skip"], options["tail"], options["cut"])
    given["lora_targets"] = tuple(options["lora_targets"] or ())
    train, held_out = _sources(options)
    # The options are checked before a large file is read; the number of labels follows from it.
    guess = {"num_labels": 2} if options["labels"] == "shared" else {}
    asked = build_spec(given | guess, mechanism, name=options["name"], validated=held_out is not None)
    if asked.task == "causal-lm" and not asked.tail and not options["text_gradients"]:
        raise InvalidInput(
            "A language model that trains in the cloud needs gradients of this device that name its text, whatever the "
            "noise. Give --tail 4 to train the last four blocks here instead, or --text-gradients if you mean it.",
            param="tail",
        )
    policy = home_policy(folder)
    if policy is not None:
        policy.check(asked)
    classes = _check_data(train, held_out, options["task"] or "classification", screen)
    counted = {"num_labels": classes} if options["labels"] == "shared" else {}
    return RunRequest(
        cloud=options["cloud"] or "",
        spec=build_spec(given | counted, mechanism, name=options["name"], validated=held_out is not None),
        train=train,
        validation=held_out,
        local_model=_absolute(options["local_model"]),
    )


def _sources(options: dict[str, Any]) -> tuple[DataSource, DataSource | None]:
    from dataclasses import replace

    from privtune.device.data.records import Columns
    from privtune.device.data.source import DataSource
    from privtune.shared.errors import InvalidInput

    if options["validation"] and options["holdout"]:
        raise InvalidInput("Give --validation or --holdout, not both.", param="holdout")
    template = _absolute(options["chat_template"])
    if template is not None and not Path(template).is_file():
        raise InvalidInput(f"--chat-template {template}: no such file.", param="chat_template")
    columns = Columns(
        text=options["text_column"],
        text2=options["text2_column"],
        label=options["label_column"],
        prompt=options["prompt_column"],
        completion=options["completion_column"],
        messages=options["messages_column"],
    )
    path = _absolute(options["data"]) or ""
    train = DataSource(
        path=path,
        columns=columns,
        limit=options["limit"],
        seed=options["seed"] or 0,
        chat_template=template,
    )
    if options["holdout"]:
        return train.with_holdout(options["holdout"])
    held_out = _absolute(options["validation"])
    return train, replace(train, path=held_out, limit=None) if held_out else None


def _absolute(path: str | None) -> str | None:
    """An existing path made absolute, so that a resumed job finds it from anywhere; a hub id stays as it is."""
    if path is None or not Path(path).expanduser().exists():
        return path
    return str(Path(path).expanduser().absolute())


def _check_data(train: DataSource, held_out: DataSource | None, task: str, screen: Screen) -> int:
    """Read everything once, so that mistakes show before a job exists. Returns the number of labels."""
    from typing import cast

    from privtune.device.data.source import class_numbers, training_labels
    from privtune.shared.job_spec import Task

    records = train.load(cast(Task, task))
    screen.message(f"{records.source}: {len(records):,} records; columns: {records.columns}")
    names = training_labels(records) if task == "classification" else ()
    if held_out is not None:
        others = held_out.load(cast(Task, task))
        screen.message(f"held out: {len(others):,} records of {others.source}; columns: {others.columns}")
        if names:
            class_numbers(others, names)
    return len(names)


def _submit(
    request: RunRequest, folder: Path, control: ControlPlane, screen: Screen, *, new: bool
) -> tuple[str, RunRequest]:
    """The id of the job to work on: an unfinished one that asks for the same, or a new one."""
    from dataclasses import replace

    from privtune.device.home.run_request import RunRequest, unfinished
    from privtune.device.link.rest import job_spec
    from privtune.shared.errors import JobNotFound, VersionMismatch

    request = replace(request, cloud=control.url)
    for job_id in () if new else unfinished(folder, request):
        try:
            job = control.get_job(job_id)
        except JobNotFound:
            continue
        before = RunRequest.load(folder, job_id)
        if before is not None and job["status"] in ("queued", "running", "paused"):
            screen.message(f"resuming the unfinished job {job_id} of the same data and settings (--new starts anew)")
            _release_hold(job, control)
            return job_id, before
    job = control.create_job(request.spec)
    if job_spec(job) != request.spec:
        raise VersionMismatch(f"The cloud changed the description of job {job['id']}; nothing was sent. Upgrade it.")
    request.save(folder, job["id"])
    screen.message(f"submitted job {job['id']}")
    return job["id"], request


def _release_hold(job: dict[str, Any], control: ControlPlane) -> None:
    """A job that was paused over REST goes on now: its owner asked for it here."""
    from privtune.device.agent.agent import HELD
    from privtune.device.link.rest import phase_of

    if phase_of(job) == HELD:
        control.resume(job["id"])


def _request_of(
    job_id: str, options: dict[str, Any], folder: Path, control: ControlPlane, screen: Screen
) -> RunRequest:
    """What to run for `--job`: as it was asked for here; else the cloud's description with --data."""
    from privtune.device.home.run_request import RunRequest
    from privtune.shared.errors import InvalidInput

    job = control.get_job(job_id)
    request = RunRequest.load(folder, job_id)
    if request is None:
        if not options["data"]:
            raise InvalidInput(f"Job {job_id} was not started by `finetune` here: give its data with --data.")
        train, held_out = _sources(options)
        spec = _admitted(job, options, folder)
        _check_data(train, held_out, spec.task, screen)
        request = RunRequest(
            cloud=control.url,
            spec=spec,
            train=train,
            validation=held_out,
            local_model=_absolute(options["local_model"]),
        )
        request.save(folder, job_id)
    _release_hold(job, control)
    return request


def _admitted(job: dict[str, Any], options: dict[str, Any], folder: Path) -> JobSpec:
    """A description that came from elsewhere passes the agent's default policy, but for what is allowed here.

    Where the device has a policy of its own, that one is asked instead, by `run_job`.
    """
    from privtune.device.agent.config import home_policy
    from privtune.device.home.policy import Policy
    from privtune.device.link.rest import job_spec

    spec = job_spec(job)
    if home_policy(folder) is None:
        Policy(
            allow_no_noise=options["no_noise"],
            allow_shared_labels=options["labels"] == "shared",
            gradients="any" if options["text_gradients"] else "no-text",
        ).check(spec)
    return spec


def _train(job_id: str, request: RunRequest, settings: Any, screen: Screen) -> None:
    from dataclasses import replace

    from privtune.device.agent.agent import quiet
    from privtune.device.home.job_lock import job_lock
    from privtune.device.training.job import refuse_job, run_job
    from privtune.shared.errors import CloudUnreachable, JobPaused, PolicyRefused

    stop = threading.Event()
    settings = replace(settings, local_model=request.local_model)
    again = f"To go on: privtune finetune --job {job_id}"
    with pausing(stop, screen.message), job_lock(settings.home, job_id):
        try:
            result = run_job(job_id, request.spec, request.train, request.validation, settings, screen, stop)
        except (JobPaused, CloudUnreachable) as error:
            raise type(error)(f"{error.message.rstrip('.')}. {again}", detail=error.detail) from None
        except PolicyRefused as error:
            refused = error
            quiet(lambda: refuse_job(job_id, refused, settings), screen.message)
            raise
    screen.finished(result)
