import json
import re
from xml.etree import ElementTree

import pytest

from spinejax.reports import charts


def parsed(html):
    return ElementTree.fromstring(html)


def line(**record):
    return json.dumps(record)


def test_metrics_of_a_killed_and_resumed_run_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "\n".join(
            [
                line(step=10, kind="train", loss=1.0),
                line(step=20, kind="train", loss=0.9),
                line(step=20, kind="val", loss=0.95),
                "[1, 2]",
                line(kind="train", loss=5.0),
                line(step=20, kind="train", loss=0.8),
                '{"step": 30, "kind": "tr',
            ]
        )
    )
    found = [(r["step"], r["kind"], r["loss"]) for r in charts.read_metrics(path)]
    assert found == [(10, "train", 1.0), (20, "train", 0.8), (20, "val", 0.95)]


def test_absent_empty_and_binary_records_are_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert charts.read_metrics(path) == []
    path.write_text("")
    assert charts.read_metrics(path) == []
    path.write_bytes(b"\x00\xff\xfe\n\n")
    assert charts.read_metrics(path) == []
    assert charts.curves(path).count("nothing recorded yet") == 3


def test_one_line_gives_a_dot_and_not_finite_values_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        line(step=1, kind="train", loss=float("nan"), dice=0.5, learning_rate=1e-3) + "\n"
    )
    html = charts.curves(path)
    assert html.count("nothing recorded yet") == 1
    assert parsed(html).findall(".//circle")


def test_curves_are_well_formed_named_and_drawn_for_both_kinds(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "\n".join(
            line(step=step, kind=kind, loss=1 / step, dice=1 - 1 / step, learning_rate=1e-5)
            for step in range(1, 101)
            for kind in ("train", "val")
        )
    )
    html = charts.curves(path)
    figures = parsed(html).findall("figure")
    assert [figure.find("figcaption/b").text for figure in figures] == [
        "Loss",
        "Dice",
        "Learning rate",
    ]
    for figure in figures[:2]:
        classes = [path.get("class") for path in figure.findall(".//path")]
        assert "line train" in classes and "line val" in classes


def test_a_curve_runs_from_its_first_to_its_last_value():
    html = charts.line_chart("Loss", [("x", "val", [(0.0, 0.0), (50.0, 1.0), (100.0, 0.0)])], 0.0)
    drawn = parsed(html).find(".//path[@class='line val']").get("d")
    (x0, y0), (x1, y1), (x2, y2) = [
        tuple(map(float, pair.split())) for pair in re.split("[ML]", drawn)[1:]
    ]
    assert x0 < x1 < x2 and x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 == y2 > y1  # down is up in SVG


def test_long_curves_are_thinned():
    points = [(float(i), float(i % 7)) for i in range(100_000)]
    html = charts.line_chart("Loss", [("x", "train", points)], 0.0)
    assert len(html) < 20_000


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1500, [0, 500, 1000, 1500]),
        (0.8, 1, [0.8, 0.85, 0.9, 0.95, 1]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low, high, expected):
    about = 4 if high > 100 else 5
    assert charts.ticks(low, high, about) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0, 1.0], [0.3, 0.95], [0.91, 0.99], [0.5] * 50])
def test_dots_stay_inside_and_do_not_cover_each_other(values):
    html = charts.dot_chart([(f"<c{i}>", value) for i, value in enumerate(values)], "Dice")
    dots = parsed(html).findall("circle")
    places = [(dot.get("cx"), dot.get("cy")) for dot in dots]
    assert len(set(places)) == len(values)
    assert all(0 <= float(x.rstrip("%")) <= 100 and float(y) > 0 for x, y in places)
    assert {dot.find("title").text.split(":")[0] for dot in dots} == {
        f"<c{i}>" for i in range(len(values))
    }


def test_no_cases_no_dots():
    assert charts.dot_chart([], "Dice") == ""
