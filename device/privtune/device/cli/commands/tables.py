"""`privtune tables`: the public tables of mechanisms, built with a progress bar, looked at, and shared as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.options import AsJson, Home, Threads, home_folder, limit_threads

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(
    no_args_is_help=True,
    help="Public tables of mechanisms (token graph, optimal shifts, clusters): build, show, share.",
)


@app.command()
@guarded
def build(
    model: Annotated[str, typer.Option(help="Your copy of the model: folder, hub id or GGUF.")],
    mechanism: Annotated[str, typer.Option(help="Mechanism whose tables to build; `privtune mechanisms` lists them.")],
    cut: Annotated[int, typer.Option(min=0, help="Blocks that run on the device.")] = 1,
    task: Annotated[str, typer.Option(help="classification or causal-lm.")] = "classification",
    param: Annotated[list[str] | None, typer.Option(help="name=value of a mechanism's parameter; repeatable.")] = None,
    top: Annotated[
        bool, typer.Option(help="Let the model's own top judge prediction consistency; use the table by its hash.")
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
    from privtune.device.cli.spec_options import mechanism_of
    from privtune.device.noise.registry import build as build_mechanism
    from privtune.device.noise.tables.table_cache import read_header
    from privtune.device.release.noising import noise_context
    from privtune.shared.errors import InvalidInput
    from privtune.shared.job_spec import MechanismSpec
    from privtune.shared.modeling.package import bottom_from_model

    if task not in ("classification", "causal-lm"):
        raise InvalidInput(f"task must be classification or causal-lm, not {task}", param="task")
    limit_threads(threads)
    folder = home_folder(home)
    spec = MechanismSpec(**mechanism_of(mechanism, param or [], no_noise=False))
    with _Bars(quiet=as_json) as progress:
        parts = bottom_from_model(model, task, cut)  # type: ignore[arg-type]
        context = noise_context(parts, cut, folder, progress=progress)
        if top:
            context.consistency = _top(model, task, cut)
        before = set(_files(folder))
        figures = build_mechanism(spec, context).prepare()
    made = [{"file": str(path), **read_header(path)} for path in _files(folder) if path not in before]
    if as_json:
        typer.echo(json.dumps({"figures": figures, "tables": made}, indent=1))
        return
    for name, value in figures.items():
        typer.echo(f"{name:>24}  {value:.4g}")
    typer.echo("\n".join(_line(row) for row in made) or "Nothing to build: this device has the tables already.")


@app.command()
@guarded
def show(
    file: Annotated[Path | None, typer.Argument(help="A table file; default: all of this device's.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List this device's tables, or check one file against its hash and show what it is.

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
    typer.echo("\n".join(_line(row) for row in rows) or "This device has no tables yet: privtune tables build")
    if file is not None:
        for name, value in rows[0]["facts"].items():
            typer.echo(f"  {name}: {value}")


@app.command()
@guarded
def add(
    file: Annotated[Path, typer.Argument(help="A table file from elsewhere, like a colleague's clusters.")],
    home: Home = None,
) -> None:
    """Check a table file and keep a copy, so that jobs can name it: --param table=sha256:HASH.

    \b
    Example:
      privtune tables add clusters.safetensors
    """
    from privtune.device.noise.tables.table_cache import adopt, read_header
    from privtune.shared.errors import InvalidInput

    if not file.is_file():
        raise InvalidInput(f"{file}: no such file; name a table that `privtune tables build` or a colleague made")
    row = read_header(adopt(file, home_folder(home) / "tables"))
    typer.echo(f"Kept. Use it with --param table=sha256:{row['sha256'][:16]}")


@app.command()
@guarded
def public(
    texts: Annotated[Path | None, typer.Option(help="One public text a line.")] = None,
    labelled: Annotated[Path | None, typer.Option(help="A class, a tab, and a public text or word a line.")] = None,
    home: Home = None,
) -> None:
    """Declare texts as public: word frequencies, prototypes, task-aware clusters and importance may use them.

    Finish jobs that are under way first: their noise may depend on what is declared.

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
    typer.echo(f"Public on this device: {len(known.texts):,} texts, {len(known.labelled):,} labelled texts or words.")


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "tables").glob("*.safetensors"))


def _line(row: dict[str, Any]) -> str:
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in row["shapes"].items())
    return f"{row['kind']:<11} {row['sha256'][:16]}  {row['bytes'] / 1e6:8.1f} MB  {Path(row['file']).name}  ({shapes})"


class _Bars:
    """A rich bar that follows `progress(what, share)`; nothing when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.description:>28}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=quiet,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Callable[[str, float], None]:
        return self._told

    def __exit__(self, *_: object) -> None:
        if self._tasks:  # else an empty line would stand before an error
            self._bar.stop()

    def _told(self, what: str, share: float) -> None:
        if what not in self._tasks:
            self._bar.start()
            self._tasks[what] = self._bar.add_task(what, total=1.0)
        self._bar.update(self._tasks[what], completed=share)


def _top(model: str, task: str, cut: int) -> Any:
    """What the model's own top makes of single vectors: (N, D) -> (N, D)."""
    import torch

    from privtune.shared.modeling.load import load_task_model
    from privtune.shared.modeling.partition import Partition

    top = Partition(load_task_model(model, task)).top(cut)  # type: ignore[arg-type]

    @torch.no_grad()
    def judge(h_ND: torch.Tensor) -> torch.Tensor:
        count = len(h_ND)
        out_ND: torch.Tensor = top(h_ND.unsqueeze(1), torch.ones(count, 1, dtype=torch.int64), torch.arange(count))
        return out_ND

    return judge
