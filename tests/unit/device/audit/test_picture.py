"""The frontier's picture: valid XML, every point and goal in it, nothing outside the frame, names escaped."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

from privtune.device.audit.report.picture import HEIGHT, WIDTH, Goal, Level, Point, frontier

SVG = "{http://www.w3.org/2000/svg}"


def drawn(points: list[Point]) -> ElementTree.Element:
    text = frontier(
        points, title="A < B & C", x_label="recovered", y_label="accuracy", goals=[Goal(name="bar", x=0.2, y=0.83)]
    )
    return ElementTree.fromstring(text)


def test_every_point_is_drawn_inside_and_named() -> None:
    points = [
        Point(
            series=f"s{i % 5}", name=f"<{i}>", x=(i / 10, max(0.0, i / 10 - 0.05), i / 10 + 0.05), y=(0.6 + i / 50,) * 3
        )
        for i in range(9)
    ]
    tree = drawn(points)
    titles = [element.text or "" for element in tree.iter(f"{SVG}title")]
    assert len(titles) == 9
    assert any("<3>" in title and "recovered 30.0%" in title for title in titles)
    for line in tree.iter(f"{SVG}line"):
        assert all(0 <= float(line.get(key, "-1")) <= WIDTH for key in ("x1", "x2"))
        assert all(0 <= float(line.get(key, "-1")) <= HEIGHT for key in ("y1", "y2"))
    assert tree.get("aria-label") == "A < B & C"
    assert len(list(tree.iter(f"{SVG}rect"))) == 1


def test_a_level_below_all_points_is_inside_and_named() -> None:
    point = Point(series="a", name="one", x=(0.1, 0.1, 0.1), y=(0.9, 0.88, 0.92))
    text = frontier([point], title="t", x_label="x", y_label="y", level=Level(name="for nothing", y=0.5))
    tree = ElementTree.fromstring(text)
    (broken,) = [line for line in tree.iter(f"{SVG}line") if line.get("stroke-dasharray")]
    circle = next(tree.iter(f"{SVG}circle"))
    assert float(circle.get("cy", "0")) < float(broken.get("y1", "0")) == float(broken.get("y2", "1")) < HEIGHT
    assert "for nothing" in text


def test_more_recovery_is_farther_right_and_more_accuracy_higher() -> None:
    few = Point(series="a", name="few", x=(0.1, 0.1, 0.1), y=(0.9, 0.9, 0.9))
    many = Point(series="a", name="many", x=(0.6, 0.6, 0.6), y=(0.7, 0.7, 0.7))
    places = {
        element.text: (float(element.get("x", "0")), float(element.get("y", "0")))
        for element in drawn([many, few]).iter(f"{SVG}text")
    }
    assert places["few"][0] < places["many"][0]
    assert places["few"][1] < places["many"][1]


def test_names_of_near_points_stand_apart_and_the_legend_has_room() -> None:
    """Four settings in one place: each name has a height of its own, and the longest series fits in the picture."""
    series = "a family of settings with a name that is longer than any other in this picture"
    near = [Point(series=f"{series} {i}", name=f"setting-{i}", x=(0.1 + i / 500,) * 3, y=(0.9,) * 3) for i in range(4)]
    tree = drawn(near)
    heights = sorted(float(e.get("y", "0")) for e in tree.iter(f"{SVG}text") if (e.text or "").startswith("setting-"))
    assert len(heights) == 4
    assert all(high - low >= 12 for low, high in pairwise(heights))
    width = float((tree.get("viewBox") or "").split()[2])
    legend = next(e for e in tree.iter(f"{SVG}text") if e.text == f"{series} 0")
    assert float(legend.get("x", "0")) + 7 * len(series) <= width


def test_one_point_alone_has_axes() -> None:
    assert drawn([Point(series="a", name="n", x=(0.0, 0.0, 0.0), y=(1.0, 1.0, 1.0))]) is not None
