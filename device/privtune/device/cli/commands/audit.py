"""`privtune audit`: attack what would be sent, here, before anything is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.options import DATA, AsJson, Home, TextColumn, Threads, check_skip, home_folder, limit_threads

if TYPE_CHECKING:
    from privtune.device.audit.report.document import Audit
    from privtune.device.audit.sizes import Size

Say = Callable[[str, float], None]
Run = Callable[[Path, Say, Path | None], "Audit"]
# What a job that was sent decides by itself.
_OF_THE_JOB = (
    "task",
    "attribute",
    "unlabelled",
    "max_length",
    "cut",
    "tail",
    "skip",
    "mechanism",
    "param",
    "no_noise",
    "frontier",
)


@guarded
def audit(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Your copy of the model: folder, hub id or GGUF.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Your data: .jsonl, .csv, .tsv or .parquet. It never leaves.", show_default=False),
    ] = None,
    transcript: Annotated[
        str | None,
        typer.Option(
            metavar="JOB",
            help="Attack what this job really sent, from frames kept by `finetune --record-frames`. Model, data, cut "
            "and noise are the job's; --model if it ran on the cloud's copy, --data or --config if an agent ran it.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="With --transcript: agent.yaml of the agent that ran it.", show_default=False),
    ] = None,
    task: Annotated[Literal["classification", "causal-lm"], typer.Option(help="What it will train.")] = (
        "classification"
    ),
    text_column: TextColumn = None,
    attribute: Annotated[
        str | None,
        typer.Option(
            help="Column of a private attribute to look for. Default: the label.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="The data has no label: attack the text only.", rich_help_panel=DATA)
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="At most this many records, drawn at random.", rich_help_panel=DATA)
    ] = None,
    public_text: Annotated[
        Path | None,
        typer.Option(
            help="Text that anyone may know, one a line; the attacker has it. Default: what `privtune tables public` "
            "declared, and in any case a part of your own data in place of similar text.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    max_length: Annotated[int, typer.Option(min=4, help="Tokens a record; longer ones are cut.")] = 128,
    cut: Annotated[int, typer.Option(min=0, help="Blocks of the model that run here.")] = 1,
    tail: Annotated[
        int, typer.Option(min=0, help="Blocks that will train here (`finetune --tail`): then no gradient is attacked.")
    ] = 0,
    skip: Annotated[
        Literal["none", "frozen", "tuned"] | None,
        typer.Option(
            help="With --tail, as in `finetune --skip`: counts for the estimate of use. Default: frozen.",
            show_default=False,
        ),
    ] = None,
    mechanism: Annotated[
        str | None, typer.Option(help="See `privtune mechanisms`. Default: dchi.", show_default=False)
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the mechanism; may be repeated.", show_default=False)
    ] = None,
    no_noise: Annotated[bool, typer.Option("--no-noise", help="Audit clean vectors.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Three seeds, every attack at length: hours, not minutes.")
    ] = False,
    frontier: Annotated[
        bool,
        typer.Option(
            "--frontier",
            help="Also measure weaker and stronger settings of the mechanism, for the page's picture (codebook attacks "
            "only).",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the choice of records and the attacks; never of the noise.")] = 0,
    out: Annotated[Path, typer.Option(help="The page; the figures go beside it as .json.")] = Path("audit.html"),
    keep_attacks: Annotated[
        Path | None, typer.Option(help="Keep the built attacks in this folder.", show_default=False)
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """See what the cloud would recover from your text, before you send it.

    Attacks sentences of yours as they would be sent, with the attacks of docs/attacks.md, and writes a page with a
    verdict. Everything happens on this machine; the page holds your text and is readable by you only.

    \b
    Examples:
      privtune audit --model ./minilm --data reviews.csv --param noise_ratio=6
      privtune audit --model ./minilm --data reviews.csv --mechanism shared --public-text news.txt --full
      privtune audit --model ./minilm --data posts.jsonl --attribute age
      privtune audit --transcript ftjob-abc123 --model ./minilm
    """
    options = dict(locals())
    from privtune.device.audit.report.document import to_json, write_private
    from privtune.device.audit.report.page import render

    limit_threads(threads)
    run = _simulated(options) if transcript is None else _recorded(transcript, options)
    with _progress(quiet=as_json) as say:
        found = run(home_folder(home), say, keep_attacks)
    figures = out.with_suffix(".json")
    write_private(out, render(found))
    write_private(figures, to_json(found))
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        _tell(found, out, figures)


def _simulated(options: dict[str, Any]) -> Run:
    """The audit of what would be sent."""
    from privtune.device.audit.owner import AuditRequest, run_audit
    from privtune.device.cli.spec_options import mechanism_of
    from privtune.device.data.records import Columns
    from privtune.device.data.source import DataSource
    from privtune.device.noise.registry import validate
    from privtune.shared.errors import InvalidInput
    from privtune.shared.job_spec import MechanismSpec

    for needed in ("model", "data"):
        if not options[needed]:
            raise InvalidInput(f"--{needed} is missing. `privtune audit --help` has examples.", param=needed)
    if options["config"]:
        raise InvalidInput("--config goes with --transcript; name the data with --data.", param="config")
    check_skip(options["skip"], options["tail"], options["cut"])
    chosen = mechanism_of(options["mechanism"], options["param"] or (), no_noise=options["no_noise"])
    spec = MechanismSpec.model_validate(chosen)
    validate(spec)
    columns = Columns(text=options["text_column"], label=options["attribute"])
    source = DataSource(path=options["data"], columns=columns, limit=options["limit"], seed=options["seed"])
    request = AuditRequest(
        model=options["model"],
        source=source,
        task=options["task"],
        labelled=options["task"] == "classification" and not options["unlabelled"],
        cut=options["cut"],
        tail=options["tail"],
        skip=options["skip"] or "frozen",
        mechanism=spec,
        max_length=options["max_length"],
        public_text=options["public_text"],
        size=_size(options),
        seed=options["seed"],
        frontier=options["frontier"],
    )
    return lambda home, say, keep: run_audit(request, home, say, keep)


def _recorded(job_id: str, options: dict[str, Any]) -> Run:
    """The audit of what a job sent."""
    from privtune.device.agent.config import load_agent_config
    from privtune.device.audit.jobs.transcript_audit import JobAudit, audit_job
    from privtune.device.data.records import Columns
    from privtune.device.data.source import DataSource
    from privtune.device.home.job_folder import JobFolder
    from privtune.device.home.paths import check_job_id
    from privtune.shared.errors import InvalidInput

    for name in _OF_THE_JOB:
        given = options["context"].get_parameter_source(name)
        if given is not None and given.name != "DEFAULT":
            option = name.replace("_", "-")
            raise InvalidInput(f"--{option} and --transcript contradict each other: the job has its own.", param=name)
    sources: tuple[DataSource, DataSource | None] | None = None
    if options["data"]:
        source = DataSource(path=options["data"], columns=Columns(text=options["text_column"]), limit=options["limit"])
        sources = (source, None)
    elif options["config"]:
        config = load_agent_config(options["config"])
        sources = config.sources(JobFolder(home_folder(options["home"]), check_job_id(job_id)).load().spec)
    request = JobAudit(
        job_id=job_id,
        model=options["model"],
        sources=sources,
        public_text=options["public_text"],
        size=_size(options),
        seed=options["seed"],
    )
    return lambda home, say, keep: audit_job(request, home, say, keep)


def _size(options: dict[str, Any]) -> Size:
    from privtune.device.audit.sizes import FULL, QUICK

    return FULL if options["full"] else QUICK


def _tell(found: Audit, page: Path, figures: Path) -> None:
    verdict = found.document["verdict"]
    typer.echo(f"{verdict['headline']}.\n{verdict['text']}\n")
    for row in found.document["attacks"]:
        main = row["figures"].get("top1") or row["figures"]["accuracy"]
        what = "words" if row["kind"] == "inversion" else "attribute"
        typer.echo(
            f"  {row['name']:7}{row['variant']:21}{row['knowledge']:10}{what:10}{100 * main['value']:5.1f}%  "
            f"[{100 * main['low']:.1f}, {100 * main['high']:.1f}]  floor {100 * main['floor']:.1f}%"
        )
    typer.echo(f"\nPage (holds your text, stays here): {page}\nFigures: {figures}")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Say]:
    """Bars on a terminal, a line for each finished step in a log, nothing with --json."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    named = TextColumn("{task.description}", markup=False)
    bars = Progress(named, BarColumn(bar_width=24), TimeElapsedColumn(), console=console, disable=quiet)
    known: dict[str, TaskID] = {}

    def say(what: str, share: float) -> None:
        if console.is_terminal:
            known[what] = known[what] if what in known else bars.add_task(what, total=1.0)
            bars.update(known[what], completed=share)
        elif share >= 1 and not quiet:
            console.print(what)

    if not console.is_terminal:
        yield say
        return
    with bars:
        yield say
