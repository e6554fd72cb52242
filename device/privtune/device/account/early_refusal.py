"""What the budget will refuse by a job's settings alone: said before a model is fetched or a job submitted."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from privtune.device.account.conditions import DRAW, changes, conditions
from privtune.device.account.ledger import FILE, SLOPES, Json, Ledger, drawings, refusal, refused
from privtune.device.home.policy import Budget
from privtune.shared.job_spec import JobSpec


def refuse_early(
    home: Path, spec: JobSpec, source: str, budget: Budget, *, records: int = 1, resumed: Sequence[str] = ()
) -> None:
    """Refuse a job under settings that no earlier job had, where the budget of the data set allows no further draw.

    Nothing is entered: `Ledger.admit` decides about all other jobs, once their noise is known.

    Args:
        home: the device's folder.
        spec: the job.
        source: the data set, from `source_of`.
        budget: of the data set.
        records: how many records of it the job has, at least.
        resumed: jobs that may be resumed instead.

    Raises:
        PolicyRefused: the budget does not allow the job.
    """
    if not (home / FILE).exists():
        return
    with Ledger(home) as ledger:
        entries = ledger.entries()
    now, before = conditions(spec), drawings(entries, source)
    anew = spec.surrogates.on and spec.mechanism.name != "none"  # each job draws texts of its own
    if any(row["job"] in resumed or not (anew or changes(row.get("conditions", {}), now)) for row in before):
        return
    facts: Json = {"id": uuid.uuid4().hex, "job": "", "source": source, "part": "train", "law": "", "conditions": now}
    facts["unseen"] = {DRAW: ""} if anew else {}
    bound = None if spec.mechanism.name == "none" else 0.0  # the least that its noise may cost
    facts |= {"kind": "admitted", "records": records, "epsilon": bound, "delta": 0.0}
    reason = refusal(entries, facts, budget)
    if reason is not None:
        raise refused(reason)


def refuse_slopes_early(home: Path, spec: JobSpec, source: str, budget: Budget) -> None:
    """Refuse a new zeroth-order job whose slopes are over what the budget leaves. Arguments and errors as above."""
    epsilon = spec.zeroth_order.epsilon
    if epsilon is None or not (home / FILE).exists():
        return
    facts: Json = {"kind": "admitted", "id": uuid.uuid4().hex, "job": "", "source": source, "part": SLOPES, "law": ""}
    facts |= {"records": 1, "epsilon": epsilon, "delta": spec.zeroth_order.delta}
    with Ledger(home) as ledger:
        reason = refusal(ledger.entries(), facts, budget)
    if reason is not None:
        raise refused(reason)
