"""Command lines of `privtune finetune` and the job that each of them submits, literally: a job must never drift."""

import json
from typing import Any

import pytest

from privtune.device.cli import main
from privtune.device.link.rest import ControlPlane

LEAST: dict[str, Any] = {
    "model": "m",
    "training_file": "device://reviews",
    "validation_file": None,
    "task": "classification",
    "cut": 1,
    "tail": 0,
    "skip": "frozen",
    "taught": None,
    "labels": "private",
    "label_epsilon": None,
    "num_labels": None,
    "suffix": None,
    "codec": "bf16",
    "states": "codec",
    "mechanism": {"name": "none", "params": {}},
    "surrogates": {"replace": "identifying", "rank": 200000, "language": "en"},
    "tuning": {
        "method": "lora",
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.05,
        "targets": [],
        "gradient_checkpointing": False,
    },
    "optim": {
        "learning_rate": 0.0005,
        "head_learning_rate": None,
        "weight_decay": 0.0,
        "schedule": "linear",
        "warmup_ratio": 0.06,
        "max_grad_norm": 1.0,
    },
    "train": {
        "epochs": 3,
        "max_steps": None,
        "batch_size": 16,
        "accumulation": 1,
        "max_length": 128,
        "seed": 0,
        "precision": "auto",
        "in_flight": 2,
        "checkpoint_every": 50,
        "pad_to": [],
        "evaluate_every": None,
        "early_stopping": None,
        "best_by": "loss",
    },
    "zeroth_order": {
        "epsilon": None,
        "delta": 1e-05,
        "clip": 1.0,
        "scale": 0.01,
        "support": "whole",
        "support_ratio": 3.0,
    },
}
REVIEWS = "--data reviews.csv"
CHATS = "--data chats.jsonl --task causal-lm"
HELD_OUT = {"validation_file": "device://reviews-validation"}
TASK = {"task": "private", "epsilon_task": 8.0}
WORDS: dict[str, Any] = {
    "cut": 2,
    "tail": 1,
    "skip": "tuned",
    "mechanism": {"name": "codes", "params": {"codes": 16, "dims": 4, **TASK}},
    "surrogates": {"replace": "nothing"},
}
ALL: dict[str, Any] = WORDS | {
    "cut": 3,
    "mechanism": {
        "name": "codes",
        "params": {"codes": 8, "dims": 4, **TASK, "task_use": "hide", "epsilon_code": 1.0},
    },
}
CASES: list[tuple[str, dict[str, Any]]] = [
    (REVIEWS, {}),
    (f"{REVIEWS} --holdout 0.1 --limit 20 --max-length 64", HELD_OUT | {"train": {"max_length": 64}}),
    (
        f"{REVIEWS} --validation reviews.csv --text-column text --label-column label --mechanism dchi "
        "--param noise_ratio=8",
        HELD_OUT | {"mechanism": {"name": "dchi", "params": {"noise_ratio": 8}}},
    ),
    (f"{REVIEWS} --labels shared --suffix mine", {"labels": "shared", "num_labels": 2, "suffix": "mine"}),
    (f"{REVIEWS} --zeroth-order-epsilon 4 --zeroth-order-clip 2", {"zeroth_order": {"epsilon": 4.0, "clip": 2.0}}),
    (f"{REVIEWS} --label-epsilon 2 --seed 7", {"label_epsilon": 2.0, "train": {"seed": 7}}),
    (
        f"{REVIEWS} --protect none --cut 0 --codec fp32",
        {"cut": 0, "codec": "fp32", "surrogates": {"replace": "nothing"}},
    ),
    (f"{REVIEWS} --surrogate-rank 5000 --surrogate-language de", {"surrogates": {"rank": 5000, "language": "de"}}),
    (f"{REVIEWS} --protect words --cut 1 --param codes=16", WORDS | {"cut": 1}),
    (f"{REVIEWS} --protect all", ALL),
    (
        f"{REVIEWS} --lora-rank 4 --lora-alpha 8 --lora-dropout 0 --lora-targets query --lora-targets value "
        "--gradient-checkpointing",
        {
            "tuning": {
                "rank": 4,
                "alpha": 8.0,
                "dropout": 0.0,
                "targets": ["query", "value"],
                "gradient_checkpointing": True,
            }
        },
    ),
    (
        f"{REVIEWS} --tuning full --learning-rate 0.001 --head-learning-rate 0.01 --weight-decay 0.1 --schedule cosine "
        "--warmup-ratio 0 --max-grad-norm 0",
        {
            "tuning": {"method": "full"},
            "optim": {
                "learning_rate": 0.001,
                "head_learning_rate": 0.01,
                "weight_decay": 0.1,
                "schedule": "cosine",
                "warmup_ratio": 0.0,
                "max_grad_norm": 0.0,
            },
        },
    ),
    (
        f"{REVIEWS} --epochs 2 --max-steps 50 --batch-size 8 --accumulation 2 --precision fp32 --in-flight 4 "
        "--checkpoint-every 10 --seed 3",
        {
            "train": {
                "epochs": 2,
                "max_steps": 50,
                "batch_size": 8,
                "accumulation": 2,
                "seed": 3,
                "precision": "fp32",
                "in_flight": 4,
                "checkpoint_every": 10,
            }
        },
    ),
    (
        f"{REVIEWS} --cut 2 --tail 1 --skip tuned --mechanism gaussian --param epsilon=8 --param clip_ratio=0.9",
        {
            "cut": 2,
            "tail": 1,
            "skip": "tuned",
            "mechanism": {"name": "gaussian", "params": {"epsilon": 8, "clip_ratio": 0.9}},
        },
    ),
    (
        f"{REVIEWS} --tail 2 --skip none --mechanism codes --param codes=16 --param dims=4",
        {"tail": 2, "skip": "none", "mechanism": {"name": "codes", "params": {"codes": 16, "dims": 4}}},
    ),
    (CHATS, {"task": "causal-lm"}),
    (f"{CHATS} --tail 4", {"task": "causal-lm", "tail": 4}),
    (
        f"{CHATS} --protect words",
        WORDS | {"task": "causal-lm", "tail": 4, "mechanism": {"name": "codes", "params": {"codes": 32, "dims": 4}}},
    ),
    (
        f"{CHATS} --protect none --mechanism privtune --param hops=3",
        {
            "task": "causal-lm",
            "mechanism": {"name": "privtune", "params": {"hops": 3}},
            "surrogates": {"replace": "nothing"},
        },
    ),
]


@pytest.mark.parametrize(("line", "changes"), CASES, ids=[line for line, _ in CASES])
def test_a_command_line_submits_this_job(line, changes, tmp_path, monkeypatch):
    submitted = []

    def create(self, spec, metadata=None):
        submitted.append(spec.model_dump(mode="json"))
        raise KeyboardInterrupt

    reviews = "".join(f"a film of kind {number},{'good' if number % 2 else 'bad'}\n" for number in range(40))
    (tmp_path / "reviews.csv").write_text("text,label\n" + reviews)
    chats = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(20)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ControlPlane, "create_job", create)
    monkeypatch.setattr(ControlPlane, "blocks", lambda *_: 6)
    monkeypatch.setattr(ControlPlane, "check_model", lambda *_: None)
    cloud = "--cloud http://127.0.0.1:1 --api-key pt-x --grpc-address 127.0.0.1:1 --home home"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(f"finetune --model m --name reviews {line} {cloud}".split())
    assert submitted == [{name: merged(value, changes.get(name)) for name, value in LEAST.items()}]


def merged(value, change):
    return value if change is None else value | change if isinstance(value, dict) else change
