"""Alert rules, the board and the page name metrics that exist, and each rule has a unit test, which promtool runs."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from privtune.cloud.meters import REGISTRY
from privtune.cloud.server.metrics_server import CloudCollector
from tests.support.plane import IDLE

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "cloud" / "deploy" / "prometheus"
BOARD = json.loads((ROOT / "cloud" / "deploy" / "grafana" / "dashboards" / "privtune.json").read_text())
RULES = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
NAME = re.compile(r"\b(?:privtune|process)_\w+")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """The labels of every metric that the cloud shows, by the names that queries use."""
    collector = CloudCollector(
        jobs=lambda: {("alice", "queued"): 1},
        load=lambda: IDLE,
        waiting=lambda: {"alice": 1},
        check_ready=lambda: None,
        folder=tmp_path_factory.mktemp("data"),
    )
    found = {}
    for family in [*REGISTRY.collect(), *collector.collect()]:
        mine = {name for sample in family.samples for name in sample.labels} or labels_of(family.name)
        for suffix in SUFFIXES.get(family.type, ("",)):
            found[family.name + suffix] = mine | ({"le"} if suffix == "_bucket" else set())
    return found


def labels_of(family):
    """Of a metric of the module that has no series yet."""
    metric = REGISTRY._names_to_collectors.get(family)
    return set(getattr(metric, "_labelnames", ()))


def queries():
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in BOARD["templating"]["list"]:
        yield variable["name"], variable["query"]["query"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "query"), queries(), ids=lambda value: value[:40])
def test_a_query_names_metrics_and_labels_that_exist(labels, where, query):
    named = set(NAME.findall(query))
    assert named or "up{" in query
    assert named <= set(labels)
    outside = {"instance", "job"}  # Prometheus' own
    for metric, inside in re.findall(r"(\w+)\{([^}]*)\}", query):
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|=|!=)", inside))
        assert used <= labels.get(metric, set()) | outside, metric
    for grouped in re.findall(r"by \(([^)]*)\)", query):
        known = set().union(*(labels[name] for name in named))
        assert {one.strip() for one in grouped.split(",")} <= known | outside


def test_the_page_lists_every_metric(labels):
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(privtune_\w+)`", page, re.MULTILINE))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in labels if name.startswith("privtune_")}
    assert listed == families


def test_every_rule_is_tested_and_says_what_to_do():
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for rule in RULES:
        mine = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]]
        assert {True, False} <= set(mine), f"{rule['alert']}: it must be seen to fire and to stay silent"
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (scripts/install_test_services.sh takes it from Debian's prometheus)")
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
