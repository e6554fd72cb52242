"""The model card, README.md of an export: what the model is and how it was made, and nothing about the data.

It shows base and hash, cut, task, tuning, the mechanism with its parameters, and the statement that the ledger recorded
when the vectors were released. It shows no paths, names of data sets, texts, names of labels or numbers of records.
Metrics are facts about private data: the card shows them only if the owner asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from privtune.device.account.ledger import LABELS, Ledger, outcomes
from privtune.device.export.base_name import BaseName
from privtune.shared import __version__
from privtune.shared.job_spec import JobSpec
from privtune.shared.wording import counted

_READ_LABELS = (
    'names = list(json.load(open("FOLDER/labels.json"))["id2label"].values())',
    "numbers = {name: number for number, name in enumerate(names)}",
)
_RELATION = {"peft": "adapter", "merged": "finetune", "gguf": "quantized"}


@dataclass(frozen=True, kw_only=True)
class TrainingClaim:
    """What the ledger says about one way in which the job's vectors, or labels, were perturbed.

    mechanism: its name.
    params: its parameters.
    claim: the statement.
    """

    mechanism: str
    params: Mapping[str, Any]
    claim: str


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card may show.

    spec: the job.
    format, dtype: of the export.
    classes: number of labels; 0 for a language model.
    named: whether the export names the classes.
    longest: tokens of a text that training read at most.
    base: what the base model is called.
    base_sha256: hash of its weights, if the cloud reported it.
    training: what the ledger says about the training.
    metrics: on held-out data; None unless the owner asked for them.
    """

    spec: JobSpec
    format: str
    dtype: str
    classes: int
    named: bool
    longest: int
    base: BaseName
    base_sha256: str | None
    training: tuple[TrainingClaim, ...]
    metrics: Mapping[str, float] | None


def training_claims(home: Path, job_id: str) -> tuple[TrainingClaim, ...]:
    """The ledger's statements on the job's training: on its vectors, and on its labels if they were randomised."""
    with Ledger(home) as ledger:
        rows = [row for row in outcomes(ledger.entries()) if row["job"] == job_id and row["part"] in ("train", LABELS)]
    known = {(row["mechanism"], json.dumps(row["params"]), row["claim"]): row for row in rows}
    return tuple(
        TrainingClaim(mechanism=row["mechanism"], params=row["params"], claim=row["claim"]) for row in known.values()
    )


def write_card(path: Path, facts: CardFacts) -> None:
    """Write the card, with the front matter that a hub reads."""
    front = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", _model(facts), _privacy(facts), _metrics(facts), _use(facts)]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    head: dict[str, Any] = {}
    if facts.base.on_hub:  # a hub refuses other names here
        head = {"base_model": facts.base.name, "base_model_relation": _RELATION[facts.format]}
    classifier = facts.spec.task == "classification"
    return head | {
        "library_name": "peft" if facts.format == "peft" and facts.spec.tuning.method == "lora" else "transformers",
        "pipeline_tag": "text-classification" if classifier else "text-generation",
        "tags": ["privtune", "split-learning", facts.spec.tuning.method, facts.format],
    }


