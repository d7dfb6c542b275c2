"""Tables of scores: over scans, of patches, and a run beside the papers."""

import csv
import io
import itertools
import re

import numpy as np
import pytest

from spinejax.configs import chasppraunet
from spinejax.metrics.classification import Counts, patch_scores
from spinejax.reports import papers, tables


def record(dice, **more):
    return {"binary": {"dice": dice, "iou": None if dice is None else dice / (2 - dice), **more}}


def scores(**cases):
    return {"cases": {case: record(dice) for case, dice in cases.items()}}


def config(**changes):
    value = chasppraunet.get_config()
    value.update_from_flattened_dict(changes)
    return value.to_dict()


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
    given = config(**{"data.normalise": normalise, "augment.geometry": augmented})
    [(_, beside)] = tables.beside_paper_a(given, None).tables
    assert [float(line.cells[0]) for line in beside.lines] == dice
    for line, data in zip(beside.lines, ("VerSe 2020", "VerSe 2019"), strict=True):
        assert line.more.startswith(data) and line.more.endswith(f"Table {table}")


def test_other_networks_get_table_11_or_nothing():
    unet = config(**{"model.name": "unet"})
    beside = tables.beside_paper_a(unet, None)
    [(_, table)] = beside.tables
    [line] = table.lines
    assert (line.cells[0], line.cells[-1]) == ("90.40", "1,941,105")
    assert line.name == "U-Net (Kim et al.)" and line.more.endswith("Table 11")
    assert beside.reasons == tuple(papers.reasons("saeed2023", phantom=False, quoted=True))
    assert tables.beside_paper_a(config(**{"model.name": "other"}), None) is None
    assert tables.beside_paper_a({}, None) is None


def test_comparison_puts_the_mean_in_per_cent_beside_both_datasets():
    given = config(**{"data.source": "phantom"})
    beside = tables.beside_paper_a(given, scores(a=0.9, b=0.8), 1_258_384)
    [(_, table)] = beside.tables
    ours, *theirs = table.lines
    assert beside.has_ours and ours.kind == "ours" and ours.cells[0] == "85.00"
    assert ours.more == "2 synthetic scans (test), mean over scans"
    assert ours.cells[-1] == "1,258,384"
    unstated = table.header.index("IoU, unstated which") - 1
    assert [line.cells[unstated] for line in theirs] == ["92.25", "95.93"]
    assert ours.cells[unstated] == tables.DASH
    for line in theirs:  # neither of our two
        assert line.kind == "theirs" and line.cells[1:3] == (tables.DASH, tables.DASH)


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
    text = tables.tables_markdown(config(), {"test": scores(a=0.9, b=0.8)}, {}, 12)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "0.850 ± 0.050" in text and "93.72" in text and "Not comparable" in text
    assert "phantom" not in text


def test_a_single_scan_has_values_without_a_spread():
    table = tables.score_table(scores(a=0.9))
    assert table.header == ("", "value") and table.lines[0].cells == ("0.900",)
    assert "±" not in tables.tables_markdown(config(), {"test": scores(a=0.9)}, {}, 12)
    # A metric that one scan of several has.
    given = scores(a=0.9, b=0.8)
    given["cases"]["a"]["binary"]["hd95_mm"] = 2.0
    [row] = [line for line in tables.score_table(given).lines if line.name == "HD95, mm"]
    assert row.cells == ("2.00", "2.00", "2.00", tables.DASH, "1")


# Patches and paper B.


def scored(**cases):
    """A file of patch scores; each case is (tp, fp, fn, tn)."""
    counts = {name: Counts(*values) for name, values in cases.items()}
    return patch_scores(counts, size=32, stride=12, label_rule="majority")


def patch_config(model="opconvnet", source="verse"):
    return {"name": "run", "model": {"name": model}, "data": {"source": source}}


SCORES = {
    "cases": {
        "a": {"binary": dict(recall=0.9, bf_score=0.5, f1_pre_sen=0.8, iou=0.7, dice=0.8)},
        "b": {"binary": dict(recall=0.7, bf_score=0.3, f1_pre_sen=0.6, iou=0.5, dice=0.6)},
    }
}


def beside_b(*args):
    """Title of a table of paper B -> its lines; empty where there is none."""
    beside = tables.beside_paper_b(*args)
    return {} if beside is None else {title: table.lines for title, table in beside.tables}


def test_table_2_has_the_pooled_patches_of_the_run_then_its_own_network_then_the_rest():
    # Pooled: 60 tp, 20 fp, 20 fn, 300 tn.
    patches = scored(a=(50, 10, 0, 140), b=(10, 10, 20, 160))
    lines = beside_b(patch_config("resnet"), None, patches, "test")["Patches (Table 2)"]
    ours, match, *rest = lines
    assert ours.kind == "ours" and ours.cells == ("75.0", "93.8", "90.0", "75.0")
    assert ours.more == "2 scans (test), pooled, 32 × 32 pixels, stride 12, majority rule"
    assert match.kind == "theirs matched" and match.name == "ResNet"
    assert match.cells == ("76.2", "98.9", "98.7", "84.4")
    assert [line.name for line in rest] == ["VGG net", "DenseNet", "OP-convNet"]


