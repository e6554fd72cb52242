"""Randomised labels on the device: drawn once, kept, chained, within their bound; the loss corrects for them."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import threading

import numpy as np
import pytest
import torch

from privtune.device.data.records import Columns, Record, Records
from privtune.device.model.objectives import loss_N
from privtune.device.noise.randomness import OsNoise
from privtune.device.privacy.bounds import krr_keep_probability, label_truth
from privtune.device.release.label_store import LabelStore, draw, label_keys
from privtune.shared.errors import ArtifactCorrupt, JobConflict, StorageFull
from tests.support.privacy_losses import certain_loss_of_counts


def records_of(*rows: tuple[str, str]) -> Records:
    items = tuple(Record(number=n, text=text, label=label) for n, (text, label) in enumerate(rows))
    return Records(source="here", unit="line", columns=Columns(text="text", label="label"), items=items)


def keys_of(count: int) -> list[bytes]:
    return label_keys(records_of(*((f"text {n}", "a") for n in range(count))), ("a", "b"))


def test_keys_distinguish_records_by_text_label_and_copy_but_not_by_place() -> None:
    rows = [("one", "a"), ("two", "b"), ("one", "a"), ("one", "b")]
    keys = label_keys(records_of(*rows), ("a", "b"))
    assert len(set(keys)) == 4
    assert set(label_keys(records_of(*rows[::-1]), ("a", "b"))) == set(keys)
    assert set(label_keys(records_of(*rows), ("a", "b", "c"))).isdisjoint(keys)


def test_a_draw_is_made_once_and_kept(tmp_path) -> None:
    keys, labels = keys_of(2000), np.zeros(2000, dtype=np.int64)
    store = LabelStore(tmp_path / "home")
    assert store.missing(keys, 1.0) == 2000
    first = store.randomised(keys, labels, 2, 1.0, OsNoise())
    assert np.array_equal(store.randomised(keys, labels, 2, 1.0, OsNoise()), first)
    identity = store.identity
    store.close()
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    again = LabelStore(tmp_path / "home")
    assert again.identity == identity
    assert (again.missing(keys, 1.0), again.missing(keys, 2.0), again.size) == (0, 2000, 2000)
    order = np.random.default_rng(0).permutation(2000)[:500]
    part = again.randomised([keys[n] for n in order], labels[order], 2, 1.0, OsNoise())
    assert np.array_equal(part, first[order])
    assert 0.2 < first.mean() < 0.34, "about 1 - e / (1 + e) of the labels were changed"
    again.close()


def test_two_runs_at_once_agree(tmp_path) -> None:
    keys, labels = keys_of(3000), np.zeros(3000, dtype=np.int64)
    drawn: list[np.ndarray] = []

    def run() -> None:
        store = LabelStore(tmp_path)
        drawn.append(store.randomised(keys, labels, 2, 1.0, OsNoise()))
        store.close()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, drawn[0]) for one in drawn)


@pytest.mark.parametrize("order", [(2.0,), (0.5, 2.0, 1.0), (2.0, 0.5, 1.0)])
def test_the_real_sampler_never_exceeds_the_largest_epsilon(tmp_path, order) -> None:
    count, classes = 20_000, 3
    told = []
    for label in range(2):
        store = LabelStore(tmp_path / str(label))
        keys, labels = keys_of(count), np.full(count, label)
        outcome = np.zeros(count, dtype=np.int64)
        for epsilon in order:
            outcome = outcome * classes + store.randomised(keys, labels, classes, epsilon, OsNoise())
        store.close()
        told.append(np.bincount(outcome, minlength=classes ** len(order)))
    found = certain_loss_of_counts(*told)
    assert found <= max(order)
    assert found > 0.75 * max(order), "with fewer samples no excess would show either"


def test_independent_draws_would_exceed_it() -> None:
    """What the chain prevents, by the same estimate: without it, two draws cost their sum."""
    told = []
    for label in range(2):
        labels = np.full(60_000, label)
        one, other = (draw(labels, [{}] * len(labels), 2, 2.0, OsNoise()) for _ in range(2))
        told.append(np.bincount(2 * one + other, minlength=4))
    assert certain_loss_of_counts(*told) > 3


def test_fixed_seeds_never_meet_real_draws(tmp_path) -> None:
    seeded, real = LabelStore(tmp_path, fixed_seed=True), LabelStore(tmp_path)
    assert seeded.path != real.path
    seeded.close()
    real.close()


def test_a_damaged_locked_or_unwritable_store_is_one_clear_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "labels.sqlite").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(ArtifactCorrupt, match="damaged"):
        LabelStore(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFull, match="can't be created"):
        LabelStore(tmp_path / "file" / "home")
    monkeypatch.setattr("privtune.shared.sqlite.TIMEOUT_S", 0.01)
    store = LabelStore(tmp_path / "home")
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JobConflict, match="locked"):
            store.randomised(keys_of(3), np.zeros(3, dtype=np.int64), 2, 1.0, OsNoise())
    store.close()


def test_the_loss_is_the_likelihood_of_the_draw() -> None:
    logits_NC = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets_N = torch.arange(50) % 4
    logits_NC.requires_grad_(True)
    law_NC = label_truth(1.5, 4) * logits_NC.softmax(-1) + (1 - label_truth(1.5, 4)) / 4
    expected_N = -law_NC.gather(1, targets_N[:, None]).squeeze(1).log()
    found_N = loss_N(logits_NC, targets_N, 1.5)
    assert torch.allclose(found_N, expected_N)
    (gradient_NC,) = torch.autograd.grad(found_N.sum(), logits_NC)
    # Bayes: the class of the record, given the draw.
    told_NC = torch.full((50, 4), (1 - krr_keep_probability(1.5, 4)) / 3, dtype=torch.float64)
    told_NC[torch.arange(50), targets_N] = krr_keep_probability(1.5, 4)
    joint_NC = logits_NC.softmax(-1) * told_NC
    posterior_NC = joint_NC / joint_NC.sum(1, keepdim=True)
    assert torch.allclose(gradient_NC, logits_NC.softmax(-1) - posterior_NC)
    plain = torch.nn.functional.cross_entropy(logits_NC, targets_N, reduction="none")
    assert torch.equal(loss_N(logits_NC, targets_N), plain)


def test_training_on_randomised_labels_finds_the_true_law() -> None:
    """A bias alone, 70% of one class: the corrected loss recovers it; the plain loss is pulled towards one half."""
    labels = np.repeat([0, 1], [14_000, 6_000])
    told_N = torch.from_numpy(draw(labels, [{}] * len(labels), 2, 1.0, OsNoise()))
    shares = []
    for epsilon in (1.0, None):
        bias_C = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.Adam([bias_C], lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            loss_N(bias_C.expand(len(told_N), 2), told_N, epsilon).mean().backward()
            optimizer.step()
        shares.append(bias_C.detach().softmax(0)[0].item())
    assert shares[0] == pytest.approx(0.7, abs=0.04)
    assert shares[1] < 0.62
