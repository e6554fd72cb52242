"""The arms of the teach-down comparison differ in their teacher alone, and the report pairs them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from privtune.cloud.compute.teaching.pieces import cut_into_pieces
from privtune.shared.modeling.partition import Partition
from privtune.shared.teaching_spec import TeachingSpec
from research.teach_down.arms import ARMS, Shuffled, parts
from research.teach_down.report import write_report
from tests.support.tiny_models import tiny_classifier, tiny_tokenizer

SPEC = TeachingSpec(
    model="tiny",
    corpus="words",
    cut=1,
    label_column="label",
    max_pieces=80,
    max_length=10,
    tuned_pieces=64,
    tuned_blocks=1,
    learning_rate=3e-3,
    precision="fp32",
)


def lesson(arm, folder, seed=0):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{number}" for number in rng.integers(0, 60, size=8)) for _ in range(80)]
    pieces = cut_into_pieces(
        tiny_tokenizer(), texts, np.arange(80) % 2, max_length=SPEC.max_length, most=SPEC.max_pieces, seed=0
    )
    kind = ARMS[arm]
    assert kind is not None
    partition = Partition(tiny_classifier("bert", num_labels=2))
    return kind(folder / "teacher", partition, pieces, SPEC.model_copy(update={"seed": seed}), folder / f"{arm}-{seed}")


def test_all_arms_but_the_first_change_the_same_weights(tmp_path):
    states = {arm: lesson(arm, tmp_path).teach().state for arm in ("taught", "labels", "shuffled")}
    assert len({tuple(sorted(state)) for state in states.values()}) == 1
    name = next(iter(states["taught"]))
    assert len({states[arm][name].sum().item() for arm in states}) == 3


def test_seeds_share_the_teacher(tmp_path):
    lesson("taught", tmp_path).teach()
    kept = (tmp_path / "teacher" / "states.bf16").stat().st_mtime_ns
    lesson("taught", tmp_path, seed=1).teach()
    assert (tmp_path / "teacher" / "states.bf16").stat().st_mtime_ns == kept


def test_shuffled_targets_are_the_same_rows_elsewhere(tmp_path):
    one, other = lesson("taught", tmp_path), lesson("shuffled", tmp_path)
    assert isinstance(other, Shuffled)
    rows, all_pieces = [], np.arange(len(one.pieces))
    for arm in (one, other):
        targets = arm.targets(arm.teacher())
        rows.append(torch.cat([targets.rows(all_pieces[n : n + 1], len(one.pieces.ids[n]))[0] for n in all_pieces]))
    assert not torch.equal(*rows)
    assert torch.equal(*(found.sum(1).sort().values for found in rows))


def test_the_report_credits_the_teacher_with_what_it_adds_to_the_same_text_and_labels(tmp_path):
    about = {"split": "dev", "model": "m", "task": "sst2", "cut": 1, "private": 9, "epochs": 2, "command": "c"}
    about |= {"seconds": {"taught": 1, "private": 1}}
    rights = {"untaught": "0000011111", "labels": "0001111111", "taught": "0111111111", "taught+codes": "1111111111"}
    lines = []
    for arm, right in rights.items():
        spec = None if arm == "untaught" else SPEC.model_dump(exclude={"model", "seed", "checkpoint_every"})
        lines.append(json.dumps({"key": arm, "arm": arm, "seed": 0, "spec": spec, "right": right, **about}))
    (tmp_path / "teach-down-dev.cells.jsonl").write_text("\n".join(lines) + "\n")
    write_report(tmp_path)
    (row,) = json.loads((tmp_path / "teach-down.json").read_text())["rows"]
    assert row["differences"]["taught - labels"][0] == 0.2
    assert row["accuracy"]["untaught"][0] == 0.5
    assert row["differences"]["taught+codes - taught"][0] == 0.1
    assert "| taught+codes - taught: 10.0 [" in (tmp_path / "teach-down.md").read_text()
    assert "| 20.0 [" in (tmp_path / "teach-down.md").read_text()


def test_an_arm_may_send_something_on_top(capsys):
    assert parts("taught", 2) == ("taught", None)
    base, sends = parts("untaught+codes-32-cut-2-tail-1-tuned", 2)
    assert (base, sends.mechanism, sends.cut) == ("untaught", "codes", 2)
    for wrong in ("told", "taught+codes-32-cut-2-tail-1-tuned"):  # another cut
        with pytest.raises(SystemExit, match="no such arm"):
            parts(wrong, 1)
