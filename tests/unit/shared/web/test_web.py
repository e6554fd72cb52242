"""What pages of both sides share."""

import re
from importlib.resources import files
from xml.etree import ElementTree

import pytest

from privtune.shared.web import page_formats
from privtune.shared.web.chart import Curve, svg
from privtune.shared.web.headers import CONTENT_SECURITY_POLICY, same_site

STATIC = files("privtune.shared.web") / "static"


def test_the_pages_load_nothing_from_elsewhere():
    for path in STATIC.iterdir():
        assert not re.search(r"@import|url\(|https?:|innerHTML|eval", path.read_text()), path
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'")


def test_a_curve_says_in_words_what_it_shows_and_stays_inside():
    curve = Curve(title='Loss <"of it">', points=[(1, 2.0), (5, 0.25)], steps=10, unit="nats")
    tree = ElementTree.fromstring(svg(curve))
    assert tree.get("aria-label") == 'Loss <"of it"> up to step 5: from 0.25 nats to 2 nats, now 0.25 nats'
    line = next(one for one in tree if one.tag == "polyline").get("points")
    assert all(0 <= float(part) <= 300 for part in re.split("[ ,]", line))
    assert "style" not in svg(curve)  # the policy would refuse it


@pytest.mark.parametrize("points", [[], [(1, 0.0)], [(1, float("nan")), (2, float("inf"))], [(1, -3.0), (2, 1e-12)]])
def test_any_curve_can_be_drawn(points):
    ElementTree.fromstring(svg(Curve(title="x", points=points, steps=0)))


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({"host": "a:1", "origin": "http://a:1"}, True),
        ({"host": "a:1", "origin": "https://a:1"}, True),
        ({"host": "a:1", "origin": "http://a:2"}, False),
        ({"host": "a:1", "origin": "null", "sec-fetch-site": "same-origin"}, False),
        ({"host": "a:1", "sec-fetch-site": "same-origin"}, True),
        ({"host": "a:1", "sec-fetch-site": "same-site"}, False),
        ({"host": "a:1"}, False),
    ],
)
def test_only_our_own_pages_may_change_something(headers, ours):
    assert same_site(headers) is ours


def test_formats():
    assert [page_formats.size(value) for value in (0, 999, 1000, 1234567, 8.6e9)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 MB",
        "8.6 GB",
    ]
    assert [page_formats.number(value) for value in (0, 0.04123, 3.14159, 12345)] == ["0", "0.0412", "3.14", "12,345"]
    spans = [page_formats.duration(value) for value in (0.2, 89, 90, 3600 * 3 + 1200, 86400 * 5)]
    assert spans == ["0 s", "89 s", "2 min", "3 h 20 min", "5 days"]
    assert [page_formats.ago(at, 100.0) for at in (None, 100, 60, 160)] == ["never", "just now", "40 s ago", "in 60 s"]
