"""Traces of a real job: each side exports to its own collector; no span has text, labels, names or records.

What the cloud learns of the device's spans is a random trace id, another one for each session.
"""

import os

import pytest

from tests.support.collector import Collector
from tests.support.forked import Forked
from tests.support.world import ProcessCloud, build_world

PLANTED = ("ottilie", "brandvold", "nordlicht", "quarterfinal")
LABELS = ("plaintiffish", "defendantish")
KEYS = {"privtune.job", "privtune.step", "privtune.micro_batch", "privtune.rows"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What cloud and device exported of two jobs, and the jobs' ids."""
    folder, of_cloud, of_device = tmp_path_factory.mktemp("traces"), Collector(), Collector()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in of_cloud.environment.items():
            patch.setenv(name, value)
        world = build_world(folder, ProcessCloud)
    lines = [f"{' '.join(PLANTED)} record {number}\t{LABELS[number % 2]}" for number in range(24)]
    (folder / "secret-file.tsv").write_text("\n".join(["text\tlabel", *lines]))
    jobs = [
        world.cloud.create_job(world.spec(training_file="device://good", train={"max_steps": 3, "checkpoint_every": 2}))
        for _ in range(2)
    ]
    data = f"good={folder / 'secret-file.tsv'}"
    for _ in jobs:
        arguments = ["agent", "--once", "--protect", "none", "--data", data]
        environment = os.environ | world.environment | of_device.environment
        agent = Forked("privtune.device.cli", arguments, environment=environment, output=folder / "screen")
        assert agent.wait(120) == 0, (folder / "screen").read_text()
    of_device.wait_for("session")
    of_cloud.wait_for("checkpoint", "top", "optimiser")
    world.cloud.stop()
    for collector in (of_cloud, of_device):
        collector.stop()
    return of_cloud, of_device, jobs


def test_each_side_exports_its_own_spans(exported):
    of_cloud, of_device, _ = exported
    assert {span.name for span in of_cloud.spans} == {"top", "optimiser", "checkpoint"}
    device = {"session", "step", "bottom", "noise", "send", "wait", "optimiser", "checkpoint"}
    assert {span.name for span in of_device.spans} == device


def test_the_clouds_spans_belong_to_a_session_of_the_device_and_sessions_have_nothing_in_common(exported):
    of_cloud, of_device, jobs = exported
    sessions = {span.trace_id: span for span in of_device.spans if span.name == "session"}
    assert len(sessions) == len(jobs) == 2
    assert not any(span.parent_span_id for span in sessions.values())
    assert {span.trace_id for span in of_cloud.spans} == set(sessions)
    for span in of_cloud.spans:
        assert span.parent_span_id == sessions[span.trace_id].span_id
        assert not span.trace_state


def test_no_span_has_text_labels_names_or_records(exported):
    of_cloud, of_device, jobs = exported
    for collector in (of_cloud, of_device):
        written = b"".join(collector.bodies).lower()
        for word in (*PLANTED, *LABELS, "secret-file", "good", "alice", "enc"):
            assert word.encode() not in written, word
        for span in collector.spans:
            assert not span.events
            for one in span.attributes:
                assert one.key in KEYS
                assert one.value.WhichOneof("value") == "int_value" or one.value.string_value in jobs
