"""What tables fitted on the private records add to a claim."""

from __future__ import annotations

from dataclasses import replace

from privtune.device.privacy.statements.statement import Statement


def fitted_statement(statement: Statement, epsilon: float, delta: float = 0.0) -> Statement:
    """The same claim where a table it rests on was fitted on the private records.

    epsilon, delta: what that costs each record.
    """
    except_for = f", except with probability {delta:.2g}" if delta else ""
    cost = (
        "Tables were fitted on the private records with noise of their own: replacing one record shifts the odds of "
        f"these tables by at most {epsilon:.4g} nats{except_for}, once for this data set."
    )
    numbers = {**statement.numbers, "fitted_epsilon": epsilon}
    text = f"{statement.text} {cost}"
    return replace(statement, text=text, fitted_epsilon=epsilon, fitted_delta=delta, numbers=numbers)
