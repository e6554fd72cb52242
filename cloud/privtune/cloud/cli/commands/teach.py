"""`privtune-cloud teach`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from privtune.cloud.cli.output import print_result
from privtune.cloud.cli.shared_options import DEFAULT_DATA, ENV, ArtifactsUrl, AsJson, Data, DatabaseUrl
from privtune.shared.teaching_spec import ABOUT_SETTINGS, TeachingSpec, teaching_of

_FIELDS = TeachingSpec.model_fields


def _about(name: str) -> Any:
    return typer.Option(help=str(_FIELDS[name].description))


def teach(
    model: Annotated[str, typer.Option(help="NAME=REF or REF, as of `serve`: the model that teaches.")],
    corpus: Annotated[str, typer.Option(help="NAME=REF or REF, as of `serve`: the public text.")],
    task: Annotated[str, _about("task")] = _FIELDS["task"].default,
    cut: Annotated[int, _about("cut")] = _FIELDS["cut"].default,
    tail: Annotated[int, _about("tail")] = _FIELDS["tail"].default,
    text_column: Annotated[str | None, _about("text_column")] = None,
    label_column: Annotated[str | None, _about("label_column")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help=ABOUT_SETTINGS)] = None,
    owner: Annotated[str, typer.Option(help="Whose jobs may use the blocks.")] = "default",
    data: Data = DEFAULT_DATA,
    database_url: DatabaseUrl = None,
    artifacts: ArtifactsUrl = None,
    max_teacher_mib: Annotated[
        int, typer.Option(envvar=ENV + "MAX_TEACHER_MIB", min=1, help="Disk space for the states of the text.")
    ] = 32768,
    threads: Annotated[int | None, typer.Option(envvar=ENV + "THREADS", min=1, help="CPU threads.")] = None,
    as_json: AsJson = False,
) -> None:
    """Teach the blocks of a device on public text, here and now; the same command again continues or finds the result.

    The whole model is distilled into the first blocks and the last ones. Works while the cloud serves. Give the model
    the name that `serve` gives it.

    Example: `privtune-cloud teach --model minilm=/models/minilm --corpus reviews=reviews.csv --label-column label
    --set max_pieces=20000 --owner alice`
    """
    from privtune.cloud.catalog import Catalog
    from privtune.cloud.corpora import Corpora
    from privtune.cloud.db.store import open_store
    from privtune.cloud.jobs.teachings import Teachings
    from privtune.cloud.storage import open_artifacts

    catalog, corpora = Catalog([model]), Corpora([corpus])
    fields = {"model": catalog.names[0], "corpus": corpora.names[0], "task": task, "cut": cut, "tail": tail}
    spec = teaching_of(fields | {"text_column": text_column, "label_column": label_column}, settings or [])
    with open_store(data, database_url, new=False) as store:
        teachings = Teachings(store, catalog, corpora)
        teachings.check(spec)
        from privtune.cloud.compute.teaching.classroom import Classroom  # loads torch

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        classroom = Classroom(open_artifacts(data, artifacts), catalog, corpora, max_bytes=max_teacher_mib << 20)
        result = classroom.teach(spec, partial(_show, err=as_json), lambda: False)
        taught = teachings.record(owner, spec, result.name, result.card, result.sources)
    before, after = (result.card[when]["states"] for when in ("untaught", "taught"))
    line = (
        f"distance from the model on text held out: {before:.3f} untaught, {after:.3f} taught\n"
        f"{taught.id} of {owner}: privtune finetune ... --taught {taught.id}"
    )
    print_result({"id": taught.id, "owner": owner, "untaught": before, "taught": after}, line, as_json=as_json)


def _show(stage: str, step: int, steps: int, loss: float, *, err: bool) -> None:
    """A line for every twentieth of a stage."""
    if step == steps or step % max(1, steps // 20) == 0:
        after = f", loss {loss:.4f}" if loss else ""
        typer.echo(f"{stage}: {step:,} of {steps:,}{after}", err=err)
