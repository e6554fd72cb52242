"""What transformers has a class for, by `model_type`, read from its source: free of torch and of transformers itself.

Whether such a model can be split is not known here: `self_check` tries it when the model is loaded.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

_TABLES = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "classifier": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}


def tasks_of(model_type: str) -> tuple[str, ...]:
    """The tasks that transformers has a class for. Empty for an unknown type and for an encoder-decoder."""
    known = _known()
    if model_type in known["seq2seq"]:
        return ()
    classifier = ("classification",) if model_type in known["classifier"] else ()
    return (*classifier, "causal-lm") if model_type in known["causal"] and not is_encoder(model_type) else classifier


def is_encoder(model_type: str) -> bool:
    """Whether the model fills in masked tokens: it reads both ways, and its classifier reads the first token."""
    known = _known()
    return model_type in known["masked"] or model_type not in known["causal"]


@cache
def _known() -> dict[str, frozenset[str]]:
    """The model types of each table in transformers' `modeling_auto.py`."""
    package = importlib.util.find_spec("transformers")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("transformers is not installed: pip install privtune")
    source = Path(package.origin).parent / "models" / "auto" / "modeling_auto.py"
    found: dict[str, frozenset[str]] = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
            name = getattr(node.targets[0], "id", "")
            if name in _TABLES.values():
                found[name] = frozenset(pair[0] for pair in ast.literal_eval(node.value.args[0]))
    return {key: found[name] for key, name in _TABLES.items()}
