"""The best and worst slices of an evaluation in the page."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from spinejax import geometry, overlay
from spinejax.io import nifti, scanfile
from spinejax.metrics.slice_dice import best_and_worst, slice_dice
from spinejax.reports.page import write_report
from spinejax.volume import PLANES, Volume
from tests.reports.test_page import add_scores, make_run, read

SHAPE = (80, 60, 50)  # canonical: left, posterior, superior
SPACING = (1.0, 1.5, 2.0)
MARK = (slice(60, 70), slice(10, 18), slice(30, 40))  # on the left, in front, at the top


def write_case(run, name, to="LPS", shift=0):
    """A scan that is bright where its reference is; the prediction is moved along x."""
    place = run / "evaluation" / "test"
    (place / "predictions").mkdir(parents=True, exist_ok=True)
    mask = np.zeros(SHAPE, np.uint8)
    mask[MARK] = 20
    image = np.full(SHAPE, -200, np.int16)
    image[mask > 0] = 800
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    paths = {}
    for key, array in (
        ("image", image),
        ("labels", mask),
        ("prediction", np.roll(mask, shift, axis=0)),
    ):
        turned, turned_affine = geometry.reorient(array, affine, to)
        volume = Volume(np.ascontiguousarray(turned), turned_affine)
        path = place / "predictions" / f"{name}_{key}.nii.gz"
        if key == "image":
            nifti.write_volume(path, volume)
        else:
            nifti.write_labels(path, volume.native, volume)
        paths[key] = str(path.relative_to(run))
    index = place / "cases.json"
    cases = json.loads(index.read_text()) if index.exists() else {}
    index.write_text(json.dumps({**cases, name: paths}))


def slices_run(tmp_path, record):
    run = make_run(tmp_path / "run")
    add_scores(run, {"a": 0.9}, scans=False)
    (run / "evaluation/test/cases.json").unlink()
    if record is not None:
        (run / "evaluation/test/slices.json").write_text(json.dumps(record))
    return run


def section_of(html):
    return html.split("Best and worst slices")[1].split("</section>")[0]


def entry(case, index, dice=0.5):
    return {"case": case, "index": index, "dice": dice}


def only(layer, rgb):
    """The pixels of one colour; all others are clear."""
    return np.where((layer[..., :3] == rgb).all(axis=-1, keepdims=True), layer, 0)


def panels(html):
    """(scan, reference, prediction, outline of the reference) of each slice, as arrays."""
    found = []
    for figure in section_of(html).split('<figure class="slice">')[1:]:
        data = re.findall(r'href="data:image/png;base64,([^"]*)"', figure)
        pictures = [Image.open(io.BytesIO(base64.b64decode(d))) for d in data]
        if not pictures:
            found.append([])
            continue
        scan, *layers = pictures
        layers = [np.asarray(layer.convert("RGBA")) for layer in layers]
        both = [only(layers[-1], c) for c in (overlay.PREDICTION_RGB, overlay.REFERENCE_RGB)]
        found.append([np.asarray(scan), *layers[:-1], *both])
    return found


def centre(mask):
    return np.argwhere(mask).mean(axis=0) / mask.shape


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("to", ["LPS", "RAS", "PIR", "IRP"])
def test_pictures_do_not_depend_on_the_orientation_on_disk(tmp_path, plane, to):
    index = {"sagittal": 65, "coronal": 14, "axial": 35}[plane]
    run = slices_run(tmp_path, {"plane": plane, "best": [entry("a", index)], "worst": []})
    write_case(run, "a", to)
    [pictures] = panels(write_report(run).read_text())
    scan, reference, *_ = pictures
    assert scan.shape == reference.shape[:2]
    # What is bright is what is marked, up to the smooth enlargement of the scan.
    marked, bright = reference[..., 3] > 0, scan > 127
    assert marked.any() and (marked & bright).sum() > 0.9 * (marked | bright).sum()


@pytest.mark.parametrize(("plane", "index"), [("axial", 35), ("coronal", 14), ("sagittal", 65)])
def test_radiological_convention(tmp_path, plane, index):
    """The patient's left is on the right; in sagittal slices anterior is on the left."""
    run = slices_run(tmp_path, {"plane": plane, "best": [entry("a", index)]})
    write_case(run, "a", shift=-40)  # far to the patient's right, so that both are in the picture
    html = write_report(run).read_text()
    [[_, reference, prediction, _]] = panels(html)
    if plane == "sagittal":
        # The slice shows no prediction; the picture lies inside the slice, whose middle is
        # below and behind the mark.
        assert not prediction[..., 3].any()
        row, column = centre(reference[..., 3] > 0)
        assert row < 0.5 and column < 0.5
        return
    # The picture is cut around both: reference on the right, prediction on the left.
    assert centre(reference[..., 3] > 0)[1] > 0.6 > 0.4 > centre(prediction[..., 3] > 0)[1]


