"""The numbers of paper B, against its text, and what is said of them."""

import itertools

import numpy as np
import pytest

from spinejax.reports import published_b as paper


@pytest.fixture(scope="module")
def text(real_data):
    """The paper as text, cells of its tables parted by tabs."""
    found = sorted((real_data.parent / "papers").glob("001_*.txt"))
    if not found:
        pytest.skip("the text of paper B is not here")
    return found[0].read_text(encoding="utf-8")


def test_what_the_text_quotes_is_quoted_so(text):
    quoted = paper.QUOTED_DIFFERENCES
    measures = ("precision", "specificity", "accuracy", "f_score")
    groups = [
        "(" + ", ".join(f"{quoted[name, measure]:g}%" for measure in measures) + ")"
        for name in ("VGG net", "ResNet", "DenseNet")
    ]
    assert ", ".join(groups[:2]) + f", and {groups[2]} average in (PRE, SPE, ACC, F-score)" in text
    dice = [f"{quoted[name, 'dice']:g}%" for name in ("VGG net", "ResNet", "DenseNet")]
    assert f"{dice[0]}, {dice[1]}, and {dice[2]} average in DSC" in text
    assert f"improvement of {quoted['MultiResuNet', 'dice']:g}% DSC" in text
    for words in (
        "achieved 83.7% of Dice",
        "mean DSC of 86.17%",
        "(89.8% DSC)",
        "a mean DSC of 87.3%",
        "achieved an 86.1% DSC",
        "(89.9% DSC)",
        paper.PAPER_B.rpartition(" ")[2],
    ):
        assert words in text
    assert sorted(paper.QUOTED_DICE.values()) == [83.7, 86.1, 86.17, 87.3, 89.8, 89.9]


def test_rows_are_found_by_model_name():
    def rows(name):
        return paper.matching_rows({"model": {"name": name}})

    for name, printed in (
        ("opconvnet", "OP-convNet"),
        ("vgg", "VGG net"),
        ("resnet", "ResNet"),
        ("densenet", "DenseNet"),
    ):
        assert [row.name for row in rows(name)] == [printed, printed]
    patches, pixels = rows("unet")
    assert patches is None and pixels.dice == 83.7
    assert rows("chasppraunet") == paper.matching_rows({}) == (None, None)
    assert paper.matching_rows({"model": 3}) == (None, None)


def test_the_formulas_are_those_of_counts():
    generator = np.random.default_rng(0)
    for tp, fp, fn, tn in generator.integers(1, 1000, (200, 4)).astype(float):
        precision, recall = 100 * tp / (tp + fp), 100 * tp / (tp + fn)
        specificity, dice = 100 * tn / (tn + fp), 200 * tp / (2 * tp + fp + fn)
        total = tp + fp + fn + tn
        assert paper.jaccard_of(dice) == pytest.approx(100 * tp / (tp + fp + fn))
        assert paper.f1_of(precision, recall) == pytest.approx(dice)
        assert paper.recall_of(precision, dice) == pytest.approx(recall)
        three = precision, specificity, dice
        assert paper.prevalence_of(*three) == pytest.approx(100 * (tp + fn) / total)
        assert paper.accuracy_of(*three) == pytest.approx(100 * (tp + tn) / total)


def test_what_rounding_leaves_open_is_not_wider_than_said():
    """The bounds come from the corners; nothing inside the box may leave them."""
    found = paper.findings()
    generator = np.random.default_rng(1)
    for row, share, accuracy in zip(paper.TABLE_2, found.prevalence, found.accuracy, strict=True):
        centre = np.array([row.precision, row.specificity, row.f_score])
        for values in centre + generator.uniform(-0.05, 0.05, (500, 3)):
            assert share.low <= paper.prevalence_of(*values) <= share.high
            assert accuracy.low <= paper.accuracy_of(*values) <= accuracy.high


def test_the_paper_contradicts_itself_as_stated():
    found = paper.findings()

    def apart(items):
        return {item.name: round(item.value, 1) for item in items if not item.agrees}

    assert len(found.jaccard) == 10
    assert apart(found.jaccard) == {"VGG net": 69.3, "OP-convNet": 81.7}
    assert found.bf_is_dice == 0
    assert apart(found.bf_mixed) == {"ResNet": 80.5}
    assert apart(found.recall) == {"VGG net": 98.2, "ResNet": 94.6, "DenseNet": 93.4}
    assert apart(found.accuracy) == {"DenseNet": 98.9}
    shares = {item.name: item for item in found.prevalence}
    assert round(shares["OP-convNet"].value, 1) == 5.7
    pairs = itertools.combinations(("VGG net", "ResNet", "DenseNet", "OP-convNet"), 2)
    assert all(shares[a].high < shares[b].low for a, b in pairs)
    assert found.differences == (16, 16)
    assert found.dice_in_text == (("D-TVNet", 86.17, 86.7),)


def test_reasons_name_the_counts_and_say_phantom_only_for_phantoms():
    reasons = paper.why_not_comparable()
    words = " ".join(reasons)
    for part in ("0 of 10 rows", "8 of 10 rows", "98.2 % (VGG net)", "80.5, not 83.7", "86.17"):
        assert part in words
    assert "phantom" not in words
    assert paper.why_not_comparable(phantom=True)[1:] == reasons
    assert "phantoms" in paper.why_not_comparable(phantom=True)[0]