def test_table_3_has_the_mean_over_scans_and_keeps_the_bf_score_of_the_paper_apart():
    lines = beside_b(patch_config(source="phantom"), SCORES, None, "val")["Pixels (Table 3)"]
    ours, match, *rest = lines
    dash = tables.DASH
    assert ours.cells == ("80.0", "40.0", "70.0", dash, "60.0", "70.0")
    assert ours.more == "2 synthetic scans (val), mean over scans"
    assert match.name == "OP-convNet"
    assert match.cells == ("90.3", dash, dash, "90.2", "82.3", "89.9")
    assert len(rest) == 9 and all(line.kind == "theirs" for line in rest)


@pytest.mark.parametrize(
    ("model", "patches", "pixels"),
    [
        ("opconvnet", "OP-convNet", "OP-convNet"),
        ("vgg", "VGG net", "VGG net"),
        ("resnet", "ResNet", "ResNet"),
        ("densenet", "DenseNet", "DenseNet"),
        ("padbn", None, "PaDBN Model"),
        ("unet", None, "UNet"),
        ("saunet", None, "SAU-Net"),
        ("chasppraunet", None, None),
    ],
)
def test_rows_are_found_by_the_name_of_the_network(model, patches, pixels):
    found = beside_b(patch_config(model), None, None)
    firsts = {title: lines[0].name for title, lines in found.items()}
    assert firsts.get("Patches (Table 2)") == patches
    assert firsts.get("Pixels (Table 3)") == pixels
    assert tables.beside_paper_b({"model": 3}, None, None) is None


def test_networks_without_a_row_and_runs_without_scores():
    found = beside_b(patch_config("unet"), SCORES, scored(a=(1, 1, 1, 1)))
    assert list(found) == ["Pixels (Table 3)"] and len(found["Pixels (Table 3)"]) == 11
    assert not tables.beside_paper_b(patch_config(), None, None).has_ours


def cells(table):
    return [(line.name, *line.cells) for line in table.lines]


def test_the_table_of_patches_pools_counts_and_puts_the_worst_scan_first():
    table = tables.patch_table(scored(good=(99, 1, 1, 899), bad=(10, 40, 90, 860)))
    rows = cells(table)
    assert table.header[:3] == ("scan", "patches", "vertebra")
    assert [row[0] for row in rows] == ["All, pooled", "Mean ± std over scans", "bad", "good"]
    assert rows[0][1:4] == ("2,000", "10.0 %", f"{109 / 150:.3f}")
    assert rows[1][3] == "0.595 ± 0.395"  # (0.99 + 0.2) / 2 and half their difference
    assert rows[2][1:4] == ("1,000", "10.0 %", "0.200")
    assert len({len(row) for row in (table.header, *rows)}) == 1


def test_records_that_are_no_counts_are_dashes():
    patches = {
        "cases": {
            "text": {"tp": "5", "fp": 1, "fn": 1, "tn": 1, "f_score": "high"},
            "negative": {"tp": -5, "fp": 1, "fn": 1, "tn": 1},
            "true": {"tp": True, "fp": 1, "fn": 1, "tn": 1, "f_score": float("nan")},
            "none": {"tp": 0, "fp": 0, "fn": 0, "tn": 0},
            "right": {"tp": 1, "fp": 0, "fn": 0, "tn": 3, "f_score": 1.0},
        }
    }
    by_name = {row[0]: row[1] for row in cells(tables.patch_table(patches))}
    assert by_name.pop("right") == "4" and by_name.pop("All, pooled") == "4"
    assert by_name.pop("Mean ± std over scans") == ""
    assert set(by_name.values()) == {tables.DASH}
    assert tables.ranked_patches(patches) == [("right", 1.0)]
    assert cells(tables.patch_table({}))[0][1] == tables.DASH


def test_markdown_has_both_tables_with_equal_columns_and_the_reasons():
    patches = {"test": scored(a=(50, 10, 0, 140))}
    text = tables.tables_markdown(patch_config(), {"test": SCORES}, patches)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    for table, place in (("qadri2021_table2", 0), ("qadri2021_table3", 1)):
        for row in papers.tables()[table].rows:
            assert f"| {papers.short_name(row[place])} |" in text
    assert "Table 2" in text and "Table 3" in text and "Not comparable" in text


def test_csv_has_columns_of_patches_only_where_there_are_any():
    patches = {"test": scored(a=(50, 10, 0, 140))}
    rows = list(csv.DictReader(io.StringIO(tables.tables_csv({"test": SCORES}, patches))))
    assert rows[0]["patch_tp"] == "50" and float(rows[0]["patch_precision"]) == 50 / 60
    assert rows[1]["patch_tp"] == rows[1]["patch_recall"] == ""
    assert float(rows[1]["dice"]) == 0.6
    assert "patch" not in tables.tables_csv({"test": SCORES})
