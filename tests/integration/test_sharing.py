"""A job's loss goes to the cloud where its owner says so, and nowhere else."""

import json

from tests.support.running import run, transcript_folder
from tests.support.world import Watcher

FEW = {"train": {"max_steps": 3, "epochs": 1}}


def calls(world, job_id):
    """Names of the calls that the job's transcript has."""
    lines = [line for file in transcript_folder(world, job_id).glob("*.jsonl") for line in file.open()]
    return {one["kind"] for one in map(json.loads, lines) if one["type"] == "call"}


def test_figures_are_shared_only_on_request(local_world):
    jobs = local_world.cloud.jobs
    silent, _ = run(local_world, local_world.spec(**FEW))
    points, said = jobs.curve(silent)
    assert {(point.loss, point.held_out_loss, point.accuracy) for point in points} == {(None, None, None)}
    assert said == {}
    assert points[-1].step == 3
    assert points[-1].tokens > 0
    assert points[-1].bytes_down > 0
    assert "Share" not in calls(local_world, silent)

    watcher = Watcher()
    shares = local_world.device(share_figures=True)
    spoken, result = run(local_world, local_world.spec(**FEW), settings=shares, watcher=watcher)
    points, said = jobs.curve(spoken)
    assert points[-1].loss == watcher.losses[-1]
    assert points[-1].accuracy == result.metrics["accuracy"]
    assert said["statement"] == result.statement.text
    assert "Share" in calls(local_world, spoken)
