"""`privtune audit`: attack what would be sent, here, before anything is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.data_options import OwnTerms, TextColumn
from privtune.device.cli.error_report import guarded
from privtune.device.cli.mechanism_options import Params, Protect, params_of
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import DATA, NOISE, AsJson, Home, Threads, home_folder, limit_threads, option
from privtune.device.cli.planned_job import Gain, PlannedJob
from privtune.device.cli.printing import print_table
from privtune.device.client.job_options import flag_of
from privtune.device.client.progress_bars import Say, reported

if TYPE_CHECKING:
    from privtune.device.audit.report.document import Audit
    from privtune.device.audit.sizes import Size
    from privtune.shared.job_spec import JobSpec

Run = Callable[[Path, Say, Path | None], "Audit"]
# Options, besides those of PlannedJob, that contradict --transcript: the job has its own.
_OF_THE_JOB = ("attribute", "own_terms", "unlabelled", "protect", "param", "frontier", "gain")


@guarded
@grouped
def audit(
    job: PlannedJob,
    model: Annotated[
        str | None, typer.Option(help="Your copy of the model: folder, hub id or GGUF file.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Your data: .jsonl, .csv, .tsv or .parquet. It never leaves this machine.", show_default=False
        ),
    ] = None,
    transcript: Annotated[
        str | None,
        typer.Option(
            metavar="JOB",
            help="Attack what this job really sent, from the frames that `finetune --record-frames` kept. Model, data, "
            "cut and noise are the job's. Also give --model if the job ran on the cloud's copy of the model, and "
            "--data or --config if an agent ran it.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="With --transcript: agent.yaml of the agent that ran the job.", show_default=False),
    ] = None,
    text_column: TextColumn = None,
    attribute: Annotated[
        str | None, option("Column of a private attribute to infer. Default: the label.", DATA)
    ] = None,
    unlabelled: Annotated[bool, option("The data have no labels: attack the text only.", DATA, "--unlabelled")] = False,
    own_terms: OwnTerms = None,
    limit: Annotated[int | None, option("Use at most this many records, drawn at random.", DATA)] = None,
    public_text: Annotated[
        Path | None,
        option(
            "Public text that the attacker has, one text per line. Default: what `privtune tables public` declared. A "
            "part of your own data always stands in for similar text.",
            DATA,
        ),
    ] = None,
    protect: Protect = None,
    param: Params = None,
    frontier: Annotated[
        bool,
        option(
            "Also measure weaker and stronger settings of the mechanism, for the picture on the page (codebook attacks "
            "only).",
            NOISE,
            "--frontier",
        ),
    ] = False,
    gain: Gain = False,
    full: Annotated[
        bool, typer.Option("--full", help="Three seeds and every attack at full length: hours, not minutes.")
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Seed of the choice of records and of the attacks. It never seeds the noise.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="The page to write; the figures are written next to it as .json.")] = Path(
        "audit.html"
    ),
    keep_attacks: Annotated[
        Path | None, typer.Option(help="Keep the trained attacks in this folder.", show_default=False)
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Show what the cloud could recover from your text, before you send it.

    Attacks a sample of your records as they would be sent, with the attacks of docs/attacks.md, and writes a page with
    a verdict. Everything happens on this machine. The page contains your text; only you can read the file. With --tail
    no gradient leaves, so none is attacked.

    \b
    Examples:
      privtune audit --model ./minilm --data reviews.csv --protect words
      privtune audit --model ./minilm --data reviews.csv --mechanism dchi --param noise_ratio=6
      privtune audit --model ./minilm --data reviews.csv --mechanism shared --public-text news.txt --full
      privtune audit --model ./minilm --data posts.jsonl --attribute age
      privtune audit --transcript ftjob-abc123 --model ./minilm
    """
    options = dict(locals())
    from privtune.device.audit.report.document import to_json, write_private
    from privtune.device.audit.report.page import render
    from privtune.device.protections.measured import cloud_gain, gain_sentence

    limit_threads(threads)
    spec, run = _simulated(job, options) if transcript is None else _recorded(transcript, job, options)
    with reported(quiet=as_json) as say:
        found = run(home_folder(home), say, keep_attacks)
    measured = found.document.get("gain")
    found.document["cloud_gain"] = cloud_gain(spec) if measured is None else gain_sentence(measured, "your records")
    figures = out.with_suffix(".json")
    write_private(out, render(found))
    write_private(figures, to_json(found))
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        _show(found, out, figures)


