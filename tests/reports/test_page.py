import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from spinejax import schema
from spinejax.configs import chasppraunet, unet3d
from spinejax.errors import InputError
from spinejax.files import LIST
from spinejax.io import nifti
from spinejax.reports import page
from spinejax.reports.page import write_report
from spinejax.reports.tables import chosen_cases
from spinejax.volume import Volume

VOID = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags are balanced and collects what a page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.tags, self.text = [], [], [], []
        self.ids = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.loads += [attributes[name] for name in ("src", "href", "data") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    html = path.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(html)
    assert outline.open == [] and len(set(outline.ids)) == len(outline.ids)
    # What the page refers to is in the page.
    for load in outline.loads:
        assert load.startswith("data:image/") or load.removeprefix("#") in outline.ids, load[:80]
    return html, outline, " ".join(" ".join(outline.text).split())


def pictures_of_scans(html):
    """How many scans are shown in three planes."""
    return html.count('<div class="planes"')


def make_run(folder, *, source="verse", **record):
    config = chasppraunet.get_config("debug")
    config.data.source = source
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    (folder / "run.json").write_text(
        json.dumps(
            {
                "started": "2026-01-02T03:04:05+00:00",
                "seconds": 4000.0,
                "hardware": "x86_64, 2 CPU cores, cpu",
                "versions": {"jax": "0.10.2"},
                "commit": "0123abc",
                "parameters": 123456,
                "cases": {"train": ["t1"], "val": [], "test": ["a"]},
                **record,
            }
        )
    )
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": s, "kind": "train", "loss": 1 / s, "dice": 0.5}) + "\n"
            for s in range(1, 6)
        )
        + '{"step": 6'
    )
    return folder


def add_scores(folder, dice, split="test", scans=True):
    """Score files for the cases of `dice`, and small scans for them."""
    place = folder / "evaluation" / split
    (place / "predictions").mkdir(parents=True)
    scored = {
        case: {"binary": {"dice": value, "iou": value / (2 - value), "hd95_mm": None}}
        for case, value in dice.items()
    }
    (place / "scores.json").write_text(json.dumps({"cases": scored, "summary": {"binary": {}}}))
    index = {}
    for number, case in enumerate(dice):
        names = {"image": f"{number}_ct", "labels": f"{number}_msk", "prediction": f"{number}_seg"}
        paths = {key: place / "predictions" / f"{name}.nii.gz" for key, name in names.items()}
        if scans:
            generator = np.random.default_rng(number)
            volume = Volume(
                generator.integers(-100, 400, (20, 30, 12)).astype(np.int16),
                np.diag([-2.0, -2.0, 4.0, 1.0]),
            )
            mask = np.zeros(volume.shape, np.uint8)
            mask[5:15, 10:20, 2:10] = 20
            nifti.write_volume(paths["image"], volume)
            nifti.write_labels(paths["labels"], mask, volume)
            nifti.write_labels(paths["prediction"], np.roll(mask, 1, axis=0), volume)
        index[case] = {key: str(path.relative_to(folder)) for key, path in paths.items()}
    (place / "cases.json").write_text(json.dumps(index))


def test_the_page_of_a_scored_run_is_whole_and_self_contained(tmp_path):
    run = make_run(tmp_path / "run")
    add_scores(run, {"a": 0.95, "b": 0.90, "c": 0.85, "d": 0.60})
    (run / "DONE").touch()
    path = write_report(run)
    assert path == run / "report.html"
    html, outline, text = read(path)
    assert "Mean Dice 0.82 on 4 held-out scans" in text
    assert "From 0.60 (d) to 0.95 (a)" in text
    assert "script" not in outline.tags and "link" not in outline.tags
    assert outline.loads and all(
        load.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,"))
        for load in outline.loads
    )
    assert not re.search(r"https?:|url\(|@import", html)
    for words in ("Best scan: a", "Median scan: c", "Worst scan: d"):
        assert words in text
    assert pictures_of_scans(html) == 3
    for words in ("x86_64, 2 CPU cores", "0123abc", "jax 0.10.2", "123,456", "67 min", "93.72"):
        assert words in text
    assert "has not finished" not in text and "Synthetic" not in text
    assert (run / "report.md").read_text().startswith("# chasppraunet")
    assert (run / "report.csv").read_text().count("\n") == 5


def test_a_run_without_scores_says_the_command(tmp_path):
    run = make_run(tmp_path / "my run")
    path = write_report(run, tmp_path / "out" / "page.html")
    assert {file.name for file in path.parent.iterdir()} == {"page.html", LIST}
    _, _, text = read(path)
    assert "Not scored yet" in text
    assert f"spinejax evaluate --workdir '{run}'" in text
    assert "Training has not finished" in text


def write_config(folder):
    (folder / "config.json").write_text(json.dumps(schema.plain(unet3d.get_config())))


def test_only_a_config_is_enough(tmp_path):
    write_config(tmp_path)
    _, _, text = read(write_report(tmp_path))
    for words in ("no training record", "no run.json", "has a row for this network"):
        assert words in text


