"""`privtune audit`: attack what would be sent, here, before anything is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from device.cli.failures import guarded
from device.cli.options import DATA, AsJson, Home, TextColumn, home_folder

if TYPE_CHECKING:
    from device.audit.report import Audit


@guarded
def audit(
    model: Annotated[str, typer.Option(help="Your copy of the model: folder, hub id or GGUF.", show_default=False)],
    data: Annotated[
        str, typer.Option(help="Your data: .jsonl, .csv, .tsv or .parquet. It never leaves.", show_default=False)
    ],
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
    seed: Annotated[int, typer.Option(help="Of the choice of records and the attacks; never of the noise.")] = 0,
    out: Annotated[Path, typer.Option(help="The page; the figures go beside it as .json.")] = Path("audit.html"),
    keep_attacks: Annotated[
        Path | None, typer.Option(help="Keep the built attacks in this folder.", show_default=False)
    ] = None,
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
    """
    from device.audit.page import render
    from device.audit.report import AuditRequest, run_audit, to_json, write_private
    from device.audit.suite import FULL, QUICK
    from device.cli.jobspec import mechanism_of
    from device.data.records import Columns
    from device.data.source import DataSource
    from device.noise.registry import validate
    from shared.config import MechanismSpec

    spec = MechanismSpec.model_validate(mechanism_of(mechanism, param or (), no_noise=no_noise))
    validate(spec)
    request = AuditRequest(
        model=model,
        source=DataSource(path=data, columns=Columns(text=text_column, label=attribute), limit=limit, seed=seed),
        task=task,
        labelled=task == "classification" and not unlabelled,
        cut=cut,
        mechanism=spec,
        max_length=max_length,
        public_text=public_text,
        size=FULL if full else QUICK,
        seed=seed,
    )
    with _progress(quiet=as_json) as say:
        found = run_audit(request, home_folder(home), say, keep_attacks)
    figures = out.with_suffix(".json")
    write_private(out, render(found))
    write_private(figures, to_json(found))
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        _tell(found, out, figures)


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
def _progress(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
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
