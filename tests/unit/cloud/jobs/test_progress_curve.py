"""The curve of a job: few points, over all sessions, without what a resume undid."""

from itertools import count, pairwise

import pytest

from privtune.cloud.jobs.progress_curve import MAX_POINTS, ProgressCurve
from privtune.cloud.jobs.states import JobProgress
from privtune.shared.errors import JobNotFound
from tests.support.builders import least_spec
from tests.support.leases import begin


def progress(step, total=10_000, **known):
    return JobProgress(step=step, total_steps=total, **known)


def test_a_long_job_has_few_points_spread_over_it_and_its_newest():
    curve = ProgressCurve(clock=count().__next__)
    for step in range(1, 10_001):
        curve.add(progress(step, tokens=8 * step))
    steps = [point.step for point in curve.points]
    assert MAX_POINTS / 3 < len(steps) < MAX_POINTS
    assert steps == sorted(steps)
    assert steps[-1] == 10_000
    assert max(new - old for old, new in pairwise(steps)) <= 4 * 10_000 / MAX_POINTS
    assert curve.points[-1].tokens == 80_000


def test_sessions_add_up_and_undone_steps_go():
    curve = ProgressCurve()
    for step in (1, 2, 3):
        curve.add(progress(step, bytes_up=100 * step, loss=1 / step))
    curve.begins()
    curve.add(progress(3, bytes_up=150, loss=0.5))  # resumed from step 2
    assert [(point.step, point.bytes_up, point.loss) for point in curve.points][-2:] == [(2, 200, 0.5), (3, 450, 0.5)]


def test_it_outlives_the_job_and_the_process_and_goes_with_the_job(jobs):
    job_id = jobs.create("alice", least_spec()).id
    assert list(jobs.curve(job_id)) == []
    token = begin(jobs, job_id)
    jobs.progress(job_id, progress(1, 2, bytes_up=10))
    jobs.disconnected(job_id, token, "the laptop was closed")
    token = begin(jobs, job_id)
    jobs.progress(job_id, progress(2, 2, bytes_up=7))
    jobs.succeed(job_id, token, adapter_sha256=None, tokens=1, steps=2)
    assert [(point.step, point.bytes_up) for point in jobs.curve(job_id, "alice")] == [(1, 10), (2, 17)]
    with pytest.raises(JobNotFound):
        jobs.curve(job_id, "bob")
    jobs.deletions.delete(job_id, "alice")
    with pytest.raises(JobNotFound):
        jobs.curve(job_id)