def test_everything_from_files_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>&\"'"
    run = make_run(tmp_path / "run", hardware=evil, commit=evil, cases={"train": [evil]})
    config = json.loads((run / "config.json").read_text())
    config["name"] = evil
    (run / "config.json").write_text(json.dumps(config))
    add_scores(run, {evil: 0.5, "b": 0.6}, scans=False)
    html, outline, text = read(write_report(run))
    assert "<script" not in html and "script" not in outline.tags
    assert text.count("alert(1)") > 5


def test_the_lowest_validation_loss_is_named_with_its_epoch(tmp_path):
    run = make_run(tmp_path / "run")
    values = ((100, 0.3, 0.95), (200, 0.106, 0.987), (300, 0.2, 0.98))
    lines = [
        json.dumps({"step": s, "kind": "val", "loss": loss, "dice": 0.5, "accuracy": right})
        for s, loss, right in values
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    _, _, text = read(write_report(run))
    assert "lowest validation loss 0.106, epoch 2 (step 200) " in text
    assert "0.987 at the lowest loss" in text
    config = json.loads((run / "config.json").read_text())
    config["train"] |= {"best": "loss", "eval_every_epochs": 5}
    (run / "config.json").write_text(json.dumps(config))
    assert "epoch 10 (step 200); its network is kept" in read(write_report(run))[2]


def test_a_scan_that_is_gone_is_said_in_place_of_its_picture(tmp_path):
    run = make_run(tmp_path / "run")
    add_scores(run, {"a": 0.9, "b": 0.8})
    (run / "evaluation/test/predictions/0_ct.nii.gz").unlink()
    (run / "evaluation/test/predictions/1_ct.nii.gz").write_bytes(b"not a scan")
    html, _, text = read(write_report(run))
    assert pictures_of_scans(html) == 0
    assert "0_ct.nii.gz is gone" in text and text.count("No picture:") == 2


def test_a_reference_that_is_gone_still_gives_a_picture(tmp_path):
    run = make_run(tmp_path / "run")
    add_scores(run, {"a": 0.9})
    (run / "evaluation/test/predictions/0_msk.nii.gz").unlink()
    html, _, text = read(write_report(run))
    assert pictures_of_scans(html) == 1 and "The only scan: a" in text


def test_cases_json_may_be_absent(tmp_path):
    run = make_run(tmp_path / "run")
    add_scores(run, {"a": 0.9}, scans=False)
    (run / "evaluation/test/cases.json").unlink()
    assert "cases.json does not say" in read(write_report(run))[2]


def test_phantoms_and_scans_that_were_trained_on_are_named(tmp_path):
    run = make_run(tmp_path / "run", source="phantom", cases={"train": ["a"]})
    add_scores(run, {"a": 0.9}, scans=False)
    _, _, text = read(write_report(run))
    assert "on 1 test synthetic scan, 1 of them trained on" in text
    assert "never seen in training" not in text
    assert "Not held out: a was also trained on" in text
    assert "nothing about patients" in text
    assert "ours are of synthetic phantoms" in text


def test_a_run_on_phantoms_that_was_scored_on_other_scans_says_so(tmp_path):
    run = make_run(tmp_path / "run", source="phantom_stream")
    add_scores(run, {"a": 0.9, "b": 0.5}, split="hospital", scans=False)
    _, _, text = read(write_report(run))
    assert "Mean Dice 0.70 on 2 scans of “hospital”" in text
    assert "Trained on phantoms alone" in text and "nothing about patients" not in text
    assert "ours are of synthetic phantoms" not in text


def test_the_test_split_comes_first_and_others_are_shown_too(tmp_path):
    run = make_run(tmp_path / "run")
    add_scores(run, {"v": 0.7}, split="val", scans=False)
    assert "Mean Dice 0.70 on 1 validation scan" in read(write_report(run))[2]
    add_scores(run, {"t": 0.8}, split="test", scans=False)
    _, _, text = read(write_report(run))
    assert "Mean Dice 0.80 on 1 held-out scan" in text and "Scores on the val split" in text


def test_scores_without_any_dice_do_not_break_the_page(tmp_path):
    run = make_run(tmp_path / "run")
    place = run / "evaluation" / "test"
    place.mkdir(parents=True)
    (place / "scores.json").write_text('{"cases": {"a": {"binary": {"dice": null}}}}')
    assert "no scan has a Dice" in read(write_report(run))[2]


def test_a_single_scan_has_no_spread(tmp_path):
    run = make_run(tmp_path / "run")
    add_scores(run, {"a": 0.9}, scans=False)
    html, _, text = read(write_report(run))
    assert "Dice 0.900" in text and "±" not in text.split("Beside paper A")[0]


def test_a_picture_comes_before_the_tables_and_the_sections_are_linked(tmp_path):
    run = make_run(tmp_path / "run")
    add_scores(run, {"a": 0.9, "b": 0.8})
    html, outline, _ = read(write_report(run))
    assert html.index('class="planes"') < html.index("<table")
    links = re.findall(r'<li><a href="#([^"]*)"', html)
    assert links[:2] == ["scans", "scores"] and set(links) <= set(outline.ids)
    assert [html.index(f'id="{id}"') for id in links] == sorted(
        html.index(f'id="{id}"') for id in links
    )


def named_run(folder):
    """Two scans with L1 and L2; of one the prediction has T12 above, which nobody labelled."""
    run = make_run(folder)
    add_scores(run, {"a": 0.9, "b": 0.8}, scans=False)
    place = run / "evaluation" / "test"
    vertebrae = {"n_reference": 2, "n_missed": 0, "id_rate": 1.0, "dice_mean": 0.85}
    extra = {"a": 0, "b": 1}
    record = json.loads((place / "scores.json").read_text())
    cases = {}
    for case, number in extra.items():
        right = {"n_extra": number, "all_correct": not number, "per_label": {"20": {}, "21": {}}}
        record["cases"][case]["vertebrae"] = {**vertebrae, **right}
        mask = np.zeros((20, 30, 60), np.uint8)
        mask[5:15, 8:20, 8:22], mask[5:15, 10:22, 24:38] = 21, 20
        prediction = mask.copy()
        if number:
            prediction[5:15, 12:24, 40:54] = 19
        volume = Volume(np.where(mask, 300, 0).astype(np.int16), np.diag([-2.0, -2.0, 2.0, 1.0]))
        paths = {key: f"{case}_{key}.nii.gz" for key in ("image", "labels", "prediction")}
        nifti.write_volume(place / paths["image"], volume)
        nifti.write_labels(place / paths["labels"], mask, volume)
        nifti.write_labels(place / paths["prediction"], prediction, volume)
        cases[case] = {key: f"evaluation/test/{name}" for key, name in paths.items()}
    (place / "cases.json").write_text(json.dumps(cases))
    summary = {**vertebrae, "n_reference": 4, "n_extra": 1, "all_correct": 0.5, "n_scans": 2}
    record["summary"]["vertebrae"] = summary
    (place / "scores.json").write_text(json.dumps(record))
    return run


def test_the_first_figure_of_named_vertebrae_is_how_many_scans_are_wholly_right(tmp_path):
    html, _, text = read(write_report(named_run(tmp_path / "run")))
    assert "on 2 held-out scans, every vertebra right in 1 of them" in text
    first = re.search(r"<dl.*?</div>", html, re.DOTALL).group()
    words = " ".join(re.sub(r"<[^>]*>", " ", first).split())
    assert words == "Scans wholly right 1 of 2 4 of 4 named right, 0 missed, 1 extra"
    assert "nothing else has one, in 1 of 2 scans" in text


def test_names_are_on_the_bodies_and_what_the_reference_lacks_is_extra(tmp_path):
    html, _, _ = read(write_report(named_run(tmp_path / "run")))
    worst = html.split("Worst scan: b")[1].split("</figure>")[0]
    names = re.findall(r'class="level"[^>]*>([^<]*)<', worst)
    assert sorted(names) == sorted(2 * ["L1", "L2", "T12 extra"])  # sagittal and coronal
    assert "Coronal, along the vertebral bodies" in worst
    best = html.split("Best scan: a")[1].split("</figure>")[0]
    assert "extra" not in best


@pytest.mark.parametrize("count", range(6))
def test_best_median_and_worst_are_different_scans(count):
    ranked = [(f"c{i}", i / 10) for i in range(count)]
    shown = chosen_cases(ranked)
    assert len({case for _, case, _ in shown}) == len(shown) == min(count, 3)
    if count > 2:
        assert [case for _, case, _ in shown] == [f"c{count - 1}", f"c{(count - 1) // 2}", "c0"]


def test_bad_workdirs_get_one_line_each(tmp_path):
    def message(folder, **more):
        with pytest.raises(InputError) as caught:
            write_report(folder, **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such folder" in message(tmp_path / "none")
    assert "it has no config.json" in message(tmp_path)
    (tmp_path / "config.json").write_text('{"name": ')
    assert "config.json is damaged" in message(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "not an object" in message(tmp_path)
    write_config(tmp_path)
    assert "is a folder" in message(tmp_path, output=tmp_path)
    (tmp_path / "file").touch()
    assert "cannot be written" in message(tmp_path, output=tmp_path / "file" / "x.html")
    place = tmp_path / "evaluation" / "test"
    place.mkdir(parents=True)
    (place / "scores.json").write_text('{"cases": [1]}')
    assert "run the same `spinejax evaluate` again" in message(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "evaluation", "file"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (99, "99 s"), (120, "2 min"), (5999, "100 min"), (12_000, "3 h 20 min")],
)
def test_durations_in_words(seconds, words):
    expected = "1 h 40 min" if words == "100 min" else words
    assert page.duration(seconds) == expected
