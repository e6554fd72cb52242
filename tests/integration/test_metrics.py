"""What Prometheus reads of a cloud, on a port of its own: a job's figures, and errors by reason."""

import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.running import run
from tests.support.world import ProcessCloud, build_world


class MeasuredCloud(ProcessCloud):
    def __init__(self, data_folder, models, **options):
        super().__init__(data_folder, models, **options, options=["--metrics-port", "0"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("metrics"), MeasuredCloud)
    yield built
    built.cloud.stop()


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def scrape(world):
    """Samples by name and labels."""
    url = json.loads((world.folder / "cloud.ready").read_text())["metrics_url"]
    answer = httpx.get(url)
    assert answer.status_code == 200
    samples = [one for family in text_string_to_metric_families(answer.text) for one in family.samples]
    return {(one.name, *(one.labels[name] for name in sorted(one.labels))): one.value for one in samples}


def test_a_job_is_counted_from_end_to_end(world):
    _, result = run(world, world.spec(train={"max_steps": 3}), validation=False)
    seen = scrape(world)
    owner = "default"  # of the key that a cloud is started with
    assert seen["privtune_steps_total", owner] == 3
    assert seen["privtune_tokens_total", owner] == result.tokens
    assert seen["privtune_received_bytes_total", owner] == result.bytes_up
    assert seen["privtune_sent_bytes_total", owner] > result.bytes_down  # the bottom's package, too
    assert seen["privtune_jobs", owner, "succeeded"] == 1
    assert seen["privtune_turn_wait_seconds_count", owner] > 3
    assert seen["privtune_ready",] == 1
    assert 0 <= seen["privtune_memory_used_bytes",] < seen["privtune_memory_limit_bytes",]
    assert seen["privtune_disk_free_bytes",] > 0
    assert seen["process_resident_memory_bytes",] > 0


def test_errors_are_counted_by_reason_at_both_doors(world):
    httpx.get(f"{world.cloud.http_url}/v1/fine_tuning/jobs/ftjob-none", headers=bearer(world.cloud.api_key))
    httpx.get(f"{world.cloud.http_url}/v1/models", headers=bearer("pt-" + "x" * 40))
    with pytest.raises(Exception, match="API key"):
        run(world, world.spec(), settings=world.device(api_key="pt-" + "y" * 40, home=world.folder / "another"))
    seen = scrape(world)
    assert seen["privtune_errors_total", "rest", "default", "JOB_NOT_FOUND"] == 1
    assert seen["privtune_errors_total", "rest", "(none)", "UNAUTHENTICATED"] == 1
    assert seen["privtune_errors_total", "grpc", "(none)", "UNAUTHENTICATED"] == 1


def test_nothing_else_answers_there_and_no_other_door_shows_them(world):
    metrics = json.loads((world.folder / "cloud.ready").read_text())["metrics_url"]
    assert httpx.get(metrics.replace("/metrics", "/v1/models")).status_code == 404
    assert httpx.get(f"{world.cloud.http_url}/metrics").status_code == 404
