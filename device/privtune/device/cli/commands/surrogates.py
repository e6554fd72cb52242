"""`privtune surrogates`: what would be replaced in a file, before anything is sent."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from privtune.device.cli.data_options import OwnTerms, RecordColumns
from privtune.device.cli.error_report import guarded
from privtune.device.cli.job_flags import JobOptions
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson
from privtune.device.cli.printing import print_table
from privtune.device.client.consoles import console_of
from privtune.device.client.job_options import build_spec
from privtune.shared.wording import counted

if TYPE_CHECKING:
    from privtune.device.data.records import Record, Records
    from privtune.device.surrogates.replacement import Replacement
    from privtune.device.surrogates.surrogate_map import Piece
    from privtune.device.surrogates.surrogates import Surrogates

_NAMES = 20  # that are in clear somewhere, on a terminal

app = typer.Typer(help="Look at what surrogates would replace in your text. Nothing is sent.", no_args_is_help=True)


class Reading(JobOptions):
    """How records are read, and by what rules they are replaced."""

    names: ClassVar[tuple[str, ...]] = ("task", "surrogate_rank", "surrogate_language")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A record as its owner reads it. where: its place in the file."""

    where: str
    texts: list[list[Piece]]


@app.callback()
def surrogates() -> None:
    """Look at what surrogates would replace in your text. Nothing is sent."""


@app.command()
@guarded
@grouped
def show(
    data: Annotated[str, typer.Option(help="Your data: .jsonl, .csv, .tsv or .parquet. It stays here.")],
    reading: Reading,
    columns: RecordColumns,
    own_terms: OwnTerms = None,
    limit: Annotated[int, typer.Option(min=0, help="Show at most this many records, the first of the file.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what `--surrogates identifying` would replace in a file, and by what.

    Shows what stays and what is replaced in each record, then counts for the whole file. The surrogates
    are examples: every job draws its own. What is not replaced leaves readable. Nothing is sent.

    \b
    Examples:
      privtune surrogates show --data reviews.csv
      privtune surrogates show --data chats.jsonl --task causal-lm --own-terms terms.txt --limit 5
    """
    from privtune.device.data.source import DataSource
    from privtune.device.data.source import own_terms as terms_of
    from privtune.device.surrogates.own_words import OwnWords, names_in_clear
    from privtune.device.surrogates.replacement import TRAINED, Replacement
    from privtune.device.surrogates.surrogates import SECRET_BYTES, Surrogates

    spec = build_spec({"model": "local", "surrogates": "identifying"} | reading.given, {}).surrogates
    source = DataSource(path=data, columns=columns.columns(), own_terms=own_terms)
    records = source.load(reading["task"], labelled=False)
    replacing = Surrogates(spec, bytes(SECRET_BYTES), terms_of(spec, source))
    first = [_shown(record, records, replacing) for record in records[:limit]]
    words: list[OwnWords] = []
    _, coverage = replacing.records(records, TRAINED, own_words=words)
    found = Replacement(recognisers=replacing.recognisers, fingerprint=replacing.fingerprint, coverage=coverage)
    names = Counter(name for record in names_in_clear(words) for name in record)
    if as_json:
        typer.echo(json.dumps(_facts(records, first, found) | {"names_in_clear": names}, ensure_ascii=False))
        return
    _print(records, first, found)
    if names:
        most = ", ".join(f"{name} ({count:,})" for name, count in names.most_common(_NAMES))
        typer.echo(
            f"Replaced in one place and in clear in another: {counted(len(names), 'word')} ({most}). Those that "
            "identify belong into your own terms (--own-terms)."
        )


def _shown(record: Record, records: Records, replacing: Surrogates) -> Shown:
    from privtune.device.surrogates.surrogates import texts_of

    texts, own = texts_of(record), replacing.fresh()
    own.learn(texts)
    return Shown(where=f"{records.unit} {record.number}", texts=[own.pieces(text) for text in texts])


def _facts(records: Records, first: list[Shown], found: Replacement) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "source": records.source,
        "records": len(records),
        **asdict(found),
        "shown": [{"where": one.where, "texts": [[asdict(p) for p in text] for text in one.texts]} for one in first],
    }


def _print(records: Records, first: list[Shown], found: Replacement) -> None:
    """Replaced words: red and struck out, their surrogates green; in a log [-these-]{+become+} others."""
    from rich.text import Text

    from privtune.shared.printable import printable_json

    console = console_of(sys.stdout)
    for one in first:
        console.print(Text(one.where, style="bold"))
        for text in one.texts:
            line = Text("  ")
            for piece in text:
                mine, theirs = printable_json(piece.text), printable_json(piece.surrogate)
                if theirs is None:
                    line.append(mine)
                elif console.is_terminal:
                    line.append(mine, style="red strike").append(theirs, style="green")
                else:
                    line.append(f"[-{mine}-]{{+{theirs}+}}")
            console.print(line)
    kinds = found.coverage.kinds if found.coverage is not None else {}
    by_count = sorted(kinds.items(), key=lambda one: -one[1])
    rows = [(kind, f"{count:,}", f"{count / sum(kinds.values()):.1%}") for kind, count in by_count]
    print_table(rows, ("replaced", "units", "share"), numbers=(1, 2))
    ran = f"Recognisers that ran: {', '.join(found.recognisers)}."
    typer.echo("\n".join([str(records), *found.lines(), ran]))
    if len(first) < len(records):
        typer.echo(f"Shown: the first {counted(len(first), 'record')}; counts are of all {len(records):,}.")
