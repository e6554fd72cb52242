"""A pytest plugin for CI, where everything is installed: a test that skips itself there is a failure.

Loaded by `.ci/run` with `-p tests.no_skips` when the real data sets are at hand, so that a test which needs them can't
drop out of the run unnoticed. Reasons to skip remain a missing GPU, and a sandbox in which nothing may be traced.
"""

from __future__ import annotations

import pytest

ALLOWED = ("gpu", "cuda", "strace may not trace")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Turn a skip at run time (in the test or a fixture) into a failure that repeats the reason."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """Turn a skipped module (`importorskip`, `skip(allow_module_level=True)`) into a collection error."""
    report = yield
    if report.skipped:
        _refuse(report)
    return report


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(word in reason.lower() for word in ALLOWED):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {reason}"