def _model(facts: CardFacts) -> str:
    spec, tuning = facts.spec, facts.spec.tuning
    what = f"text classification, {facts.classes} classes" if spec.task == "classification" else "causal language model"
    how = f"every weight of the {_last(spec.tail)}" if spec.tail else "every weight above the cut"
    if tuning.method == "lora":
        what_blocks = f"of the {_last(spec.tail)}" if spec.tail else "above the cut"
        where = ", ".join(tuning.targets) or f"every linear layer {what_blocks}"
        how = f"LoRA, rank {tuning.rank}, alpha {tuning.alpha:g}, on {where}"
    rows = {
        "Base model": facts.base.name + (f", {facts.base.file}" if facts.base.file else ""),
        "SHA-256 of the base's weights": facts.base_sha256 or "not recorded",
        "Task": what,
        "Cut": f"{counted(spec.cut, 'block')} and the embedding stayed frozen on the owner's device",
        "Tuned": how,
        "Longest text in training": counted(facts.longest, "token"),
        "Labels": "stayed on the device" if spec.labels == "private" else "were sent to the training provider",
        "Weights here": facts.format if facts.format == "peft" else f"{facts.format}, {facts.dtype}",
        "Made with": f"PrivTune {__version__}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"# {facts.base.name}, tuned with PrivTune\n\n| | |\n|---|---|\n{table}\n\nThe base model's licence applies."


def _privacy(facts: CardFacts) -> str:
    what = "vectors" if facts.spec.mechanism.name == "none" else "perturbed vectors"
    if facts.spec.surrogates.on:
        what += ", of a text in which surrogates replace what identifies,"
    lines = [
        "## Privacy of the training",
        f"The top of the model was trained by a provider that received {what} in place of the text. "
        "What may be claimed for these vectors, as recorded in the owner's ledger before they were sent:",
    ]
    for one in facts.training:
        settings = ", ".join(f"{name} = {value}" for name, value in sorted(one.params.items()))
        lines.append(f"* mechanism `{one.mechanism}`{f' ({settings})' if settings else ''}: {one.claim}")
    if not facts.training:
        lines.append("* The ledger of the exporting device has no entry of this training, so nothing is claimed.")
    lines.append(
        "This is about the vectors that the provider saw. It says nothing about what these weights reveal to whoever "
        "holds them: a tuned model can repeat what it was trained on. The model is used here on the text as it is, "
        "without the surrogates and the noise that it may have been trained with."
    )
    return "\n\n".join(lines)


def _metrics(facts: CardFacts) -> str:
    if facts.metrics is None:
        return ""
    rows = "\n".join(f"* {name}: {value:.4f}" for name, value in facts.metrics.items()) or "* none were recorded"
    return f"## Measured on the owner's held-out data, protected as in training\n\n{rows}"


def _use(facts: CardFacts) -> str:
    classifier = facts.spec.task == "classification"
    auto = "AutoModelForSequenceClassification" if classifier else "AutoModelForCausalLM"
    lines, source, note = [f"from transformers import {auto}, AutoTokenizer", ""], '"FOLDER"', ""
    if facts.format == "gguf":
        source = f'"FOLDER", gguf_file="{gguf_name(facts.dtype)}"'
        lines.append(f"model = {auto}.from_pretrained({source})")
    elif facts.format == "merged":
        lines.append(f"model = {auto}.from_pretrained({source})")
    else:
        lines, note = _on_base(facts, auto, lines), _where(facts)
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({source})")
    code = "\n".join(lines)
    return f"## How to load\n\n```python\n{code}\n```{note}"


def _on_base(facts: CardFacts, auto: str, lines: list[str]) -> list[str]:
    """The code that loads the base and then what was tuned."""
    base = f'"{facts.base.name if facts.base.loads else "BASE"}"'
    if facts.base.file:
        base += f', gguf_file="{facts.base.file}"'
    if facts.classes and facts.named:  # the names of the classes are in a file: the card never has them
        lines = ["import json", "", *lines, *_READ_LABELS]
        base += ", num_labels=len(names), id2label=dict(enumerate(names)), label2id=numbers"
    elif facts.classes:
        base += f", num_labels={facts.classes}"
    if facts.classes:  # the base may have a classifier of its own, for other classes
        base += ", ignore_mismatched_sizes=True"
    if facts.spec.tuning.method == "lora":
        lines = ["from peft import PeftModel", *lines, f"base = {auto}.from_pretrained({base})"]
        return [*lines, 'model = PeftModel.from_pretrained(base, "FOLDER")']
    lines = ["from safetensors.torch import load_file", *lines, f"model = {auto}.from_pretrained({base})"]
    return [*lines, 'model.load_state_dict(load_file("FOLDER/tuned.safetensors"), strict=False)']


def _where(facts: CardFacts) -> str:
    if facts.base.loads:
        return ""
    return f"\n\nBASE is a copy of the model that the training provider calls {facts.base.name}, with the hash above."


def gguf_name(dtype: str) -> str:
    """The file name of a GGUF export, with the ending that llama.cpp's converter uses."""
    return f"model-{dtype.upper().replace('FP', 'F')}.gguf"


def _last(blocks: int) -> str:
    return "last block" if blocks == 1 else f"last {blocks} blocks"
