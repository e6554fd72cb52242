"""The curve of a job: few points, over all sessions, without what a resume undid."""

from itertools import count, pairwise

import pytest

from privtune.cloud.jobs.progress_curve import MAX_POINTS, ProgressCurve
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.states import JobProgress
from privtune.shared.errors import JobNotFound, SessionSuperseded
from tests.support.builders import least_spec
from tests.support.leases import HOLDER, begin


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
    assert jobs.curve(job_id) == ([], {})
    token = begin(jobs, job_id)
    jobs.progress(job_id, progress(1, 2, bytes_up=10))
    jobs.disconnected(job_id, token, "the laptop was closed")
    token = begin(jobs, job_id)
    jobs.progress(job_id, progress(2, 2, bytes_up=7))
    jobs.succeed(job_id, token, adapter_sha256=None, tokens=1, steps=2)
    assert [(point.step, point.bytes_up) for point in jobs.curve(job_id, "alice")[0]] == [(1, 10), (2, 17)]
    with pytest.raises(JobNotFound):
        jobs.curve(job_id, "bob")
    jobs.deletions.delete(job_id, "alice")
    with pytest.raises(JobNotFound):
        jobs.curve(job_id)


def test_what_a_device_shares_joins_the_step_that_it_is_about(jobs, store):
    job_id = jobs.create("alice", least_spec()).id
    first = begin(jobs, job_id)
    jobs.share(job_id, first, 0, figures={}, said={"statement": "a claim"})
    for step in (1, 2):
        jobs.progress(job_id, progress(step, 4))
    jobs.share(job_id, first, 1, figures={"loss": 0.5}, said={})
    jobs.record_checkpoint(job_id, first, 2)
    second = jobs.leases.claim(job_id, HOLDER)
    again = Jobs(store)  # the cloud restarts
    again.share(job_id, second, 2, figures={"accuracy": 1.0}, said={"verdict": "found nothing"})
    again.start(job_id, second)
    points, said = again.curve(job_id)
    assert [(point.step, point.loss, point.accuracy) for point in points] == [(1, 0.5, None), (2, None, 1.0)]
    assert said == {"statement": "a claim", "verdict": "found nothing"}
    with pytest.raises(SessionSuperseded):
        jobs.share(job_id, first, 2, figures={"loss": 0.1}, said={})