def test_everything_marked_is_in_the_picture_in_its_proportions(tmp_path):
    run = slices_run(tmp_path, {"plane": "axial", "best": [entry("a", 35)], "worst": []})
    write_case(run, "a", shift=-50)
    [[_, reference, prediction, _]] = panels(write_report(run).read_text())
    sizes = []
    for layer in (reference, prediction):
        rows, columns = np.nonzero(layer[..., 3])
        sizes.append((np.ptp(columns) + 1, np.ptp(rows) + 1))
    # 10 voxels of 1 mm by 8 voxels of 1.5 mm, both masks whole.
    for wide, high in sizes:
        assert wide / high == pytest.approx(10 / 12, rel=0.06)
    assert abs(sizes[0][0] - sizes[1][0]) <= 4


def test_colours_and_the_outline_of_the_reference_on_the_prediction(tmp_path):
    run = slices_run(tmp_path, {"plane": "axial", "best": [entry("a", 35)], "worst": []})
    write_case(run, "a", shift=3)
    [[_, reference, prediction, outline]] = panels(write_report(run).read_text())
    for layer, rgb in ((reference, overlay.REFERENCE_RGB), (prediction, overlay.PREDICTION_RGB)):
        assert (layer[layer[..., 3] > 0][:, :3] == rgb).all()
        assert set(np.unique(layer[..., 3])) == {0, 96, 255}
    assert set(np.unique(outline[..., 3])) == {0, 255}
    np.testing.assert_array_equal(outline[..., 3] == 255, reference[..., 3] == 255)


def test_what_evaluate_writes_is_shown_best_first(tmp_path):
    run = slices_run(tmp_path, None)
    scores = {}
    for number, name in enumerate(("a", "b<i>", "c")):
        write_case(run, name, shift=2 * number)
        paths = json.loads((run / "evaluation/test/cases.json").read_text())[name]
        masks = [scanfile.read_labels(run / paths[key]).array for key in ("prediction", "labels")]
        scores[name] = slice_dice(*masks, axis=2)
    record = {"plane": "axial", **best_and_worst(scores)}
    (run / "evaluation/test/slices.json").write_text(json.dumps(record))
    html, outline, text = read(write_report(run))
    for kind in ("best", "worst"):
        for item in record[kind]:
            words = f"{item['case']} slice {item['index'] + 1} of 50, Dice {item['dice']:.3f}"
            assert words in text
    assert text.index("Highest Dice") < text.index("Lowest Dice")
    number = len(record["best"]) + len(record["worst"])
    section = section_of(html)
    assert len(panels(html)) == number and section.count("<use ") == 2 * number
    # Every scan is stored once, and found by its own name.
    names = re.findall(r'<image id="([^"]*)"', section)
    assert len(set(names)) == number
    assert set(re.findall(r'<use href="#([^"]*)"', section)) == set(names)
    assert all(load.startswith(("data:image/", "#")) for load in outline.loads)
    assert "<i>" not in section


