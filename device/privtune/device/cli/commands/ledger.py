"""`privtune ledger`: what this device has released, at what privacy cost, and what is left of its budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.error_report import guarded
from privtune.device.cli.options import AsJson, Home, home_folder
from privtune.device.cli.printing import print_result, print_table
from privtune.shared.wording import counted

if TYPE_CHECKING:
    from privtune.device.account.ledger import Spent
    from privtune.device.account.own_losses import OwnLosses
    from privtune.device.home.policy import Budget

NATS = (
    "Nats measure privacy loss: n of them change the odds between two records e^n-fold at most, for whoever sees what "
    "left. Fewer are better; docs/ledger.md says more."
)
QUANTILES = {"least": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "most": 1.0}
HEADINGS = ("time", "job", "data set", "mechanism", "releases", "vectors", "MB", "nats per record")

app = typer.Typer(invoke_without_command=True)


@app.callback(invoke_without_command=True)
@guarded
def show(
    context: typer.Context,
    data_set: Annotated[str | None, typer.Option(help="Show only this data set, by its name or file.")] = None,
    job: Annotated[str | None, typer.Option(help="Show only this job.")] = None,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Show what each job newly released, and what each data set has spent over all jobs.

    Sending a release again sends the same bytes and costs nothing. `privtune ledger verify` checks the entries.

    \b
    Example:
      privtune ledger --data-set reviews.csv
    """
    if context.invoked_subcommand is not None:
        return
    from privtune.device.account.ledger import outcomes, spent
    from privtune.device.account.own_losses import stored_losses, together
    from privtune.device.home.policy import budget_of
    from privtune.device.home.policy_file import home_policy

    folder = home_folder(home)
    entries, head = _read(folder)
    policy = home_policy(folder)
    budget = budget_of(policy, another_noise=False)
    # Whichever jobs are shown, a data set's cost is counted over all of them.
    rows = [row for row in outcomes(entries) if _wanted(row, data_set, job)]
    refused = [entry for entry in entries if entry["kind"] == "refused" and _wanted(entry, data_set, job)]
    taught = [entry for entry in entries if entry["kind"] == "taught" and job in (None, entry["job"])]
    costs = {source: spent(entries, source) for source in dict.fromkeys(row["source"] for row in [*rows, *refused])}
    if as_json:
        from dataclasses import asdict

        totals = {source: asdict(cost) for source, cost in costs.items()}
        facts = {"head": head, "budget": budget.model_dump(), "spent": totals, "released": rows, "refused": refused}
        facts["taught"] = taught
        typer.echo(json.dumps(facts, indent=1))
        return
    print_table([_cells(row) for row in rows], HEADINGS, numbers=range(4, len(HEADINGS)))
    for entry in refused:
        typer.echo(f"refused: job {entry['job']}: {entry['reason']}")
    for entry in taught:
        text = entry["corpus"].get("name", "unknown text")
        typer.echo(f"taught: job {entry['job']} began with {entry['teaching']} on {text}; nothing was released for it")
    for source, cost in costs.items():
        own = stored_losses(folder, source)
        typer.echo(f"{source}: {_cost(cost, budget)}{_really(_own_facts(together(own), cost, 0)) if own else ''}")
    if costs:
        typer.echo(NATS)
    typer.echo(f"{counted(len(entries), 'entry')}; last hash {head}")


