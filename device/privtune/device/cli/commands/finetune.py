"""`privtune finetune`: submit a job and train it here, in one command; the same command again resumes it."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.connection import ReleasingConnection
from privtune.device.cli.data_options import OwnTerms, RecordColumns
from privtune.device.cli.error_report import guarded
from privtune.device.cli.job_options import JobOptions, build_spec
from privtune.device.cli.mechanism_options import Params, Protect, params_of
from privtune.device.cli.option_groups import OptionGroup, grouped
from privtune.device.cli.options import DATA, MACHINE, NOISE, AsJson, limit_threads, option
from privtune.device.cli.signals import pausing

if TYPE_CHECKING:
    from privtune.device.data.source import DataSource
    from privtune.device.home.run_request import RunRequest
    from privtune.shared.job_spec import JobSpec

EPILOG = "Exit codes: docs/exit-codes.md. Ctrl-C pauses with exit code 130; the same command again resumes."


@dataclass(frozen=True, kw_only=True)
class TrainingData(RecordColumns):
    """The records to train on and to evaluate on."""

    chat_template: Annotated[
        str | None, option("Your own chat template for conversations, a Jinja file. Default: the model's.", DATA)
    ] = None
    validation: Annotated[str | None, option("File of held-out records to evaluate on.", DATA)] = None
    holdout: Annotated[float | None, option("Fraction of --data to hold out instead, like 0.1.", DATA)] = None
    limit: Annotated[int | None, option("Use at most this many records, drawn at random.", DATA)] = None
    own_terms: OwnTerms = None
    name: Annotated[str | None, option("Name of the data set that the cloud sees. Default: a random one.", DATA)] = None

    def sources(self, data: str, seed: int) -> tuple[DataSource, DataSource | None]:
        """Training and held-out records, not read yet.

        data: the file or hub name of --data. seed: of the held-out part.

        Raises InvalidInput.
        """
        from dataclasses import replace

        from privtune.device.data.source import DataSource
        from privtune.shared.errors import InvalidInput

        if self.validation and self.holdout:
            raise InvalidInput("Give --validation or --holdout, not both.", param="holdout")
        template = _absolute(self.chat_template)
        if template is not None and not Path(template).is_file():
            raise InvalidInput(f"--chat-template {template}: no such file.", param="chat_template")
        train = DataSource(
            path=_absolute(data) or "",
            columns=self.columns(),
            limit=self.limit,
            seed=seed,
            chat_template=template,
            own_terms=_absolute(self.own_terms),
        )
        if self.holdout:
            return train.with_holdout(self.holdout)
        validation = _absolute(self.validation)
        return train, replace(train, path=validation, limit=None) if validation else None


@dataclass(frozen=True, kw_only=True)
class NoiseOptions(OptionGroup):
    """What may leave this machine, beyond the job's own fields."""

    protect: Protect = None
    param: Params = None
    record_frames: Annotated[
        bool,
        option(
            "Keep everything that is sent and received, for `privtune audit --transcript`. Needs as much disk space "
            "as the job's traffic.",
            NOISE,
            "--record-frames",
        ),
    ] = False
    share_figures: Annotated[
        bool,
        option(
            "Let the cloud's dashboard show the loss, the figures on held-out records, the privacy statement and the "
            "audit's verdict. They tell the cloud something of labels and texts, without a bound. Default: they stay "
            "here.",
            NOISE,
            "--share-figures",
        ),
    ] = False
    audit: Annotated[
        bool,
        option(
            "First attack your own data on this machine (minutes), and refuse the job if more than 20% of content "
            "words or 30% of all words can be named (upper ends of 95% intervals); where only surrogates protect, "
            "if more than 2% of the replaced words can, beyond chance. `audit:` in policy.yaml sets other limits.",
            NOISE,
            "--audit",
        ),
    ] = False


