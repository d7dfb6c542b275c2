import csv
import io
import itertools
import re

import numpy as np
import pytest

from spinejax.configs import chasppraunet
from spinejax.reports import published, tables


def record(dice, **more):
    return {"binary": {"dice": dice, "iou": None if dice is None else dice / (2 - dice), **more}}


def scores(**cases):
    return {"cases": {case: record(dice) for case, dice in cases.items()}}


def config(**changes):
    value = chasppraunet.get_config()
    value.update_from_flattened_dict(changes)
    return value.to_dict()


def all_rows():
    return [row for table in published.PUBLISHED.values() for row in table]


def test_published_tables_have_sixty_rows_of_percentages():
    assert len(all_rows()) == 60
    assert {table: len(rows) for table, rows in published.PUBLISHED.items()} == {
        **dict.fromkeys((3, 4, 5, 6, 7, 8), 8),
        9: 4,
        10: 8,
    }
    for row in all_rows():
        assert all(80 < value < 100 for value in (row.dice, row.iou, row.precision, row.recall))


def test_published_rows_that_the_paper_prints_twice_agree():
    """Tables 9 and 10 repeat the best rows of Tables 3 to 8: a slip of typing would show."""
    origin = {
        ("CHASPPRAU-Net", "Image Normalization"): 3,
        ("CHASPPRAU-Net", "Data Augmentation"): 5,
        ("3D MRU-Net", "Image Normalization"): 4,
        ("3D MRU-Net", "Data Augmentation"): 6,
        ("3D MRU-Net", "Residual Blocks"): 7,
        ("3D MRU-Net", "Dropout Regularization"): 8,
    }
    for row in (*published.PUBLISHED[9], *published.PUBLISHED[10]):
        [same] = [
            other
            for other in published.PUBLISHED[origin[row.system, row.setting]]
            if other.dataset == row.dataset and other.setting == "−1000 to 800"
        ]
        assert (row.dice, row.iou, row.precision, row.recall) == (
            same.dice,
            same.iou,
            same.precision,
            same.recall,
        )


def test_the_paper_contradicts_itself_as_stated():
    found = published.contradictions()
    assert (found.rows, found.iou_above_dice, found.dice_below_both) == (60, 44, 60)
    assert found.nearest_iou > 0.6  # no row satisfies IoU = D / (2 - D) within 0.6 points
    assert int(found.nearest_iou) == 4
    assert (found.dice_below_bound, found.background_above_one) == (18, 21)
    assert found.mean_miou_gap < 1.0 < 8.0 < found.mean_iou_gap


