"""Tables of patch scores, and a run beside paper B."""

import csv
import io
import re

import pytest

from spinejax.metrics.classification import Counts, patch_scores
from spinejax.reports import published_b, tables, tables_b


def scored(**cases):
    """A file of patch scores; each case is (tp, fp, fn, tn)."""
    counts = {name: Counts(*values) for name, values in cases.items()}
    return patch_scores(counts, size=32, stride=12, label_rule="majority")


def config(model="opconvnet", source="verse"):
    return {"name": "run", "model": {"name": model}, "data": {"source": source}}


SCORES = {
    "cases": {
        "a": {"binary": dict(recall=0.9, bf_score=0.5, f1_pre_sen=0.8, iou=0.7, dice=0.8)},
        "b": {"binary": dict(recall=0.7, bf_score=0.3, f1_pre_sen=0.6, iou=0.5, dice=0.6)},
    }
}


def test_table_2_has_the_pooled_patches_of_the_run_then_its_own_network_then_the_rest():
    # Pooled: 60 tp, 20 fp, 20 fn, 300 tn.
    patches = scored(a=(50, 10, 0, 140), b=(10, 10, 20, 160))
    ours, match, *rest = tables_b.compare_patches(config("resnet"), patches, "test")
    assert ours.ours and ours.values == pytest.approx((75.0, 93.75, 90.0, 75.0))
    assert ours.data == "2 scans (test), pooled, 32 × 32 pixels, stride 12, majority rule"
    assert match.matched and match.who == "ResNet" and match.values == (76.2, 98.9, 98.7, 84.4)
    assert [row.who for row in rest] == ["VGG net", "DenseNet", "OP-convNet"]


def test_table_3_has_the_mean_over_scans_and_keeps_the_bf_score_of_the_paper_apart():
    ours, match, *rest = tables_b.compare_pixels(config(source="phantom"), SCORES, "val")
    assert ours.values == pytest.approx((80.0, 40.0, 70.0, 60.0, 70.0))
    assert ours.data == "2 synthetic scans (val), mean over scans" and ours.bf_printed is None
    assert match.who == "OP-convNet" and match.values == (90.3, None, None, 82.3, 89.9)
    assert match.bf_printed == 90.2
    assert len(rest) == 9 and sum(row.matched for row in rest) == 0


def test_networks_without_a_row_and_runs_without_scores():
    assert tables_b.compare_patches(config("unet"), scored(a=(1, 1, 1, 1))) == []
    assert len(tables_b.compare_pixels(config("unet"), SCORES)) == 11
    assert tables_b.compare_pixels(config("chasppraunet"), SCORES) == []
    assert not any(row.ours for row in tables_b.compare_patches(config(), None))
    assert not any(row.ours for row in tables_b.compare_pixels(config(), None))


def test_the_table_of_patches_pools_counts_and_puts_the_worst_scan_first():
    header, rows = tables_b.patch_table(scored(good=(99, 1, 1, 899), bad=(10, 40, 90, 860)))
    assert header[:3] == ["scan", "patches", "vertebra"]
    assert [row[0] for row in rows] == ["All, pooled", "Mean ± std over scans", "bad", "good"]
    assert rows[0][1:4] == ["2,000", "10.0 %", f"{109 / 150:.3f}"]
    assert rows[1][3] == "0.595 ± 0.395"  # (0.99 + 0.2) / 2 and half their difference
    assert rows[2][1:4] == ["1,000", "10.0 %", "0.200"]
    assert len({len(row) for row in (header, *rows)}) == 1


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
    _, rows = tables_b.patch_table(patches)
    by_name = {row[0]: row[1] for row in rows}
    assert by_name.pop("right") == "4" and by_name.pop("All, pooled") == "4"
    assert by_name.pop("Mean ± std over scans") == ""
    assert set(by_name.values()) == {tables.DASH}
    assert tables_b.ranked_patches(patches) == [("right", 1.0)]
    assert tables_b.patch_table({})[1][0][1] == tables.DASH


def test_markdown_has_both_tables_with_equal_columns_and_the_reasons():
    patches = {"test": scored(a=(50, 10, 0, 140))}
    text = tables_b.markdown(config(), {"test": SCORES}, patches)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    for row in (*published_b.TABLE_2, *published_b.TABLE_3):
        assert f"| {row.name} |" in text
    assert "Table 2" in text and "Table 3" in text and "Not comparable" in text
    assert tables_b.markdown(config("chasppraunet"), {"test": SCORES}, {}) == ""


def test_csv_has_columns_of_patches_only_where_there_are_any():
    patches = {"test": scored(a=(50, 10, 0, 140))}
    rows = list(csv.DictReader(io.StringIO(tables.tables_csv({"test": SCORES}, patches))))
    assert rows[0]["patch_tp"] == "50" and float(rows[0]["patch_precision"]) == 50 / 60
    assert rows[1]["patch_tp"] == rows[1]["patch_recall"] == ""
    assert float(rows[1]["dice"]) == 0.6
    assert "patch" not in tables.tables_csv({"test": SCORES})
