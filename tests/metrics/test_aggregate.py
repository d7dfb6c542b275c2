"""Statistics over cases, and their text tables (of vertebrae: test_identification)."""

from spinejax.metrics import aggregate

ROW = {"mean": 0.5, "std": 0.25, "median": 0.5, "pooled": 0.625, "n": 2}


def test_undefined_values_stay_out_of_the_statistics():
    cases = {"a": {"x": 1.0, "y": None}, "b": {"x": 0.0, "y": None}, "c": {"x": None, "y": None}}
    found = aggregate.over_cases(cases, {"x": 0.7, "y": None})
    assert found["x"] == {"mean": 0.5, "std": 0.5, "median": 0.5, "pooled": 0.7, "n": 2}
    assert found["y"] == dict.fromkeys(ROW) | {"n": 0}
    assert aggregate.over_cases({}, {"x": 0.7})["x"] == dict.fromkeys(ROW) | {"n": 0}


def test_tables_have_a_line_per_case_and_per_metric():
    nothing = dict.fromkeys(ROW) | {"n": 0}
    scores = {
        "cases": {
            "long_name": {"binary": {"dice": 0.75}, "labelled_range": {"dice": None}},
            "b": {"binary": {"dice": 0.25}, "labelled_range": {"dice": 0.5}},
        },
        "summary": {"binary": {"dice": ROW, "hd": nothing}, "labelled_range": {"dice": ROW}},
        "missing": {"prediction": [f"c{i}" for i in range(7)], "reference": []},
        "without_vertebrae": {"b": "why"},
    }
    lines = [line.split() for line in aggregate.case_table(scores).splitlines()]
    assert lines == [
        ["case", "dice", "dice", "(range)"],
        ["long_name", "0.7500", "-"],
        ["b", "0.2500", "0.5000"],
    ]
    lines = aggregate.summary_table(scores).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["metric", "mean", "±", "std", "median", "pooled", "n"],
        ["dice", "0.5000", "±", "0.2500", "0.5000", "0.6250", "2"],
        ["hd", "-", "-", "-", "0"],
        ["dice", "(labelled", "range)", *lines[1].split()[1:]],
    ]
    assert lines[4:] == [
        "cases: 2",
        "no scores per vertebra, why: b",
        "not scored, no prediction: c0, c1, c2, c3, c4 and 2 more",
    ]


def test_one_case_has_no_spread():
    row = {**ROW, "std": 0.0, "n": 1}
    scores = {"summary": {"binary": {"dice": row}, "labelled_range": {}}, "cases": {"a": {}}}
    lines = aggregate.summary_table({**scores, "missing": {}}).splitlines()
    assert lines[1].split() == ["dice", "0.5000", "0.5000", "0.6250", "1"]
