import re
from importlib import resources
from xml.etree import ElementTree

import pytest
from jinja2 import Environment, PackageLoader

from spinejax.reports import charts

DRAW = (
    Environment(loader=PackageLoader("spinejax.reports"), autoescape=True, trim_blocks=True)
    .get_template("charts.html")
    .module
)


def parsed(html):
    return ElementTree.fromstring(html)


def drawn(*args, **kwargs):
    return str(DRAW.line_charts(charts.learning_curves(*args, **kwargs)))


def line_chart(*args):
    return str(DRAW.line_chart(charts.line_chart(*args)))


def both(**values):
    """A line of training and one of validation with the same values."""
    return [{"kind": kind, **values} for kind in ("train", "val")]


def test_no_records_are_three_empty_charts():
    assert drawn([]).count("nothing recorded yet") == 3


def test_one_line_gives_a_dot_and_not_finite_values_are_left_out():
    record = dict(step=1, kind="train", loss=float("nan"), dice=0.5, learning_rate=1e-3)
    html = drawn([record])
    assert html.count("nothing recorded yet") == 1
    assert parsed(html).findall(".//circle")


def names(html):
    return [figure.find("figcaption/b").text for figure in parsed(html).findall("figure")]


def test_curves_are_well_formed_named_and_drawn_for_both_kinds():
    records = [
        line
        for step in range(1, 101)
        for line in both(step=step, loss=1 / step, dice=1 - 1 / step, learning_rate=1e-5)
    ]
    html = drawn(records)
    assert names(html) == ["Loss", "Dice", "Learning rate"]
    for figure in parsed(html).findall("figure")[:2]:
        classes = [path.get("class") for path in figure.findall(".//path")]
        assert "line train" in classes and "line val" in classes


def test_accuracy_is_drawn_where_it_is_recorded_and_overlap_has_its_name():
    records = both(step=1, loss=0.5, dice=0.5, accuracy=0.9)
    assert names(drawn(records, "F-score")) == [
        "Loss",
        "Accuracy",
        "F-score",
        "Learning rate",
    ]


@pytest.mark.parametrize(
    ("right", "lowest"), [(0.964, "0.9"), (1.0, "0.9"), (0.3, "0"), (0.85, "0.8"), (0.0, "0")]
)
def test_the_axis_of_accuracy_begins_at_a_round_share_and_ends_at_one(right, lowest):
    html = drawn([dict(step=8, kind="val", loss=0.5, accuracy=right)])
    figure = parsed(html).findall("figure")[1]
    labels = [t.text for t in figure.findall(".//text") if t.get("text-anchor") == "end"]
    shares = [label for label in labels if label != "8"]  # the last step
    assert shares[0] == lowest and float(shares[-1]) <= 1.0


def test_the_lowest_validation_loss_is_the_first_of_equal_ones():
    losses = [0.9, 0.2, 0.5, 0.2, float("nan")]
    records = [dict(step=10 * i, kind="val", loss=loss) for i, loss in enumerate(losses)]
    records += [dict(step=5, kind="train", loss=0.01), dict(step=50, kind="val", loss="low")]
    assert charts.lowest_loss(records) == (10.0, 0.2)
    assert charts.lowest_loss([]) is None
    assert charts.lowest_loss(records[-2:]) is None


@pytest.mark.parametrize(
    ("steps", "every", "at", "epoch"),
    [
        ([70, 140, 210, 250], 1, 140, 2),  # the last evaluation ends the run, within an epoch
        ([0, 70, 140], 1, 140, 2),  # a start that is evaluated is no epoch
        ([35, 70, 140], 0.5, 140, 2),
        ([350, 700], 5, 700, 10),
        ([140], 1, 140, None),
        ([], 1, 140, None),
    ],
)
def test_the_epoch_of_an_evaluation(steps, every, at, epoch):
    records = [dict(step=step, kind="val", loss=1.0) for step in steps]
    assert charts.epoch_of(records, at, every) == epoch


