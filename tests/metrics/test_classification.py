"""Scores of patches against arithmetic by hand and the paper's own figures."""

import json
from fractions import Fraction

import numpy as np
import pytest

from spinejax.metrics import aggregate, classification
from spinejax.metrics.classification import Counts

FIELDS = dict(size=32, stride=12, label_rule="majority")


def test_two_cases_by_hand():
    scores = classification.patch_scores(
        {"a": Counts(tp=30, fp=10, fn=20, tn=40), "b": Counts(tp=1, fp=1, fn=0, tn=8)}, **FIELDS
    )
    a, b = scores["cases"]["a"], scores["cases"]["b"]
    assert [a[name] for name in ("tp", "fp", "fn", "tn")] == [30, 10, 20, 40]
    expected = {  # metric: a, b, both added up (31, 11, 20, 48)
        "precision": (Fraction(30, 40), Fraction(1, 2), Fraction(31, 42)),
        "specificity": (Fraction(40, 50), Fraction(8, 9), Fraction(48, 59)),
        "accuracy": (Fraction(70, 100), Fraction(9, 10), Fraction(79, 110)),
        "f_score": (Fraction(60, 90), Fraction(2, 3), Fraction(62, 93)),
        "recall": (Fraction(30, 50), Fraction(1), Fraction(31, 51)),
    }
    assert set(scores["summary"]) == set(expected) == set(classification.PATCH_METRICS)
    for metric, (of_a, of_b, pooled) in expected.items():
        assert a[metric] == pytest.approx(float(of_a))
        assert b[metric] == pytest.approx(float(of_b))
        row = scores["summary"][metric]
        assert row["n"] == 2
        assert row["pooled"] == pytest.approx(float(pooled))
        assert row["mean"] == pytest.approx(float((of_a + of_b) / 2))
        assert row["std"] == pytest.approx(float(abs(of_a - of_b) / 2))  # of the population
    assert {key: scores[key] for key in FIELDS} == FIELDS
    assert scores["balanced_training"] is None
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_counts_of_labels_are_the_confusion_matrix():
    rng = np.random.default_rng(0)
    label, found = rng.random((2, 500)) > 0.7
    row = classification.patch_scores({"a": classification.count(found, label)}, **FIELDS)["cases"][
        "a"
    ]
    matrix = np.zeros((2, 2), int)
    np.add.at(matrix, (label.astype(int), found.astype(int)), 1)
    assert [[row["tn"], row["fp"]], [row["fn"], row["tp"]]] == matrix.tolist()


@pytest.mark.parametrize(
    "counts, expected",
    [
        (Counts(0, 0, 0, 9), {"precision": 1, "recall": 1, "f_score": 1, "specificity": 1}),
        (Counts(0, 0, 3, 6), {"precision": 0, "recall": 0, "f_score": 0, "specificity": 1}),
        (Counts(0, 3, 0, 6), {"precision": 0, "recall": 0, "f_score": 0, "specificity": 6 / 9}),
        (Counts(9, 0, 0, 0), {"precision": 1, "recall": 1, "f_score": 1, "specificity": 1}),
    ],
)
def test_cases_of_one_class_are_defined(counts, expected):
    scores = classification.patch_scores({"a": counts}, **FIELDS)
    for metric, value in expected.items():
        assert scores["cases"]["a"][metric] == value
        assert scores["summary"][metric]["n"] == 1


def test_balanced_training_says_how_much_of_it_was_used():
    scores = classification.patch_scores(
        {}, **FIELDS, balanced_training=(Counts(40, 5, 10, 45), 1234)
    )
    assert scores["balanced_training"] == {
        "tp": 40, "fp": 5, "fn": 10, "tn": 45, "of": 1234, "used": 100
    }  # fmt: skip
    nothing = {"mean": None, "std": None, "median": None, "pooled": None, "n": 0}
    assert all(row == nothing for row in scores["summary"].values())


def test_table_2_of_the_paper_is_consistent_with_a_prevalence():
    """PRE 90.1, SPE 99.4, F-score 90.1 give the printed ACC 98.8 where 5.7 % are vertebra."""
    tp, positives, negatives = 51_357, 57_000, 943_000
    fp = round(tp / 0.901) - tp
    counts = Counts(tp=tp, fp=fp, fn=positives - tp, tn=negatives - fp)
    row = classification.patch_scores({"a": counts}, **FIELDS)["cases"]["a"]
    for metric, value in {"precision": 0.901, "specificity": 0.994, "accuracy": 0.988}.items():
        assert row[metric] == pytest.approx(value, abs=1.1e-3)
    assert row["f_score"] == pytest.approx(0.901, abs=1e-3)


def test_the_table_has_a_line_per_metric():
    scores = classification.patch_scores(
        {"a": Counts(tp=30, fp=10, fn=20, tn=40), "b": Counts(tp=1, fp=1, fn=0, tn=8)}, **FIELDS
    )
    lines = [line.split() for line in aggregate.patch_table(scores).splitlines()]
    assert [line[0] for line in lines] == ["patches", *classification.PATCH_METRICS]
    assert lines[1] == ["precision", "0.6250", "±", "0.1250", "0.7381", "2"]  # 31 / 42
    empty = aggregate.patch_table(classification.patch_scores({}, **FIELDS)).splitlines()
    assert empty[1].split() == ["precision", "-", "-", "0"]