def test_the_bounds_that_the_contradictions_use_hold_for_masks_and_their_averages():
    generator = np.random.default_rng(0)
    found = []
    for _ in range(500):
        truth, guess = generator.random((2, 12)) < generator.random((2, 1))
        tp = np.sum(truth & guess)
        if not truth.any() or not guess.any():
            continue
        found.append(
            (
                2 * tp / (truth.sum() + guess.sum()),
                tp / (truth | guess).sum(),
                tp / guess.sum(),
                tp / truth.sum(),
            )
        )
    dice, iou, precision, recall = np.array(found).T
    np.testing.assert_allclose(iou, dice / (2 - dice), atol=1e-12)
    assert (dice >= np.minimum(precision, recall) - 1e-12).all()
    assert (dice >= precision + recall - 1 - 1e-12).all()
    groups = np.array(found)[: len(found) // 7 * 7].reshape(-1, 7, 4).mean(axis=1)
    assert (groups[:, 1] <= groups[:, 0]).all()
    assert (groups[:, 0] >= groups[:, 2] + groups[:, 3] - 1).all()
    assert (groups[:, 0] < groups[:, 2:].min(axis=1)).any()  # which averages can do


def test_reasons_name_the_counts_and_say_phantom_only_for_phantoms():
    text = " ".join(published.why_not_comparable())
    for words in ("44 of the 60 rows", "60 of 60", "18 rows", "miou_with_background"):
        assert words in text
    assert "phantom" not in text
    assert "synthetic phantoms" in published.why_not_comparable(phantom=True)[0]
    assert len(published.why_not_comparable(quoted=True)) == 1


@pytest.mark.parametrize(
    ("normalise", "augmented", "table", "dice"),
    [
        ("hu", True, 5, [93.72, 94.58]),
        ("hu", False, 3, [90.45, 91.63]),
        ("minmax_to_hu", True, 5, [93.72, 94.58]),
        ("zscore", True, 5, [92.63, 92.49]),
        ("unit", False, 3, [90.18, 89.79]),
        ("sym", True, 5, [93.14, 94.34]),
    ],
)
def test_rows_follow_normalisation_and_augmentation(normalise, augmented, table, dice):
    rows = published.matching_rows(
        config(**{"data.normalise": normalise, "augment.enabled": augmented})
    )
    assert [row.dice for row in rows] == dice
    assert [row.dataset for row in rows] == ["VerSe 2020", "VerSe 2019"]
    assert {row.table for row in rows} == {table}


def test_other_networks_get_table_11_or_nothing():
    unet = config(**{"model.name": "unet"})
    assert published.matching_rows(unet) == ()
    [row] = tables.compare(unet, None)
    assert (row.dice, row.parameters, row.source) == (90.40, 1_941_105, "Table 11")
    assert tables.compare(config(**{"model.name": "other"}), None) == []
    assert tables.compare({}, None) == []


def test_comparison_puts_the_mean_in_per_cent_beside_both_datasets():
    ours, *theirs = tables.compare(
        config(**{"data.source": "phantom"}), scores(a=0.9, b=0.8), 1_258_384
    )
    assert ours.ours and ours.dice == pytest.approx(85.0)
    assert ours.data == "2 synthetic scans (test), mean over scans"
    assert ours.parameters == 1_258_384
    assert [row.iou_unstated for row in theirs] == [92.25, 95.93]
    assert not any(row.ours or row.iou for row in theirs)


def test_summary_agrees_with_numpy_and_leaves_undefined_cases_out():
    given = {
        "cases": {
            "a": record(0.9, hd95_mm=2.0),
            "b": record(0.4, hd95_mm=None),
            "c": record(0.8, hd95_mm=float("nan")),
            "d": record(None),
        },
        "summary": {"binary": {"dice": {"pooled": 0.77, "mean": None}}},
    }
    rows = {row.metric.key: row for row in tables.summarise(given)}
    values = np.array([0.9, 0.4, 0.8])
    dice = rows["dice"]
    assert dice.cases == 3 and dice.pooled == 0.77
    np.testing.assert_allclose(
        (dice.mean, dice.std, dice.median, dice.low, dice.high),
        (values.mean(), values.std(), np.median(values), 0.4, 0.9),
    )
    assert rows["hd95_mm"].cases == 1 and rows["hd95_mm"].pooled is None
    assert "assd_mm" not in rows


def test_cases_are_ranked_by_dice_whatever_their_order():
    for order in itertools.permutations([("a", 0.5), ("b", 0.9), ("c", 0.5), ("d", 0.1)]):
        assert tables.ranked(scores(**dict(order))) == [
            ("d", 0.1),
            ("a", 0.5),
            ("c", 0.5),
            ("b", 0.9),
        ]
    assert tables.ranked(scores(a=None)) == []


def test_csv_reads_back_exactly():
    given = scores(**{"x,1": 1 / 3, 'quote"d': None})
    rows = list(csv.DictReader(io.StringIO(tables.tables_csv({"test": given}))))
    assert [row["case"] for row in rows] == ["x,1", 'quote"d']
    assert float(rows[0]["dice"]) == 1 / 3 and rows[1]["dice"] == ""
    assert rows[0]["split"] == "test" and rows[0]["hd95_mm"] == ""


def test_markdown_tables_have_equal_columns_and_all_rows():
    text = tables.tables_markdown(config(), {"test": scores(a=0.9, b=0.8)}, 12)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "0.850 ± 0.050" in text and "93.72" in text and "Not comparable" in text
    assert "phantom" not in text