@guarded
@grouped
def finetune(
    job_options: JobOptions,
    columns: TrainingData,
    noise: NoiseOptions,
    connection: ReleasingConnection,
    data: Annotated[
        str | None,
        typer.Option(
            help="Your data: .jsonl, .csv, .tsv, .parquet, or a hub data set OWNER/NAME. It never leaves this machine.",
            show_default=False,
        ),
    ] = None,
    job: Annotated[str | None, typer.Option(help="Resume this job. Needs no other option.", show_default=False)] = None,
    spot_checks: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Compute this share of the cloud's work here as well, from your own copy (--local-model), and end the "
            "job if the results differ: docs/spot-checks.md.",
            rich_help_panel=MACHINE,
            show_default=False,
        ),
    ] = 0.0,
    new: Annotated[bool, typer.Option("--new", help="Start a new job even if the same one is unfinished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model in the cloud on text that stays here.

    Reads and checks your data, says what the cloud will be able to read, submits a job, and trains. This machine runs
    the first blocks of the model and sends their output, by default of a text whose names, places, numbers and rare
    words are replaced by others of their kind. Labels and loss stay here. To resume, run the same command again.

    \b
    Examples:
      privtune finetune --model minilm --data reviews.csv --holdout 0.1
      privtune finetune --model minilm --data train.tsv --validation dev.tsv --protect words --param codes=16
      privtune finetune --model smollm2 --task causal-lm --data chats.jsonl \\
          --prompt-column question --completion-column answer
      privtune finetune --model smollm2 --task causal-lm --data chats.jsonl --messages-column messages
      privtune finetune --job ftjob-abc123
    """
    from dataclasses import replace

    from privtune.device.cli.training_screen import make_screen
    from privtune.device.home.policy import AuditRule
    from privtune.device.protections.announce import announcement
    from privtune.device.protections.protection import DEFAULT, protection
    from privtune.device.protections.readable import what_the_cloud_reads
    from privtune.device.training.submit import Consent, check_request, resume, submit, train

    protect = protection(noise.protect or DEFAULT).name
    consent = Consent(
        protection=protect,
        shared_labels=job_options["labels"] == "shared",
        another_noise=connection.another_noise or protect == "none",
    )
    rule = AuditRule() if noise.audit else None
    home, stop = connection.folder, threading.Event()
    with make_screen(as_json=as_json) as screen:
        checked = None
        if job is None:
            blocks = _blocks(job_options, connection, protect)
            request = _request(data, job_options, columns, noise, connection, protect, blocks)
            request = replace(request, spot_checks=spot_checks, share_figures=noise.share_figures)
            checked = check_request(request, home, consent, screen.message, rule)
        with connection.control() as control:
            settings = connection.settings(control)
            if checked is not None:
                control.check_model(checked.spec.model)  # and the key, before anything is said of a job
                for line in announcement(checked.spec, protect, blocks):
                    screen.message(line)
                job_id, request = submit(checked, home, control, screen.message, new=new)
            else:
                job_id = job or ""
                request = resume(
                    job_id,
                    home,
                    control,
                    (lambda: columns.sources(data, job_options["seed"])) if data else None,
                    _absolute(connection.local_model),
                    consent,
                    screen.message,
                )
                for line in what_the_cloud_reads(request.spec):
                    screen.message(line)
        limit_threads(connection.threads)
        settings = replace(settings, record_frames=noise.record_frames, audit=rule)
        with pausing(stop, screen.message):
            result = train(job_id, request, settings, screen, stop)
        screen.finished(result)


def _blocks(job: JobOptions, connection: ReleasingConnection, protect: str) -> int | None:
    """How many blocks the model has, where the protection depends on it: the cloud knows."""
    from privtune.device.protections.protection import protection

    if not protection(protect).half or "model" not in job.given or "cut" in job.given:
        return None
    with connection.control() as control:
        return control.blocks(job["model"])


def _request(
    data: str | None,
    job: JobOptions,
    columns: TrainingData,
    noise: NoiseOptions,
    connection: ReleasingConnection,
    protect: str,
    blocks: int | None,
) -> RunRequest:
    """What the options ask for; the number of labels is a guess until the data are read."""
    from privtune.device.home.run_request import RunRequest
    from privtune.device.link.teaching_calls import AUTO, newest_for
    from privtune.shared.errors import InvalidInput
    from privtune.shared.job_spec import TEACHING_ID

    if not data or "model" not in job.given:
        missing, hint = (
            ("data", "") if "model" in job.given else ("model", "`privtune models` lists what there is, and ")
        )
        raise InvalidInput(f"--{missing} is missing; {hint}`privtune finetune --help` has examples.", param=missing)
    train, validation = columns.sources(data, job["seed"])

    def described(given: dict[str, Any]) -> JobSpec:
        return build_spec(
            given,
            params_of(noise.param or ()),
            protect=protect,
            blocks=blocks,
            name=columns.name,
            validated=validation is not None,
            num_labels=2 if job["labels"] == "shared" else None,
        )

    given = dict(job.given)
    taught = given.get("taught")
    if taught is not None and not re.fullmatch(TEACHING_ID, taught):
        del given["taught"]
        with connection.control() as control:
            given["taught"] = newest_for(control, described(given), None if taught == AUTO else taught)
    spec = described(given)
    local_model = _absolute(connection.local_model)
    return RunRequest(cloud="", spec=spec, train=train, validation=validation, local_model=local_model)


def _absolute(path: str | None) -> str | None:
    """An existing path made absolute, so that a resumed job finds it from anywhere; a hub id stays as it is."""
    if path is None or not Path(path).expanduser().exists():
        return path
    return str(Path(path).expanduser().absolute())