def _simulated(job: PlannedJob, options: dict[str, Any]) -> tuple[JobSpec, Run]:
    """The audit of what would be sent."""
    from privtune.device.audit.owner import AuditRequest, run_audit
    from privtune.device.data.records import Columns
    from privtune.device.data.source import DataSource
    from privtune.device.protections.protection import DEFAULT
    from privtune.shared.errors import InvalidInput

    for needed in ("model", "data"):
        if not options[needed]:
            raise InvalidInput(f"--{needed} is missing. `privtune audit --help` has examples.", param=needed)
    if options["config"]:
        raise InvalidInput("--config goes with --transcript; name the data with --data.", param="config")
    spec = job.spec(params_of(options["param"] or ()), options["protect"] or DEFAULT, options["model"])
    columns = Columns(text=options["text_column"], label=options["attribute"])
    source = DataSource(
        path=options["data"],
        columns=columns,
        limit=options["limit"],
        seed=options["seed"],
        own_terms=options["own_terms"],
    )
    request = AuditRequest(
        model=options["model"],
        source=source,
        task=spec.task,
        labelled=spec.task == "classification" and not options["unlabelled"],
        cut=spec.cut,
        tail=spec.tail,
        skip=spec.skip,
        mechanism=spec.mechanism,
        surrogates=spec.surrogates,
        max_length=spec.train.max_length,
        public_text=options["public_text"],
        size=_size(options),
        seed=options["seed"],
        frontier=options["frontier"],
        gain=options["gain"],
        epochs=spec.train.epochs,
    )
    return spec, lambda home, say, keep: run_audit(request, home, say, keep)


def _recorded(job_id: str, job: PlannedJob, options: dict[str, Any]) -> tuple[JobSpec, Run]:
    """The audit of what a job sent."""
    from privtune.device.agent.agent_config import load_agent_config
    from privtune.device.audit.jobs.transcript_audit import JobAudit, audit_job
    from privtune.device.data.records import Columns
    from privtune.device.data.source import DataSource
    from privtune.device.home.job_folder import JobFolder
    from privtune.device.home.paths import check_job_id
    from privtune.shared.errors import InvalidInput

    for name in (*job.given, *(name for name in _OF_THE_JOB if options[name])):
        raise InvalidInput(f"{flag_of(name)} and --transcript contradict each other: the job has its own.", param=name)
    spec = JobFolder(home_folder(options["home"]), check_job_id(job_id)).load().spec
    sources: tuple[DataSource, DataSource | None] | None = None
    if options["data"]:
        source = DataSource(path=options["data"], columns=Columns(text=options["text_column"]), limit=options["limit"])
        sources = (source, None)
    elif options["config"]:
        sources = load_agent_config(options["config"]).sources(spec)
    request = JobAudit(
        job_id=job_id,
        model=options["model"],
        sources=sources,
        public_text=options["public_text"],
        size=_size(options),
        seed=options["seed"],
    )
    return spec, lambda home, say, keep: audit_job(request, home, say, keep)


def _size(options: dict[str, Any]) -> Size:
    from privtune.device.audit.sizes import FULL, QUICK

    return FULL if options["full"] else QUICK


def _show(found: Audit, page: Path, figures: Path) -> None:
    verdict = found.document["verdict"]
    typer.echo(f"{verdict['headline']}.\n{verdict['text']}\n{found.document['cloud_gain']}\n")
    if found.document["surrogates"] is not None:
        typer.echo(f"{found.document['statement']['text']}\n")
    headings = ("attack", "variant", "knowledge", "of", "right", "95% interval", "floor")
    print_table([_attack_row(row) for row in found.document["attacks"]], headings, numbers=(4, 6))
    typer.echo(f"\nPage (contains your text, stays here): {page}\nFigures: {figures}")


def _attack_row(row: dict[str, Any]) -> tuple[str, ...]:
    main = row["figures"].get("top1") or row["figures"]["accuracy"]
    what = "words" if row["kind"] == "inversion" else "attribute"
    right, low, high, floor = (100 * main[name] for name in ("value", "low", "high", "floor"))
    return (
        row["name"],
        row["variant"],
        row["knowledge"],
        what,
        f"{right:.1f}%",
        f"{low:.1f} to {high:.1f}",
        f"{floor:.1f}%",
    )
