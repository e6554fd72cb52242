"""`privtune finetune`: submit a job and train it here, in one command; the same command again resumes it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from privtune.device.cli.connection import ReleasingConnection
from privtune.device.cli.data_options import OwnTerms, RecordColumns
from privtune.device.cli.error_report import guarded
from privtune.device.cli.job_flags import JobOptions
from privtune.device.cli.mechanism_options import Params, Protect, params_of
from privtune.device.cli.option_groups import OptionGroup, grouped
from privtune.device.cli.options import DATA, MACHINE, NOISE, AsJson, limit_threads, option
from privtune.device.cli.signals import pausing

if TYPE_CHECKING:
    from privtune.device.data.source import DataSource

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
        from privtune.device.client.sources import sources_of

        return sources_of(
            data,
            self.validation,
            holdout=self.holdout,
            limit=self.limit,
            seed=seed,
            columns=self.columns(),
            chat_template=self.chat_template,
            own_terms=self.own_terms,
        )


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
    from privtune.device.client.begin import Order, begin, begin_again
    from privtune.device.client.training_screen import make_screen

    order = Order(
        given=job_options.given,
        params=params_of(noise.param or ()),
        protect=noise.protect,
        name=columns.name,
        audit=noise.audit,
        spot_checks=spot_checks,
        record_frames=noise.record_frames,
        share_figures=noise.share_figures,
    )
    access = replace(connection.access, home=connection.folder)
    with make_screen(as_json=as_json) as screen:
        if job is None:
            sources = columns.sources(_named(data, job_options), job_options["seed"])
            begun = begin(order, access, sources, screen.message, new=new)
        else:
            sources_again = (lambda: columns.sources(data, job_options["seed"])) if data else None
            begun = begin_again(job, order, access, sources_again, screen.message)
        limit_threads(connection.threads)
        stop = threading.Event()
        with pausing(stop, screen.message):
            result = begun.train(screen, stop)
        screen.finished(result)


def _named(data: str | None, job: JobOptions) -> str:
    """The data. Raises InvalidInput where they or the model are not given."""
    from privtune.shared.errors import InvalidInput

    if data and "model" in job.given:
        return data
    missing, hint = ("data", "") if "model" in job.given else ("model", "`privtune models` lists what there is, and ")
    raise InvalidInput(f"--{missing} is missing; {hint}`privtune finetune --help` has examples.", param=missing)