def test_the_best_step_is_marked_in_loss_and_accuracy_with_its_own_value():
    records = [
        line
        for step, loss in ((10, 0.4), (20, 0.1), (30, 0.3))
        for line in both(step=step, loss=loss, dice=0.5, accuracy=1 - loss)
    ]
    html = drawn(records, best=(20.0, "lowest <here>"))
    found = parsed(html).findall("figure")
    marks = [figure.find(".//path[@class='mark']") for figure in found]
    assert [mark is not None for mark in marks] == [True, True, False, False]
    # At the place of the second of three points.
    dots = found[0].findall(".//circle[@class='val dot']")
    assert marks[0].get("d").startswith(f"M{dots[1].get('cx')} ")
    captions = ["".join(figure.find("figcaption").itertext()) for figure in found]
    assert "lowest <here>" in captions[0] and "0.900 at the lowest loss" in captions[1]
    without = [{k: v for k, v in r.items() if k != "accuracy"} for r in records[:-1]]
    assert drawn([*without, records[-1]], best=(20.0, "x")).count('class="mark"') == 1


def test_a_curve_runs_from_its_first_to_its_last_value():
    html = line_chart("Loss", [("x", "val", [(0.0, 0.0), (50.0, 1.0), (100.0, 0.0)])], 0.0)
    drawn = parsed(html).find(".//path[@class='line val']").get("d")
    (x0, y0), (x1, y1), (x2, y2) = [
        tuple(map(float, pair.split())) for pair in re.split("[ML]", drawn)[1:]
    ]
    assert x0 < x1 < x2 and x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 == y2 > y1  # down is up in SVG


def test_long_curves_are_thinned():
    points = [(float(i), float(i % 7)) for i in range(100_000)]
    html = line_chart("Loss", [("x", "train", points)], 0.0)
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
    chart = charts.dot_chart([(f"<c{i}>", value) for i, value in enumerate(values)], "Dice")
    groups = parsed(str(DRAW.dot_chart(chart))).findall("g")
    # A dot says its case when it is pointed at, tapped or reached with the keyboard.
    assert all(g.get("tabindex") == "0" for g in groups)
    assert [g.find("text").text for g in groups] == [g.find("circle/title").text for g in groups]
    dots = [group.find("circle") for group in groups]
    places = [(dot.get("cx"), dot.get("cy")) for dot in dots]
    assert len(set(places)) == len(values)
    assert all(0 <= float(x.rstrip("%")) <= 100 and float(y) > 0 for x, y in places)
    assert {dot.find("title").text.split(":")[0] for dot in dots} == {
        f"<c{i}>" for i in range(len(values))
    }


def records(top, steps, kinds=("train", "val")):
    return [
        dict(step=step, kind=kind, dice=top * step / steps, loss=1 - top * step / steps)
        for step in range(1, steps + 1)
        for kind in kinds
    ]


def test_runs_of_a_row_share_a_colour_and_the_legend_has_the_mean_of_their_last_values():
    groups = [("<a>", [records(0.5, 4), records(0.7, 9)]), ("b", [records(0.25, 6, ("train",))])]
    found = charts.unit_curves(groups, "F-score")
    titles = ["Validation F-score", "Validation loss", "Training F-score", "Training loss"]
    assert [chart.title for chart in found.charts] == titles
    assert [line.kind for line in found.charts[0].lines] == ["u1", "u1"]
    assert [line.kind for line in found.charts[2].lines] == ["u1", "u1", "u2"]
    assert found.legend == [
        ("u1", "<a>", 2, ["0.600", "0.400", "0.600", "0.400"]),
        ("u2", "b", 1, ["–", "–", "0.250", "0.750"]),
    ]
    # The longest run ends at the right edge, the shortest earlier, in proportion to its steps.
    ends = [float(line.paths[0][1].split("L")[-1].split()[0]) for line in found.charts[2].lines]
    across = [(end - charts.LEFT) / (charts.WIDTH - charts.LEFT - charts.RIGHT) for end in ends]
    assert across == pytest.approx([4 / 9, 1, 6 / 9], abs=0.001)
    html = parsed(f"<div>{DRAW.unit_curves(found)}</div>")
    assert [row.find("th").get("class") for row in html.findall(".//tbody/tr")] == [
        "key u1",
        "key u2",
    ]


