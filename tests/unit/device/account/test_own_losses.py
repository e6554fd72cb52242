"""What each record really lost: per record, over noise distributions, and as its owner reads it."""

import math
import stat

import numpy as np
import pytest

from privtune.device.account.own_losses import OwnLosses, stored_losses, together
from privtune.device.data.record_lines import lines_of
from privtune.device.data.records import Columns, Record, Records
from privtune.device.privacy.statements.added_noise import clipped_statement, gaussian_statement
from privtune.device.privacy.statements.fitted_tables import fitted_statement
from privtune.device.privacy.statements.no_bound import none_statement
from privtune.shared.errors import ArtifactCorrupt

CLIPPED = clipped_statement(name="dchi", injection="cut", eta=2.0, dim=32, clip=1.0)
GAUSSIAN = gaussian_statement(name="gaussian", injection="cut", epsilon=4.0, delta=1e-5, clip=1.0, sigma=0.9, dim=32)


def losses(law, lines, nats, *, texts=None, source="reviews.csv", delta=0.0):
    return OwnLosses(
        source=source,
        law=law,
        unit="line",
        number_N=np.array(lines),
        text_N=np.array(texts or lines, dtype=np.uint64),
        rows_N=np.full(len(lines), 7),
        nats_N=np.array(nats, dtype=np.float64),
        fisher_N=np.full(len(lines), np.nan),
        slopes_N=np.zeros(len(lines)),
        delta=delta,
    )


def test_the_longest_record_of_far_vectors_has_the_worst_case_and_no_record_has_more():
    rows_N = np.array([0.0, 1.503, 3.2, 12.0])
    own_N = CLIPPED.own_epsilons(rows_N, np.zeros(4))
    assert own_N == pytest.approx(4 * rows_N)
    assert own_N[-1] == CLIPPED.record_epsilon(12)
    # Rounded up to three digits, never down.
    own_N, exact_N = GAUSSIAN.own_epsilons(rows_N, np.zeros(4)), [GAUSSIAN.record_epsilon(rows) for rows in rows_N]
    assert own_N[-1] == exact_N[-1]
    assert (own_N >= np.array(exact_N)).all()
    assert own_N == pytest.approx(exact_N, rel=1e-2)
    assert np.isnan(none_statement().own_epsilons(rows_N, np.ones(4))).all()


def test_a_million_records_take_no_million_bisections(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "privtune.device.privacy.statements.statement.gdp_epsilon", lambda mu, delta: asked.append(mu) or mu
    )
    GAUSSIAN.own_epsilons(np.random.default_rng(0).uniform(1, 128, 100_000), np.zeros(100_000))
    assert len(asked) < 3000


def test_a_fitted_table_costs_a_record_its_own_share():
    statement = fitted_statement(CLIPPED, 3.0)
    assert statement.own_epsilons(np.array([2.0, 2.0, 2.0]), np.array([0.0, 0.5, 1.0])).tolist() == [8.0, 9.5, 11.0]


def test_under_one_distribution_a_record_loses_once_and_under_two_twice():
    total = together(
        [
            losses("a", [2, 3, 4], [1.0, 5.0, 2.0], delta=1e-5),
            losses("a", [3, 4], [5.0, 2.0], delta=1e-5),  # a second job with the same noise
            losses("b", [3], [0.5], delta=2e-5),
        ]
    )
    assert dict(zip(total.number_N.tolist(), total.nats_N.tolist(), strict=True)) == {2: 1.0, 3: 5.5, 4: 2.0}
    assert dict(zip(total.number_N.tolist(), total.rows_N.tolist(), strict=True)) == {2: 7, 3: 14, 4: 7}
    assert total.delta == pytest.approx(3e-5)
    unbounded = together([losses("a", [2, 3], [1.0, 1.0]), losses("b", [3], [math.nan])])
    assert np.isnan(unbounded.nats_N).tolist() == [False, True]


def test_a_text_that_moved_to_another_line_is_the_same_record():
    total = together([losses("a", [2, 3], [1.0, 2.0]), losses("b", [2, 3], [10.0, 20.0], texts=[3, 2])])
    assert dict(zip(total.number_N.tolist(), total.nats_N.tolist(), strict=True)) == {2: 12.0, 3: 21.0}


def test_they_are_kept_with_the_job(tmp_path):
    job = tmp_path / "jobs" / "job1"
    for name in ("reviews.csv", "other.csv"):
        losses("a", [2, 3], [1.0, 2.0], source=name, delta=1e-5).save(job)
    (kept,) = stored_losses(tmp_path, "reviews.csv")
    assert (kept.law, kept.unit, kept.delta, kept.nats_N.tolist()) == ("a", "line", 1e-5, [1.0, 2.0])
    assert stored_losses(tmp_path, "reviews.csv", "job2") == []
    for file in job.glob("losses/*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArtifactCorrupt, match="damaged"):
        stored_losses(tmp_path, "reviews.csv")


def test_equal_texts_are_records_of_their_own_wherever_they_are():
    texts = ["a", "b", "a"]
    items = tuple(Record(number=number, text=text, label="x") for number, text in enumerate(texts, start=2))
    records = Records(source="f", unit="line", columns=Columns(text="text"), items=items)
    lines = lines_of(records)
    assert lines.number_N.tolist() == [2, 3, 4]
    assert len(set(lines.text_N.tolist())) == 3
    assert set(lines_of(records.pick([2, 1, 0])).text_N.tolist()) == set(lines.text_N.tolist())
