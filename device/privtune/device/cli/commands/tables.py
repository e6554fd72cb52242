"""`privtune tables`: build, show and share the public tables of mechanisms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.error_report import guarded
from privtune.device.cli.job_flags import JobOptions
from privtune.device.cli.mechanism_options import Params, params_of
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson, Home, Threads, home_folder, limit_threads
from privtune.device.cli.printing import print_facts, print_result, print_table
from privtune.device.client.progress_bars import reported
from privtune.shared.wording import counted

if TYPE_CHECKING:
    from privtune.shared.job_spec import Task

app = typer.Typer(
    no_args_is_help=True,
    help="Build, show and share the public tables of mechanisms (token graph, optimal shifts, clusters).",
)


class TabledJob(JobOptions):
    """What the tables of a mechanism depend on."""

    names = ("task", "cut")


@app.command()
@guarded
@grouped
def build(
    job: TabledJob,
    model: Annotated[str, typer.Option(help="Your copy of the model: folder, hub id or GGUF file.")],
    mechanism: Annotated[str, typer.Option(help="Mechanism whose tables are built; `privtune mechanisms` lists them.")],
    param: Params = None,
    top: Annotated[
        bool,
        typer.Option(help="Judge prediction consistency by the model's own top. Jobs then name the table by its hash."),
    ] = False,
    threads: Threads = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Build the tables of a mechanism for a model now; they are kept in the home folder and reused.

    \b
    Example:
      privtune tables build --model ./minilm --cut 1 --mechanism privtune --param hops=3
    """
    limit_threads(threads)
    from privtune.device.noise.registry import build as build_mechanism
    from privtune.device.noise.tables.table_cache import read_header
    from privtune.device.release.noising import noise_context
    from privtune.shared.job_spec import MechanismSpec
    from privtune.shared.modeling.bottom_package import bottom_from_model

    task, cut, folder = job["task"], job["cut"], home_folder(home)
    spec = MechanismSpec(name=mechanism, params=params_of(param or ()))
    with reported(quiet=as_json) as progress:
        parts = bottom_from_model(model, task, cut)
        context = noise_context(parts, cut, folder, progress=progress)
        if top:
            context.consistency = _top(model, task, cut)
        before = set(_files(folder))
        figures = build_mechanism(spec, context).prepare()
    made = [{"file": str(path), **read_header(path)} for path in _files(folder) if path not in before]
    if as_json:
        typer.echo(json.dumps({"figures": figures, "tables": made}, indent=1))
        return
    print_facts({name: f"{value:.4g}" for name, value in figures.items()})
    _show(made, otherwise="Nothing to build: this device already has the tables.")


@app.command()
@guarded
def show(
    file: Annotated[Path | None, typer.Argument(help="A table file. Default: all tables of this device.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List this device's tables, or check one file against its hash and show what it holds.

    \b
    Example:
      privtune tables show ~/.privtune/tables/shift-0123456789abcdef01234567.safetensors
    """
    from privtune.device.noise.tables.table_cache import read_header, read_table

    if file is not None:
        read_table(file)
    rows = [{"file": str(path), **read_header(path)} for path in ([file] if file else _files(home_folder(home)))]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    _show(rows, otherwise="This device has no tables yet: privtune tables build")
    if file is not None:
        print_facts(rows[0]["facts"])


@app.command()
@guarded
def add(
    file: Annotated[Path, typer.Argument(help="A table file from elsewhere, like a colleague's clusters.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Check a table file and keep a copy, so that jobs can use it: --param table=sha256:HASH.

    \b
    Example:
      privtune tables add clusters.safetensors
    """
    from privtune.device.noise.tables.table_cache import adopt, read_header
    from privtune.shared.errors import InvalidInput

    if not file.is_file():
        raise InvalidInput(f"{file}: no such file; name a table that `privtune tables build` or a colleague made")
    row = read_header(adopt(file, home_folder(home) / "tables"))
    line = f"Kept. Use it with --param table=sha256:{row['sha256'][:16]}"
    print_result({"sha256": row["sha256"]}, line, as_json=as_json)


@app.command()
@guarded
def public(
    texts: Annotated[Path | None, typer.Option(help="File with one public text per line.")] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="File with a class, a tab, and a public text or word per line.")
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Declare texts as public: word frequencies, prototypes, task-aware clusters and importance may use them.

    First finish the jobs that are running: their noise may depend on what is declared.

    \b
    Example:
      privtune tables public --texts wikitext.txt --labelled lexicon.tsv
    """
    from privtune.device.noise.public_texts import PublicTexts, declare
    from privtune.shared.errors import InvalidInput

    if texts is None and labelled is None:
        raise InvalidInput("Give --texts or --labelled.", param="texts")
    folder = home_folder(home)
    declare(folder, texts=texts, labelled=labelled)
    known = PublicTexts.load(folder)
    labelled_texts = counted(len(known.labelled), "labelled text")
    line = f"Public on this device: {counted(len(known.texts), 'text')}, {labelled_texts} or words."
    print_result({"texts": len(known.texts), "labelled": len(known.labelled)}, line, as_json=as_json)


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "tables").glob("*.safetensors"))


def _show(tables: list[dict[str, Any]], *, otherwise: str) -> None:
    if not tables:
        typer.echo(otherwise)
        return
    print_table([_cells(row) for row in tables], ("kind", "sha256", "size", "file", "shapes"), numbers=(2,))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in row["shapes"].items())
    return row["kind"], row["sha256"][:16], f"{row['bytes'] / 1e6:.1f} MB", Path(row["file"]).name, shapes


def _top(model: str, task: Task, cut: int) -> Any:
    """The model's own top, applied to single vectors: (N, D) -> (N, D)."""
    import torch

    from privtune.shared.modeling.load import load_task_model
    from privtune.shared.modeling.partition import Partition

    top = Partition(load_task_model(model, task)).top(cut)

    @torch.no_grad()
    def judge(h_ND: torch.Tensor) -> torch.Tensor:
        count = len(h_ND)
        out_ND: torch.Tensor = top(h_ND.unsqueeze(1), torch.ones(count, 1, dtype=torch.int64), torch.arange(count))
        return out_ND

    return judge