def test_a_slice_without_any_mark_and_a_scan_smaller_than_the_picture(tmp_path):
    run = slices_run(tmp_path, {"plane": "coronal", "best": [entry("a", 50)], "worst": []})
    write_case(run, "a")
    [[scan, reference, *_]] = panels(write_report(run).read_text())
    assert min(scan.shape) >= 8 and not reference[..., 3].any()


def test_a_reference_that_is_gone_still_shows_the_prediction(tmp_path):
    run = slices_run(tmp_path, {"plane": "axial", "best": [entry("a", 35)], "worst": []})
    write_case(run, "a")
    (run / "evaluation/test/predictions/a_labels.nii.gz").unlink()
    html, _, text = read(write_report(run))
    assert "The file of the reference is gone" in text
    scan, prediction, outline = panels(html)[0]
    assert scan.ndim == 2 and prediction[..., 3].any() and not outline.any()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "The best and the worst slices were not recorded"),
        ({"plane": "axial", "best": [], "worst": []}, "No slice has any reference"),
        ({"plane": "axial"}, "No slice has any reference"),
        ({"plane": "axial", "best": 7, "worst": None}, "No slice has any reference"),
        ({"plane": "oblique", "best": [], "worst": []}, "plane = 'oblique' is unknown"),
        ({"best": []}, "plane = 'None' is unknown"),
        ({"plane": "axial", "best": [7]}, "an entry of best has no case and index"),
        ({"plane": "axial", "worst": [entry("a", -1)]}, "an entry of worst has no case and index"),
        ({"plane": "axial", "worst": [entry(3, 1)]}, "an entry of worst has no case and index"),
        ({"plane": "axial", "worst": [entry("a", 50)]}, "a has no slice 50, only 50"),
        ({"plane": "axial", "worst": [entry("gone", 5)]}, "scan and prediction of gone are"),
        ({"plane": "axial", "best": [entry("a", 35, "high")]}, "slice 36 of 50"),
        (["axial"], "not an object"),
    ],
)
def test_what_cannot_be_shown_is_said(tmp_path, record, words):
    run = slices_run(tmp_path, record)
    write_case(run, "a")
    assert words in read(write_report(run))[2]


def test_damaged_scans_and_files_are_sentences(tmp_path):
    run = slices_run(tmp_path, {"plane": "axial", "best": [entry("a", 35), entry("b", 35)]})
    write_case(run, "a")
    write_case(run, "b")
    (run / "evaluation/test/predictions/a_image.nii.gz").write_bytes(b"no scan")
    html, _, text = read(write_report(run))
    assert len(panels(html)) == 2 and len(panels(html)[0]) == 0 and len(panels(html)[1]) == 4
    assert "a_image.nii.gz" in text.split("Best and worst slices")[1]
    (run / "evaluation/test/slices.json").write_text('{"plane"')
    assert "slices.json is damaged" in read(write_report(run))[2]


def test_a_page_of_eight_large_slices_stays_small(tmp_path):
    """Noise is what PNG compresses worst."""
    run = slices_run(
        tmp_path,
        {"plane": "axial", **{k: [entry("a", i) for i in range(4)] for k in ("best", "worst")}},
    )
    place = run / "evaluation/test/predictions"
    noise = np.random.default_rng(0).integers(-300, 900, (512, 512, 4)).astype(np.int16)
    volume = Volume(noise, np.diag([-0.4, -0.4, 1.0, 1.0]))
    nifti.write_volume(place / "a_ct.nii.gz", volume)
    mask = np.zeros(noise.shape, np.uint8)
    mask[100:400, 100:400] = 1
    nifti.write_labels(place / "a_seg.nii.gz", mask, volume)
    names = {"image": "a_ct.nii.gz", "labels": "a_seg.nii.gz", "prediction": "a_seg.nii.gz"}
    record = {"a": {key: f"evaluation/test/predictions/{name}" for key, name in names.items()}}
    (run / "evaluation/test/cases.json").write_text(json.dumps(record))
    html = write_report(run).read_text()
    section = section_of(html)
    assert len(section) < 2_000_000 and section.count('class="slice"') == 8
