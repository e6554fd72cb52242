"""Which of transformers' models split exactly: writes `docs/models.md` and `docs/results/models-refused.md`.

    python -m research.models_checked [TYPE ...]        with types: prints their verdicts only

Tries every type that transformers has a text classifier or a causal language model for, with the default settings of
its configuration, and some settings that models in use have. Nothing is downloaded. About ten minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from privtune.shared.job_spec import Task
from privtune.shared.modeling.architectures import tasks_of
from privtune.shared.modeling.hf_calls import quiet
from privtune.shared.modeling.self_check import ROUNDING, TOLERANCE, try_split
from privtune.shared.modeling.small_copy import small_config

DOCS = Path(__file__).parents[1] / "docs"
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {  # further ones to try, for settings that matter
    "deberta-v2": ({"conv_kernel_size": 3},),
    "esm": ({"vocab_size": 33, "pad_token_id": 1}, {"vocab_size": 33, "position_embedding_type": "rotary"}),
    "eurobert": ({"classifier_pooling": "bos"},),
    "falcon": ({"alibi": True},),
    "granite": ({"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},),
    "granitemoe": ({"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 6.0},),
    "hunyuan_v1_dense": ({"head_dim": 128},),
    "hunyuan_v1_moe": ({"head_dim": 128},),
    "lfm2": ({"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]},),
    "ministral": ({"head_dim": 128},),
    "mistral": ({"sliding_window": None},),
    "modernbert": ({"classifier_pooling": "mean"},),
    "nemotron": ({"head_dim": 128, "num_key_value_heads": 8},),
    "opt": ({"word_embed_proj_dim": 512, "hidden_size": 1024, "do_layer_norm_before": False},),
}
INTRO = """# Models

For whoever wants to know before a job whether a model can be split.

There is no list in the code. When a model is loaded, a small copy of its own configuration (same class and flags, four
blocks of width 64, random weights) is cut everywhere, and bottom, top, tail and head together must give the whole
model's outputs to {tolerance:.0e} and the same gradients at the cut to {rounding:.0e}, relative to the largest value;
padding never reaches the top, as on the wire. A language model must also write token by token, one text and two
together, as the whole does (to {rounding:.0e}). A model that fails is refused with what differs. It takes about a
second; the verdict is kept in `~/.cache/privtune/split-checks` (`PRIVTUNE_CACHE` moves it) by configuration and
versions. `privtune-cloud models --model REF` says it of a model without loading its weights. A copy that takes over a
minute of processor time is refused as undecided. The same copy shows how long a text the model takes: RoBERTa's
514 positions are 512 tokens.

The tables are by `python -m research.models_checked`, with transformers {transformers} and torch {torch}: every type
with a class for the task, at the default settings of its configuration class; a model with other settings may differ,
and is checked when it is loaded. It is a check of the split with random weights on the CPU in float32. Whether LoRA
finds its layers, a tokenizer is fast and an export format knows the type are other questions; models of the
[README](../README.md#models-and-data)'s list are tested in all of these.

A mixture of experts keeps its experts in tensors that are not linear layers: LoRA tunes attention alone (DeepSeek's
experts too, by peft's own rule; peft merges such an adapter, `--format merged` refuses it), `--tuning full` all of it.
Exports as adapter and merged model are tested for ten of these types; GGUF takes only those that
[export](export.md#gguf) names.

What is refused, with reasons, is in [models-refused](results/models-refused.md): ALBERT shares one block
between all layers, some classifiers read more than one token, some models keep more than keys and values or compute
with padding, and some only lack a setting that the default configuration does not have. Encoder-decoders, models of
images or sound and types that need code from a hub are never split.
"""
REFUSED = """# Models that are refused

For whoever wants to know why a model can't be split: how it is tried, and by which command this page is made, is in
[models](../models.md).
"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One line of a table.

    settings: those that differ from the default ones.
    fault: why it is refused; None if it splits exactly.
    """

    model_type: str
    task: Task
    settings: str
    fault: str | None


def verdicts(model_types: list[str]) -> Iterator[Verdict]:
    """Try each type for its tasks, first with the default settings."""
    for model_type in model_types:
        for task in tasks_of(model_type):
            for settings in ({}, *SETTINGS.get(model_type, ())):
                name: Task = "causal-lm" if task == "causal-lm" else "classification"
                text = ", ".join(f"{key}={value}" for key, value in settings.items())
                yield Verdict(model_type=model_type, task=name, settings=text, fault=_fault(model_type, settings, name))


def _fault(model_type: str, settings: dict[str, Any], task: Task) -> str | None:
    try:
        with quiet():
            small = small_config(AutoConfig.for_model(model_type, **settings))
        return try_split(small, task)
    except Exception as error:  # many configurations have no usable default
        return (str(error).splitlines() or [repr(error)])[0]


def pages(found: list[Verdict]) -> dict[str, str]:
    """Both pages by their path in docs/."""
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    intro = INTRO.format(tolerance=TOLERANCE, rounding=ROUNDING, **versions)
    exact = ["## Exact", "", "| type | classification | causal-lm |", "|---|---|---|", *_exact(found)]
    refused = ["| type | task | reason |", "|---|---|---|", *_refused(found)]
    return {
        "models.md": "\n".join([intro, *exact, ""]),
        "results/models-refused.md": "\n".join([REFUSED, *refused, ""]),
    }


def _exact(found: list[Verdict]) -> Iterator[str]:
    for key in dict.fromkeys((v.model_type, v.settings) for v in found):
        mine = [v.task for v in found if (v.model_type, v.settings) == key and v.fault is None]
        if mine:
            cells = ["yes" if task in mine else "" for task in ("classification", "causal-lm")]
            yield f"| {_name(*key)} | {' | '.join(cells)} |"


def _refused(found: list[Verdict]) -> Iterator[str]:
    for key in dict.fromkeys((v.model_type, v.settings, v.fault) for v in found if v.fault is not None):
        tasks = [v.task for v in found if (v.model_type, v.settings, v.fault) == key]
        yield f"| {_name(*key[:2])} | {', '.join(tasks)} | {str(key[2])[:150].replace('|', '/').replace('`', '')} |"


def _name(model_type: str, settings: str) -> str:
    return f"{model_type} ({settings})" if settings else model_type


def main() -> None:
    """Write the pages, or print the verdicts of some types."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("types", nargs="*", help="print only these")
    types = parser.parse_args().types
    found = []
    for verdict in verdicts(types or sorted(CONFIG_MAPPING_NAMES)):
        found.append(verdict)
        line = f"{_name(verdict.model_type, verdict.settings)} {verdict.task}: {verdict.fault or 'exact'}"
        print(line, file=sys.stdout if types else sys.stderr, flush=True)
    if not types:
        for name, text in pages(found).items():
            (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
