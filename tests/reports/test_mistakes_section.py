"""Where a run errs: the slices that are shown, and the section of the page."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from spinejax import geometry, overlay
from spinejax.cli import main
from spinejax.errors import InputError
from spinejax.io import nifti
from spinejax.reports import figures, mistakes_section
from spinejax.reports.page import write_report
from spinejax.volume import Volume
from tests.reports.test_page import add_scores, make_run, read

# The slices.


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float64, st.integers(1, 40), elements=st.sampled_from([0, 0.1, 1, 50])),
    st.integers(1, 9),
)
def test_slices_are_different_ones_that_have_a_weight(weights, count):
    chosen = mistakes_section.choose(weights, count)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == min(count, np.count_nonzero(weights))
    assert all(weights[index] for index in chosen)


def test_the_view_holds_the_reference_and_few_strays():
    reference = np.zeros((60, 80, 100), np.uint8)
    reference[20:40, 30:50, 20:80] = 20
    prediction = reference.copy()
    prediction[0, 0, 0] = 1
    view = mistakes_section.view(reference, [prediction], (1.0, 1.0, 1.0), "sagittal")
    # Superior is at the top: rows run downwards.
    assert (view.columns, view.rows) == (slice(22, 58), slice(12, 88))
    assert len(view.indices) == 7 and 20 <= view.indices[0] and view.indices[-1] < 40
    assert view.cut(reference, 30)[8:68, 8:28].all() and view.cut(reference, 30).sum() == 1200 * 20
    # A structure of its own is shown.
    prediction[45:55, 60:75, 30:60] = 1
    view = mistakes_section.view(reference, [prediction], (1.0, 1.0, 1.0), "sagittal")
    assert view.columns == slice(22, 80) and max(view.indices) >= 45
    assert sum(index < 40 for index in view.indices) >= 4


def test_noise_is_compressed_into_the_budget():
    image = np.random.default_rng(0).integers(-300, 900, (200, 200, 400)).astype(np.int16)
    mask = np.ones(image.shape, np.uint8)
    view = mistakes_section.view(mask, [mask], (0.5, 0.5, 0.5), "sagittal")
    assert view.size == (600, 300)
    greys = [
        figures.resize(overlay.window(view.cut(image, i)), view.size, smooth=True)
        for i in view.indices
    ]
    assert sum(map(len, figures.jpegs(greys, 330_000))) < 400_000


def test_names_keep_apart():
    reference = np.zeros((10, 10, 60), np.uint8)
    reference[2:8, 2:8, 5:40], reference[2:8, 2:8, 49] = 20, 19
    reference[2:8, 2:8, 50], reference[0, 0, 59] = 18, 26
    view = mistakes_section.view(reference, [reference], (3.0, 3.0, 3.0), "coronal")
    drawn = mistakes_section.side_names(reference, view)
    assert [name for _, name in drawn] == ["T11", "T12", "L1"]
    heights = [y for y, _ in drawn]
    assert np.diff(heights).min() == 22  # one slice would be 15
    assert heights[2] == pytest.approx(37.5 / 58 * view.size[0], abs=1)
    axial = mistakes_section.view(reference, [reference], (3.0, 3.0, 3.0), "axial")
    assert mistakes_section.side_names(reference, axial) == []
    reference[4, 4, 50] = 20  # two vertebrae in one slice
    shown = replace(axial, indices=(2, 10, 50))
    assert mistakes_section.captions(reference, shown) == [
        "slice 3",
        "slice 11: L1",
        "slice 51: T11, L1",
    ]
    assert (
        mistakes_section.captions(None, shown)[1]
        == "slice 11"
        == mistakes_section.captions(reference, replace(view, indices=(5, 10)))[1]
    )


# The section.


def write_scan(run, case="a", *, to="LPS", split="test", label=20, shift=2, seen=None):
    """A scan with two labels, of which the upper one (`label`) lacks its upper half."""
    place = run / "evaluation" / split / "predictions"
    mask = np.zeros((30, 24, 40), np.uint8)
    mask[10:20, 8:16, 6:14] = 21 if label != 1 else 1
    mask[10:20, 8:16, 18:34] = label
    image = np.where(mask > 0, 300, -50).astype(np.int16)
    prediction = mask.copy()
    prediction[:, :, 26:] = 0
    prediction = np.roll(prediction, shift, axis=1) if seen is None else seen(mask)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    paths = {}
    for key, array in (("image", image), ("labels", mask), ("prediction", prediction)):
        turned, turned_affine = geometry.reorient(array, affine, to)
        volume = Volume(np.ascontiguousarray(turned), turned_affine)
        path = place / f"{case}_{key}.nii.gz"
        if key == "image":
            nifti.write_volume(path, volume)
        else:
            nifti.write_labels(path, volume.native, volume)
        paths[key] = str(path.relative_to(run))
    index = run / "evaluation" / split / "cases.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), case: paths}))


def scored(folder, cases=("a",), split="test", **how):
    run = folder if folder.exists() else make_run(folder)
    add_scores(run, dict.fromkeys(cases, 0.7), split=split, scans=False)
    for case in cases:
        write_scan(run, case, split=split, **how)
    return run


def section(html):
    return html.split('<section class="errs">')[1].split("</section>")[0]


def layers(html):
    """What lies over each slice, RGBA, in the order of the page."""
    data = re.findall(r'class="layer"[^>]*base64,([^"]*)"', section(html))
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(d))).convert("RGBA")) for d in data]


def words_of(html):
    return " ".join(re.sub(r"<[^>]*>", " ", section(html)).split())


def test_the_section_says_which_bone_is_missed(tmp_path):
    html, outline, text = read(write_report(scored(tmp_path / "run", shift=0)))
    assert "Where it errs" in text and "The only scan: a" in text
    # 10 x 8 x 16 voxels of 12 cubic mm, half of them found; all of L2.
    words = words_of(html)
    assert "Missed: 7.7 ml of 23 ml, most of L1 (7.7 ml)." in words
    assert "Not in the reference: nothing." in words
    assert re.search(r"L1 15\.4 50 % 300 300", words) and re.search(r"L2 7\.7 100 % 300 –", words)
    assert len(layers(html)) == 7 and "Before" not in words
    assert all(re.match(r"data:image/(png|jpeg);base64,|#", load) for load in outline.loads)
    assert section(html).count("data:image/jpeg") == 7


@pytest.mark.parametrize("to", ["LPS", "RAS", "IRP"])
def test_colours_and_orientation(tmp_path, to):
    html = write_report(scored(tmp_path / "run", to=to)).read_text()
    picture = layers(html)[3]
    rgb = [tuple(colour) for colour in picture[picture[..., 3] > 0][:, :3].tolist()]
    assert set(rgb) == {figures.FOUND_RGB, figures.FALSE_RGB, figures.MISSED_RGB}

    def middle(colour):
        chosen = (picture[..., :3] == colour).all(axis=-1) & (picture[..., 3] > 0)
        return np.argwhere(chosen).mean(axis=0)

    # What is missed is at the top; what is found wrongly is behind, on the right.
    assert middle(figures.MISSED_RGB)[0] < middle(figures.FOUND_RGB)[0]
    assert middle(figures.FALSE_RGB)[1] > middle(figures.FOUND_RGB)[1]
    words = words_of(html)
    # Of the border of two voxels of 2 mm the outer one is 4 mm off.
    assert "within it, up to 3 mm off: a border too wide 1.9" in words
    assert re.search(r"farther off: other structure, or bone without a label 1\.9 -?−?50", words)


def test_before_and_after_show_the_same_slices(tmp_path):
    run = scored(tmp_path / "run", shift=0)
    before = scored(tmp_path / "old", seen=lambda mask: np.where(mask == 21, mask, 0))
    html, outline, text = read(write_report(run, before=before))
    words = words_of(html)
    assert words.count("Before") >= 2 and words.count("After") >= 1
    assert len(layers(html)) == 14
    numbers = re.findall(r"<figcaption>slice (\d+)<", section(html))
    assert numbers[:7] == numbers[7:]
    # The scan is stored once.
    names = re.findall(r'<image id="([^"]*)"', section(html))
    assert len(set(names)) == 7 and re.findall(r'<use href="#([^"]*)"', section(html)) == names
    assert re.search(r"L1 15\.4 0 % 50 % ▲ \+50", words)
    assert re.search(r"L2 7\.7 100 % 100 % 0 ", words)
    assert "Missed: 7.7 ml of 23 ml (before: 15 ml)" in words
    worse = words_of(write_report(before, before=run).read_text())
    assert re.search(r"L1 15\.4 50 % 0 % ▼ −50", worse)


def test_scans_that_the_earlier_run_lacks_are_said(tmp_path):
    run = scored(tmp_path / "run", ("a", "b<i>"))
    before = scored(tmp_path / "old", ("a",))
    html = write_report(run, before=before).read_text()
    words = words_of(html)
    assert "Without a Before: the earlier run did not score b&lt;i&gt;." in words
    assert "<i>b" not in html and len(layers(html)) == 7 + 14
    write_scan(before, "a", label=22)
    other = words_of(write_report(run, before=before).read_text())
    assert "what the earlier run scored as a is another scan" in other
    write_scan(before, "a")
    (before / "evaluation/test/predictions/a_prediction.nii.gz").unlink()
    assert "a_prediction.nii.gz is gone" in words_of(write_report(run, before=before).read_text())


def test_a_binary_reference_is_one_row(tmp_path):
    words = words_of(write_report(scored(tmp_path / "run", label=1)).read_text())
    assert re.search(r"spine 23\.0 \d+ %", words) and "C1" not in words
    run = scored(tmp_path / "other")
    config = json.loads((run / "config.json").read_text())
    config["data"]["labels"] = "binary"
    (run / "config.json").write_text(json.dumps(config))
    words = words_of(write_report(run).read_text())
    assert re.search(r"spine 23\.0 \d+ %", words) and "L1" not in words


def test_an_evaluation_of_a_folder_of_scans_has_its_own_section(tmp_path):
    run = scored(tmp_path / "run")
    scored(run, ("h",), split="hospital")
    scored(run, ("v",), split="val")
    html, _, text = read(write_report(run))
    assert "Where it errs: scans of “hospital”" in text and "The only scan: h" in text
    assert html.count('<section class="errs">') == 2 and html.count('class="bare"') == 1
    names = re.findall(r' id="(errs[^"]*)"', html)
    assert len(names) == len(set(names)) == 14


def test_what_cannot_be_measured_is_said(tmp_path):
    run = scored(tmp_path / "run", ("a", "b", "c", "d"))
    folder = run / "evaluation/test/predictions"
    (folder / "a_labels.nii.gz").unlink()
    (folder / "b_image.nii.gz").unlink()
    write_scan(run, "d", seen=np.zeros_like)
    html = write_report(run).read_text()
    words = words_of(html)
    assert "The file of the reference is gone" in words and "b_image.nii.gz is gone" in words
    assert "Worst scan: a" in words and "Best scan: d" in words and "scan: c" not in words
    assert "Missed: 23 ml of 23 ml, most of L1" in words


def test_an_earlier_run_that_cannot_be_compared_is_refused(tmp_path, capsys):
    run, old = scored(tmp_path / "run"), make_run(tmp_path / "old")

    def message(before, of=run):
        with pytest.raises(InputError) as caught:
            write_report(of, before=before)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "--before" in message(tmp_path / "none") and "no such folder" in message(tmp_path / "no")
    assert "it has no config.json" in message(tmp_path)
    assert "is the run itself" in message(run)
    assert "no evaluation called test" in message(old) and "--split=test" in message(old)
    assert "has no evaluation to compare" in message(run, of=old)
    scored(old, split="hospital")
    assert "--data=DIR" in message(make_run(tmp_path / "third"), of=old)
    assert not (run / "report.html").exists()
    status = main(["report", f"--workdir={run}", f"--before={tmp_path / 'third'}"])
    assert status == 1 and "no evaluation called test" in capsys.readouterr().err
    scored(tmp_path / "third")
    assert main(["report", f"--workdir={run}", f"--before={tmp_path / 'third'}"]) == 0
    assert "After" in words_of((run / "report.html").read_text())


def test_vertebrae_go_from_head_to_foot():
    row = {"ml": 1.0, "recall": 0.5, "found_hu": -5.0, "missed_hu": 9.0}
    rows = [
        {**row, "label": label, "at_border": label == 26, "at_end": False}
        for label in (19, 20, 26, 28)
    ]
    drawn = mistakes_section.vertebra_rows(mistakes_section.Mistakes({"vertebrae": rows}))
    assert [row["name"] for row in drawn] == ["T12", "T13", "L1", "label 26"]
    assert drawn[0]["hu"] == ["−5", "9"] and drawn[3]["edge"] == "side"