@app.command()
@guarded
def verify(
    head: Annotated[
        str | None, typer.Option(help="A last hash that you noted earlier: it must still be in the chain.")
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Check the chain of entries: none was changed, removed or inserted. Exit code 14 if it is broken.

    \b
    Example:
      privtune ledger verify --head 41d2...
    """
    from privtune.device.account.ledger import Ledger
    from privtune.shared.errors import ArtifactCorrupt

    entries, last = _read(home_folder(home))
    if head is not None:
        with Ledger(home_folder(home)) as ledger:
            known = ledger.holds(head)
        if not known:
            raise ArtifactCorrupt("The noted hash is not in this ledger: its end was cut off, or it was replaced.")
    print_result(
        {"entries": len(entries), "head": last, "intact": True},
        f"{counted(len(entries), 'entry')}, the chain is intact; last hash {last} (note it, to detect a cut-off "
        "end later)",
        as_json=as_json,
    )


@app.command()
@guarded
def records(
    data_set: Annotated[str | None, typer.Option(help="Show only this data set, by its name or file.")] = None,
    job: Annotated[str | None, typer.Option(help="Show only what this job released.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="Name this many of the records that lost most.")] = 3,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Show what each record really lost: the spread over the records, and where the worst are in their file.

    The worst case that `privtune ledger` counts is that of a record as long and as far from all others as any may be.
    These figures are the records' own, computed from the records: keep them to yourself.

    \b
    Example:
      privtune ledger records --data-set reviews.csv
    """
    from privtune.device.account.ledger import outcomes, spent
    from privtune.device.account.own_losses import stored_losses, together

    folder = home_folder(home)
    entries, _ = _read(folder)
    rows = [row for row in outcomes(entries) if _wanted(row, data_set, job)]
    shown = []
    for source in dict.fromkeys(row["source"] for row in rows):
        losses = stored_losses(folder, source, job)
        if losses:
            counted = [entry for entry in entries if job is None or entry.get("job", job) == job]
            shown.append((together(losses), spent(counted, source)))
    if as_json:
        typer.echo(json.dumps([_own_facts(own, cost, worst) for own, cost in shown], indent=1))
        return
    if not shown:
        typer.echo("no finished run has released records of a file")
    for own, cost in shown:
        for line in _own_lines(_own_facts(own, cost, worst)):
            typer.echo(line)
    if shown:
        typer.echo("These figures depend on the private records: whoever sees them learns something of each.")


def _own_facts(own: OwnLosses, cost: Spent, worst: int) -> dict[str, Any]:
    """JSON-ready. Without a bound the records are named that lost most by slopes, or released most vectors."""
    import numpy as np

    bounded = not np.isnan(own.nats_N).any()
    by = own.nats_N if bounded else own.slopes_N if own.slopes_N.any() else own.rows_N
    order = np.argsort(-by, kind="stable")[:worst].tolist()
    spread = {name: np.quantile(own.nats_N, share) for name, share in QUANTILES.items()} if bounded else None
    return {
        "source": own.source,
        "records": len(own),
        "nats": None if spread is None else {name: float(value) for name, value in spread.items()},
        "vectors": {name: float(np.quantile(own.rows_N, share)) for name, share in QUANTILES.items()},
        "fisher": None
        if np.isnan(own.fisher_N).all()
        else {name: float(np.nanquantile(own.fisher_N, share)) for name, share in QUANTILES.items()},
        "slope_nats": {name: float(np.quantile(own.slopes_N, share)) for name, share in QUANTILES.items()}
        if own.slopes_N.any()
        else None,
        "delta": own.delta,
        "worst_case": cost.nats,
        "worst": [
            {
                own.unit: int(own.number_N[place]),
                "vectors": int(own.rows_N[place]),
                "nats": float(own.nats_N[place]) if bounded else None,
                "slope_nats": float(own.slopes_N[place]),
            }
            for place in order
        ],
    }


def _really(facts: dict[str, Any]) -> str:
    nats = facts["nats"]
    return "" if nats is None else f"; really lost: median {nats['median']:,.4g}, most {nats['most']:,.4g} nats"


def _own_lines(facts: dict[str, Any]) -> Iterator[str]:
    nats = facts["nats"]
    yield f"{facts['source']}: {facts['records']:,} records released"
    yield "  vectors per record: " + ", ".join(f"{name} {value:,.4g}" for name, value in facts["vectors"].items())
    if nats is None:
        yield "  nats per record: no bound"
    else:
        delta = f" (delta {facts['delta']:.2g})" if facts["delta"] else ""
        spread = ", ".join(f"{name} {value:,.4g}" for name, value in nats.items())
        limit = "no bound" if facts["worst_case"] is None else f"{facts['worst_case']:,.4g}"
        yield f"  nats per record, its own{delta}: {spread}; worst case, as counted: {limit}"
    if facts["slope_nats"] is not None:
        spread = ", ".join(f"{name} {value:,.4g}" for name, value in facts["slope_nats"].items())
        yield f"  nats per record by slopes, its own: {spread}"
    if facts["fisher"] is not None:
        spread = ", ".join(f"{name} {value:.2g}" for name, value in facts["fisher"].items())
        yield f"  Fisher information of its vectors, of that under plain noise (no bound): {spread}"
    for one in facts["worst"]:
        (unit, number), loss = next(iter(one.items())), one["nats"]
        lost = "" if loss is None else f", {loss:,.4g} nats"
        if loss is None and one["slope_nats"]:
            lost = f", {one['slope_nats']:,.4g} nats by slopes"
        yield f"  most lost: {unit} {number:,}, {one['vectors']:,} vectors{lost}"


def _read(folder: Path) -> tuple[list[dict[str, Any]], str]:
    from privtune.device.account.ledger import FILE, Ledger
    from privtune.shared.errors import InvalidInput

    if not (folder / FILE).exists():
        raise InvalidInput(f"There is no ledger in {folder}: no job has run there. Set --home if it is elsewhere.")
    with Ledger(folder) as ledger:
        return ledger.entries(), ledger.head


def _wanted(row: dict[str, Any], data_set: str | None, job: str | None) -> bool:
    names = {row["source"], Path(row["source"]).name, row["name"], row["name"].removeprefix("device://")}
    return (data_set is None or data_set in names) and (job is None or job == row["job"])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    params = " ".join(f"{key}={value}" for key, value in row["params"].items())
    seed = "FIXED SEED" if row["seed"] == "fixed" else ""
    surrogates = "+ surrogates" if row.get("surrogates") else ""
    return (
        row["time"].replace("T", " ").rstrip("Z"),
        row["job"],
        f"{Path(row['source']).name} ({row['part']})",
        " ".join(part for part in (row["mechanism"], params, surrogates, seed) if part),
        f"{'at most ' if row['open'] else ''}{row['records']:,} of {row['of_records']:,}",
        f"{row['rows']:,}",
        f"{row['bytes'] / 1e6:,.1f}",
        "-" if not row["records"] else "no bound" if row["epsilon"] is None else f"{row['epsilon']:,.4g}",
    )


def _cost(cost: Spent, budget: Budget) -> str:
    nats = _nats(cost.nats)
    nats += f" (delta {cost.delta:.2g})" if cost.delta and cost.nats is not None else ""
    most = budget.slope_nats if cost.slope_nats != 0 else None
    parts = (
        (counted(cost.releases, "release"), budget.releases),
        (counted(cost.jobs, "job"), budget.jobs),
        (counted(cost.noises, "noise distribution"), budget.noises),
        (f"{nats} nats per record", budget.nats_per_record),
        (f"{_nats(cost.slope_nats)} nats per record by slopes", most),
        (f"{_nats(cost.label_nats)} nats per label", None),
    )
    return ", ".join(words + (f" of {limit:,g}" if limit is not None else "") for words, limit in parts)


def _nats(cost: float | None) -> str:
    return "no bound on the" if cost is None else f"{cost:,.4g}"
