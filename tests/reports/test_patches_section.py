"""The sections of a run that classifies patches."""

import json

import pytest

from spinejax.configs import opconvnet
from spinejax.errors import InputError
from spinejax.metrics.classification import Counts, patch_scores
from spinejax.reports.page import write_report
from tests.reports.test_page import add_scores, make_run, read

COUNTS = {
    "size": 32,
    "stride": 12,
    "label_rule": "majority",
    "split_unit": "scan",
    "rus": "once",
    "rus_ratio": 1.0,
    "before": {"background": 9500, "vertebra": 500},
    "after": {"background": 500, "vertebra": 500},
    "validation": {"background": 1900, "vertebra": 100},
    "balanced_total": 1000,
}


def patch_run(folder, **record):
    run = make_run(folder, **record)
    config = opconvnet.get_config("debug")
    (run / "config.json").write_text(config.to_json())
    return run


def add_patches(run, cases, balanced=None, split="test"):
    counts = {name: Counts(*values) for name, values in cases.items()}
    record = patch_scores(
        counts, size=32, stride=12, label_rule="majority", balanced_training=balanced
    )
    (run / "evaluation" / split / "patches.json").write_text(json.dumps(record))


def scored_run(folder, cases):
    run = patch_run(folder)
    add_scores(run, dict.fromkeys(cases, 0.8), scans=False)
    add_patches(run, cases, (Counts(450, 30, 20, 500), 4000))
    (run / "patches.json").write_text(json.dumps(COUNTS))
    return run


def test_a_whole_run_of_patches_is_reported(tmp_path):
    cases = {f"c{i}": (90 - 10 * i, 10, 10 + 10 * i, 890) for i in range(5)}
    run = scored_run(tmp_path / "run", cases)
    html, outline, text = read(write_report(run))
    for words in (
        # Class distribution: counts and shares.
        "10,000 patches",
        "9,500 95.0 %",
        "500 5.0 %",
        "500 50.0 %",
        "as many as vertebra patches; it is drawn once",
        # Confusion matrices.
        "Balanced training 1,000 of 4,000 patches",
        "Best scan c0, F-score 0.900",
        "Median scan c2, F-score",
        "Worst scan c4, F-score",
        "vertebra 90 90.0 % 10 10.0 % background 10 1.1 % 890 98.9 %",
        # Patches of every scan.
        "All, pooled 5,000 10.0 %",
        "Patches, 5 scans",
        # Paper B.
        "Beside paper B",
        "5 scans (test), pooled, 32 × 32 pixels, stride 12, majority rule",
        "OP-convNet 90.1 99.4 98.8 90.1",
        "OP-convNet 90.3 – – 90.2 82.3 89.9",
        "SAU-Net 90.1 – – 88.7 81.5 89.8",
    ):
        assert words in text, words
    assert html.count('class="confusion"') == 4
    assert "paper A" not in text
    assert "script" not in outline.tags and "url(" not in html
    tables = (run / "report.md").read_text()
    assert "Table 2" in tables and "Table 3" in tables and "| All, pooled |" in tables
    assert (run / "report.csv").read_text().splitlines()[1].count(",") == 22


def test_bars_are_as_long_as_their_counts(tmp_path):
    run = patch_run(tmp_path / "run")
    (run / "patches.json").write_text(json.dumps(COUNTS))
    html, _, _ = read(write_report(run))
    widths = [float(part.split("%")[0]) for part in html.split('<i style="width:')[1:]]
    assert widths == pytest.approx([100 * n / 9500 for n in (9500, 500, 500, 500, 1900, 100)], 0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(rus="none"), "No under-sampling"),
        (dict(rus="epoch"), "drawn anew in each epoch"),
        (dict(rus="once", rus_ratio=2.5), "2.5 times as many as vertebra patches"),
        (dict(split_unit="patch"), "Validation patches overlap training patches"),
        (dict(size="<b>", stride=None, label_rule="<i>x"), "Patches of <i>x rule."),
        (dict(after={"background": -1, "vertebra": "many"}), "Before under-sampling"),
    ],
)
def test_how_patches_were_sampled_is_said(tmp_path, changes, words):
    run = patch_run(tmp_path / "run")
    (run / "patches.json").write_text(json.dumps({**COUNTS, **changes}))
    _, _, text = read(write_report(run))
    assert words in text


