"""What surrogates cost a generator: tuned on replaced texts, its answers restored, against clean at equal settings.

    nice python -m research.surrogates.generation --data ../shared/data --model FOLDER

SmolLM2-135M is tuned without noise on E2E (a form, then a sentence about it) or DialogSum (a dialogue, then its
summary), each training record replaced by its own map as a job does it. A prompt is replaced by a map that has seen
nothing but the prompt, the greedy answer is restored with it, and both arms are scored against the same true
references. A finished cell (set, arm, seed) is a line of docs/results/surrogates-generation.cells.jsonl; the same
command resumes, then writes the table.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privtune.device.audit.engine import Engine
from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.audit.utility import UtilityTraining
from privtune.device.data.encode import encode_causal_lm
from privtune.device.data.records import Columns, Record, Records
from privtune.device.inference.text_scores import score_texts
from privtune.device.surrogates.surrogate_map import SurrogateMap
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.files import write_text
from privtune.shared.job_spec import MechanismSpec, SurrogateSpec
from research.intervals import intervals
from research.paper.perplexity import tune
from research.paper.written_answers import prompt_of, write_answers

ARMS = ("clean", "surrogates")
CUT = 1


@dataclass(frozen=True)
class GenerationSet:
    """Sizes in tokens. longest: of an answer."""

    name: str
    length: int
    longest: int


SETS = {"e2e": GenerationSet("e2e", 128, 48), "dialogsum": GenerationSet("dialogsum", 384, 64)}


def main() -> None:
    """Measure every cell that is missing, then write the table."""
    arguments = parse()
    kept = MeasurementFile(arguments.out / "surrogates-generation.cells.jsonl")
    for seed in arguments.seeds:
        for name in arguments.sets:
            for arm in arguments.arms:
                measure(kept, SETS[name], arm, seed, arguments)
    write_text(arguments.out / "surrogates-generation.md", markdown(list(kept.all().values())))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    parser.add_argument("--model", required=True, help="SmolLM2-135M-Instruct: a folder or its GGUF")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of records, maps and order")
    parser.add_argument("--train", type=int, default=200, help="training records")
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=1)
    return parser.parse_args()


def measure(kept: MeasurementFile, which: GenerationSet, arm: str, seed: int, arguments: argparse.Namespace) -> None:
    """One training and its answers, unless they are kept already."""
    key = f"{which.name}-{arm}-{seed}-{arguments.train}x{arguments.epochs}-{arguments.answers}"
    if kept.find(key) is not None:
        return
    began = time.monotonic()
    train, asked = examples(which.name, arguments, seed)
    maps: list[SurrogateMap] = []
    facts: dict[str, Any] = {"set": which.name, "arm": arm, "seed": seed, "epochs": arguments.epochs}
    prompts = [prompt for prompt, _ in asked]
    if arm == "surrogates":
        tool = Surrogates(SurrogateSpec(replace="identifying"), bytes([seed]) * 32)
        train, covered = tool.records(train, "train")
        maps = [tool.conversation([prompt]) for prompt in prompts]
        prompts = [own.replace(prompt) for own, prompt in zip(maps, prompts, strict=True)]
        facts |= {"rules": tool.fingerprint, "words_replaced": covered.share_replaced}
    with tempfile.TemporaryDirectory() as home:
        engine = Engine(arguments.model, "causal-lm", 0, Path(home))
        parts = engine.bottom(CUT)
        data = encode_causal_lm(train, parts.tokenizer, which.length)
        questions = replace(train, items=tuple(Record(number=n, text=".", prompt=one) for n, one in enumerate(prompts)))
        asked_ids = encode_causal_lm(questions, parts.tokenizer, which.length * 2)
        assert asked_ids.loss_masks is not None
        assert not asked_ids.dropped
        noise = engine.noise(MechanismSpec(name="none"), CUT, data, Path(home))
        training = UtilityTraining(epochs=arguments.epochs, batch=8, precision="bfloat16")
        tuned = tune(engine.victim(noise, CUT), engine.whole.top(CUT), parts.head, data, training=training, seed=seed)
        starts = [prompt_of(ids, mask) for ids, mask in zip(asked_ids.ids, asked_ids.loss_masks, strict=True)]
        texts = write_answers(parts, noise, tuned, starts, longest=which.longest)
    sent = texts
    if maps:
        texts = [own.restore(text) for own, text in zip(maps, texts, strict=True)]
    answers = [
        {"prompt": prompt, "text": text, "references": references}
        for (prompt, references), text in zip(asked, texts, strict=True)
    ]
    near = score_texts(texts, [references for _, references in asked])
    facts |= {
        "train": len(data),
        "rouge_l": near.rougeL,
        "bleu": near.bleu,
        "restored": sum(a != b for a, b in zip(sent, texts, strict=True)),
        "seconds": round(time.monotonic() - began),
        "answers": answers,
    }
    kept.keep(key, facts)
    print(key, f"ROUGE-L {near.rougeL:.3f} BLEU {near.bleu:.1f}", facts["seconds"], "s", flush=True)


def examples(name: str, arguments: argparse.Namespace, seed: int) -> tuple[Records, list[tuple[str, list[str]]]]:
    """Training records, and prompts with their references; each seed has prompts of its own."""
    if name == "e2e":
        rows = _rows(arguments.data / "e2e_nlg/dev.jsonl")
        pairs = [(row["mr"], row["ref"]) for row in rows]
        known: dict[str, list[str]] = {}
        for row in _rows(arguments.data / "e2e_nlg/test.jsonl"):
            known.setdefault(row["mr"], []).append(row["ref"])
    else:
        rows = _rows(arguments.data / "dialogsum/dev.jsonl")
        pairs = [(row["dialogue"], row["summary"]) for row in rows]
        rows = _rows(arguments.data / "dialogsum/test.jsonl")
        known = {row["dialogue"]: [row["summary1"], row["summary2"], row["summary3"]] for row in rows}
    pairs = [pair for pair in pairs if len(pair[0]) < 1200]
    asked = [one for one in known.items() if len(one[0]) < 1200]
    chosen = random.Random(seed).sample(pairs, min(arguments.train, len(pairs)))
    items = tuple(Record(number=n, prompt=prompt, text=text) for n, (prompt, text) in enumerate(chosen, start=1))
    records = Records(source=name, unit="row", columns=Columns(prompt="prompt", completion="text"), items=items)
    random.Random(0).shuffle(asked)
    own = asked[seed * arguments.answers : (seed + 1) * arguments.answers]
    if not own:
        raise SystemExit(f"{name} has {len(asked)} prompts: too few for {arguments.answers} answers of seed {seed}")
    return records, own


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def markdown(cells: Sequence[dict[str, Any]]) -> str:
    """Scores of each arm and their difference with its 95% bootstrap interval over prompts, by seed and together."""
    lines = [
        "# Surrogates: what they cost a generator",
        "",
        "`python -m research.surrogates.generation --data DATA --model SMOLLM2`. SmolLM2-135M, every weight",
        "above the cut tuned without noise; answers restored before they are scored. 0 to 100, with",
        "the 95% interval of the difference.",
        "",
        "| set | seed | train | answers | score | clean | surrogates | difference | answers with a restored word |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in SETS:
        arms = {
            arm: {cell["seed"]: cell for cell in cells if (cell["set"], cell["arm"]) == (name, arm)} for arm in ARMS
        }
        seeds = sorted(arms["clean"].keys() & arms["surrogates"].keys())
        for seed in seeds:
            lines += _rows_of(name, str(seed), {arm: [arms[arm][seed]] for arm in ARMS})
        if len(seeds) > 1:
            lines += _rows_of(name, "all", {arm: [arms[arm][seed] for seed in seeds] for arm in ARMS})
    return "\n".join(lines) + "\n"


def _rows_of(name: str, label: str, cells: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Lines of the table: the answers of these cells together, which are paired by prompt and seed."""
    answers = {arm: [one for cell in cells[arm] for one in cell["answers"]] for arm in ("surrogates", "clean")}
    scores, rows = intervals(answers), []
    restored = sum(cell["restored"] for cell in cells["surrogates"])
    for score, of, scale in (("ROUGE-L", "rougeL", 100), ("BLEU", "bleu", 1)):
        middle, low, high = (scale * value for value in scores["surrogates - clean"][of])
        rows.append(
            f"| {name} | {label} | {cells['clean'][0]['train']} | {len(answers['clean'])} | {score} | "
            f"{scale * scores['clean'][of][0]:.1f} | {scale * scores['surrogates'][of][0]:.1f} | "
            f"{middle:+.1f} ({low:+.1f} to {high:+.1f}) | {restored} |"
        )
    return rows


if __name__ == "__main__":
    main()