def test_values_that_no_run_recorded_have_no_chart():
    only = [dict(step=1, kind="val", dice=0.5), dict(step=2, kind="val", loss=float("inf"))]
    [chart] = charts.unit_curves([("a", [only])]).charts
    assert chart.title == "Validation Dice" and len(chart.lines[0].dots) == 1


def bars(*args):
    chart, *_ = charts.bar_charts(*args)
    return chart, parsed(str(DRAW.bar_chart(chart)))


def test_lengths_of_bars_are_in_proportion_to_the_values():
    rows = [
        charts.BarRow(("One",), ("80.0",), ((40.0, None, "40.00"),)),
        charts.BarRow(("A very long name of a <network>",), ("20.0",), (None,)),
        charts.BarRow(("Three",), ("-",), ((60.0, 10.0, "60.00 ± 10.00"),)),
    ]
    chart, svg = bars(["DSC (%)"], rows)
    drawn = [(r.get("class"), float(r.get("width"))) for r in svg.findall(".//rect")]
    assert [kind for kind, _ in drawn] == ["printed", "own", "printed", "own"]
    unit = (charts.BARS_RIGHT - charts.BARS_LEFT) / 100
    assert [width for _, width in drawn] == pytest.approx(
        [80 * unit, 40 * unit, 20 * unit, 60 * unit]
    )
    # The line of a standard deviation is centred on the end of its bar.
    [spread] = [bar.spread for bar in chart.bars if bar.spread]
    assert sum(spread) / 2 == pytest.approx(charts.BARS_LEFT + 60 * unit)
    assert spread[1] - spread[0] == pytest.approx(20 * unit)
    values = [t.text for t in svg.findall(".//text") if t.get("class", "").startswith("value")]
    assert values == ["80.0", "40.00", "20.0", "-", "60.00 ± 10.00"]
    [cut] = [t for t in svg.findall(".//text") if t.find("title") is not None]
    assert cut.text.endswith("…") and cut.find("title").text == rows[1].place[0]
    assert "ours 40.00" in svg.find("svg").get("aria-label")


def test_bars_and_their_words_do_not_cover_each_other():
    places = [(group, name) for group in ("2020", "2019") for name in ("a", "b", "c")]
    rows = [charts.BarRow(place, ("50",), ((100.0, 5.0, "100.00 ± 5.00"),)) for place in places]
    chart, _ = bars(["x"], rows)
    assert [words for _, words in chart.headings] == ["2020", "2019"]
    upper = [bar.y for bar in chart.bars]
    assert all(low - high >= 11 for high, low in zip(upper, upper[1:], strict=False))  # px of text
    between = [*(y for y, _ in chart.headings), *(bar.y + bar.height / 2 for bar in chart.bars)]
    between.sort()
    assert min(b - a for a, b in zip(between, between[1:], strict=False)) >= 11
    last = chart.bars[-1]
    assert last.words_x + 5.7 * len(last.words) < charts.BARS_WIDTH + 10
    assert max(bar.right for bar in chart.bars) == charts.BARS_RIGHT


def test_no_cases_no_dots():
    assert charts.dot_chart([], "Dice") is None


@pytest.mark.parametrize("width", [1280, 390])
def test_a_chart_alone_is_not_much_larger_than_one_of_four(chromium, tmp_path, width):
    rows = [charts.BarRow((name,), ("80.0",), ((40.0, 2.0, "40.00"),)) for name in "abc"]
    css = (resources.files("spinejax.reports") / "page.css").read_text("utf-8")
    sizes = {}
    for count in (1, 4):
        drawn = [DRAW.bar_chart(*charts.bar_charts(["x"], rows)) for _ in range(count)]
        page = tmp_path / f"{count}.html"
        page.write_text(
            "<!doctype html><meta name='viewport' content='width=device-width'>"
            f"<style>{css}</style><main><div class='charts four'>{''.join(drawn)}</div></main>"
        )
        chromium.open(page, width, 900)
        sides = chromium.value(
            "[...document.querySelectorAll('svg.bar-chart')].map("
            "one => one.getBoundingClientRect().width)"
        )
        assert len(sides) == count and max(sides) == min(sides)
        assert chromium.value("document.documentElement.scrollWidth") <= width
        sizes[count] = sides[0]
    assert 1 <= sizes[1] / sizes[4] < 1.1 and sizes[1] > 300