def test_what_is_missing_is_said_in_words(tmp_path):
    run = patch_run(tmp_path / "run")
    _, _, text = read(write_report(run))
    for words in ("no patches.json", "There are no scores of patches", "This run has no row yet"):
        assert words in text
    add_scores(run, {"a": 0.9}, scans=False)
    _, _, text = read(write_report(run))
    for words in ("no scores of patches", "no network.npz", "OP-convNet 90.1 99.4 98.8 90.1"):
        assert words in text


def test_a_damaged_count_is_a_sentence_and_damaged_scores_are_one_line(tmp_path):
    run = scored_run(tmp_path / "run", {"a": (1, 2, 3, 4)})
    for broken, words in (
        ('{"before": ', "is damaged"),
        ("[]", "not an object"),
        ("{}", "has no counts of patches"),
        ("[" * 100_000, "is damaged"),
        ('{"before": {"background": 0, "vertebra": 0}}', "0 patches"),
    ):
        (run / "patches.json").write_text(broken)
        assert words in read(write_report(run))[2]
    for broken, words in (
        ('{"cases": ', "is damaged"),
        ('{"cases": [1]}', "run the same `spinejax evaluate` again"),
    ):
        (run / "evaluation" / "test" / "patches.json").write_text(broken)
        with pytest.raises(InputError, match=words) as caught:
            write_report(run)
        assert "\n" not in str(caught.value)


def test_scores_of_patches_without_numbers_do_not_break_the_page(tmp_path):
    run = scored_run(tmp_path / "run", {"a": (1, 2, 3, 4)})
    path = run / "evaluation" / "test" / "patches.json"
    path.write_text('{"cases": {"a": {}, "b": {"tp": "x"}}, "summary": 3, "balanced_training": 7}')
    _, _, text = read(write_report(run))
    assert "No scan has counts of patches" in text and "All, pooled – –" in text


def test_everything_from_files_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>&\"'"
    run = scored_run(tmp_path / "run", {evil: (1, 2, 3, 4), "b": (5, 2, 3, 4)})
    path = run / "evaluation" / "test" / "patches.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "label_rule": evil, "stride": evil, "size": evil}))
    (run / "patches.json").write_text(json.dumps({**COUNTS, "label_rule": evil}))
    html, outline, text = read(write_report(run))
    assert "<script" not in html and "script" not in outline.tags
    assert text.count("alert(1)") > 5


def test_a_u_net_has_its_rows_in_both_papers(tmp_path):
    run = make_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["model"] = {"name": "unet"}
    (run / "config.json").write_text(json.dumps(config))
    _, _, text = read(write_report(run))
    assert "Beside paper A" in text and "Beside paper B" in text
    assert "Pixels (Table 3)" in text and "Patches (Table 2)" not in text
    assert "no patches.json" not in text and "no scores of patches" not in text


@pytest.mark.parametrize(("dice", "said"), [(0.846, True), (1.0, False), ("<b>", False)])
def test_what_the_rule_allows_is_said_where_it_is_a_limit(tmp_path, dice, said):
    run = scored_run(tmp_path / "run", {"c0": (90, 10, 10, 890)})
    path = run / "evaluation/test/patches.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rule_dice": dice}))
    _, _, text = read(write_report(run))
    assert ("a Dice of 0.846 only" in text) == said and ("smooths the mask" in text) == said


@pytest.mark.parametrize(("unit", "leaks"), [("patch", True), ("scan", False)])
def test_validation_scans_whose_patches_also_trained_are_named(tmp_path, unit, leaks):
    run = patch_run(tmp_path / "run", cases={"train": ["t"], "val": ["a"], "test": []})
    config = json.loads((run / "config.json").read_text())
    config["data"]["patches"]["split_unit"] = unit
    (run / "config.json").write_text(json.dumps(config))
    add_scores(run, {"a": 0.9}, split="val", scans=False)
    _, _, text = read(write_report(run))
    assert ("Not held out: a was also trained on" in text) == leaks
    assert ("used to choose the best checkpoint" in text) != leaks
