"""What tables fitted on the private records add to a claim."""

from __future__ import annotations

from dataclasses import replace

from privtune.device.privacy.statements.statement import Statement


def fitted_statement(statement: Statement, epsilon: float) -> Statement:
    """The same claim where a table it rests on was fitted on the private records, at a cost of `epsilon` per record."""
    cost = (
        "Tables were fitted on the private records with noise of their own: replacing one record shifts the odds of "
        f"these tables by at most {epsilon:.4g} nats, once for this data set."
    )
    numbers = {**statement.numbers, "fitted_epsilon": epsilon}
    return replace(statement, text=f"{statement.text} {cost}", fitted_epsilon=epsilon, numbers=numbers)
