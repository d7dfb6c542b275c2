"""Scoring of files: matching, grids, the JSON, and real masks against scipy."""

import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from spinejax import scoring
from spinejax.errors import InputError
from spinejax.files import write_json
from spinejax.io import scanfile
from spinejax.metrics.aggregate import summary_table
from spinejax.predictor import Segmentation

AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])  # LPS


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array.astype(np.uint8), affine).to_filename(path)
    return path


def vertebrae(seed: int = 0, shape=(30, 34, 24)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    body = ndimage.gaussian_filter(rng.standard_normal(shape), 2) > 0.03
    return (body * np.repeat([22, 21, 20], shape[2] // 3)).astype(np.uint8)  # z grows upwards


def by_scipy(prediction, reference, spacing, axial):
    """Every binary metric by formulas and scipy, sharing nothing with the package."""
    p, r = prediction > 0, reference > 0
    tp, fp, fn, tn = (int(np.sum(x)) for x in (p & r, p & ~r, ~p & r, ~p & ~r))
    edges = [m & ~ndimage.binary_erosion(m) for m in (p, r)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    there, back = maps[1][edges[0]], maps[0][edges[1]]
    both = np.concatenate([there, back])
    in_plane = np.delete(spacing, axial)
    sides = np.delete(p.shape, axial) * in_plane
    tolerance = 0.0075 * np.hypot(*sides)
    matched, total = np.zeros(2), np.zeros(2)
    for one, other in zip(np.moveaxis(p, axial, 0), np.moveaxis(r, axial, 0), strict=True):
        contours = [m & ~ndimage.binary_erosion(m) for m in (one, other)]
        for i in range(2):
            total[i] += contours[i].sum()
            if contours[1 - i].any():
                far = ndimage.distance_transform_edt(~contours[1 - i], sampling=in_plane)
                matched[i] += np.sum(far[contours[i]] <= tolerance + 1e-5)
    share = matched / total
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "miou_with_background": (tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2,
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "accuracy": (tp + tn) / p.size,
        "bf_score": 2 * share.prod() / share.sum(),
        "f1_pre_sen": 2 * tp / (2 * tp + fp + fn),
        "hd95_mm": max(np.percentile(there, 95), np.percentile(back, 95)),
        "assd_mm": both.mean(),
        "nsd_1mm": np.mean(both <= 1 + 1e-5),
    }


def test_two_files(tmp_path):
    prediction, reference = vertebrae(1), vertebrae(0)
    scores = scoring.score(
        save(tmp_path / "anything.nii.gz", prediction),
        save(tmp_path / "case7_seg-vert_msk.nii.gz", reference),
    )
    assert list(scores["cases"]) == ["case7"]
    case = scores["cases"]["case7"]
    assert tuple(case["binary"]) == scoring.METRICS
    expected = by_scipy(prediction, reference, (0.8, 0.8, 2.0), 2)
    assert case["binary"] == pytest.approx(expected, abs=1e-6)
    assert sum(case["voxels"].values()) == reference.size
    assert case["bf_tolerance_mm"] == pytest.approx(0.0075 * np.hypot(30 * 0.8, 34 * 0.8))
    for metric, row in scores["summary"]["binary"].items():
        assert row["mean"] == row["median"] == pytest.approx(row["pooled"])
        assert (row["std"], row["n"]) == (0, 1), metric


def test_a_mask_against_itself_is_perfect(tmp_path):
    path = save(tmp_path / "a_seg.nii.gz", vertebrae())
    case = scoring.score(path, path)["cases"]["a"]["binary"]
    assert case.pop("hd95_mm") == case.pop("assd_mm") == 0
    assert set(case.values()) == {1.0}


def test_folders_are_matched_and_summarised(tmp_path, caplog):
    masks = {name: (vertebrae(i), vertebrae(i + 10)) for i, name in enumerate("abc")}
    for name, (prediction, reference) in masks.items():
        save(tmp_path / "pred" / f"sub-{name}_seg.nii.gz", prediction)
        save(tmp_path / f"ref/derivatives/sub-{name}/sub-{name}_seg-vert_msk.nii.gz", reference)
        # What else lies in a data set: the scan, and other masks of the same case.
        save(tmp_path / f"ref/rawdata/sub-{name}/sub-{name}_ct.nii.gz", reference)
        save(tmp_path / f"ref/derivatives/sub-{name}/sub-{name}_seg-subreg_msk.nii.gz", reference)
    save(tmp_path / "ref/derivatives/sub-d/sub-d_seg-vert_msk.nii.gz", vertebrae())
    save(tmp_path / "pred" / "sub-e_seg.nii.gz", vertebrae())
    with caplog.at_level(logging.WARNING):
        scores = scoring.score(tmp_path / "pred", tmp_path / "ref")
    assert list(scores["cases"]) == ["sub-a", "sub-b", "sub-c"]
    assert scores["missing"] == {"prediction": ["sub-d"], "reference": ["sub-e"]}
    assert len(caplog.records) == 2 and "sub-d" in caplog.text and "sub-e" in caplog.text
    table = summary_table(scores)
    assert "not scored, no prediction: sub-d" in table

    each = [by_scipy(*pair, (0.8, 0.8, 2.0), 2) for pair in masks.values()]
    for metric, row in scores["summary"]["binary"].items():
        values = [one[metric] for one in each]
        assert row["mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert row["std"] == pytest.approx(np.std(values), abs=1e-6)
        assert row["median"] == pytest.approx(np.median(values), abs=1e-6)
        assert metric in table and row["n"] == 3
    # Pooled figures are those of one scan that holds all three, set far apart.
    gap = np.zeros((60, 34, 24), np.uint8)
    stacked = [
        np.concatenate([part for pair in masks.values() for part in (pair[i], gap)])
        for i in range(2)
    ]
    whole = by_scipy(*stacked, (0.8, 0.8, 2.0), 2)
    pooled = {name: row["pooled"] for name, row in scores["summary"]["binary"].items()}
    for metric in ("dice", "iou", "precision", "recall", "hd95_mm", "assd_mm", "nsd_1mm"):
        assert pooled[metric] == pytest.approx(whole[metric], abs=1e-6), metric


@pytest.mark.parametrize("prediction", [None, 3, np.zeros((2, 2, 2), np.uint8)])
def test_what_is_no_prediction_is_refused(prediction, tmp_path):
    reference = save(tmp_path / "a_seg.nii.gz", vertebrae())
    with pytest.raises(InputError, match="is no prediction"):
        scoring.score(prediction, reference)


def test_folders_without_a_suffix_are_matched(tmp_path):
    for folder in ("p", "r"):
        save(tmp_path / folder / "Case_01.nii.gz", vertebrae())
    assert list(scoring.score(tmp_path / "p", tmp_path / "r")["cases"]) == ["Case_01"]


def test_orientation_of_the_file_does_not_matter(tmp_path):
    prediction, reference = vertebrae(1), vertebrae(0)
    there = save(tmp_path / "r.nii.gz", reference)
    straight = scoring.score(save(tmp_path / "p.nii.gz", prediction), there)
    image = nibabel.Nifti1Image(prediction, AFFINE)
    for code in ("RAS", "PIR", "SLA"):
        turned = image.as_reoriented(
            nibabel.orientations.ornt_transform(
                nibabel.io_orientation(AFFINE), nibabel.orientations.axcodes2ornt(code)
            )
        )
        turned.to_filename(tmp_path / f"{code}.nii.gz")
        assert scoring.score(tmp_path / f"{code}.nii.gz", there) == straight
        # Both turned: the axial axis is found, whichever it is.
        both = scoring.score(tmp_path / f"{code}.nii.gz", tmp_path / f"{code}.nii.gz")
        assert both["cases"][code]["bf_tolerance_mm"] == pytest.approx(
            straight["cases"]["r"]["bf_tolerance_mm"]
        )


def test_undefined_values_are_null_and_the_json_is_valid(tmp_path, caplog):
    empty, mask = np.zeros((30, 34, 24), np.uint8), vertebrae()
    for name, (prediction, reference) in {
        "both": (empty, empty),
        "missed": (empty, mask),
        "invented": (mask, empty),
        "fine": (mask, mask),
    }.items():
        save(tmp_path / "p" / f"{name}_seg.nii.gz", prediction)
        save(tmp_path / "r" / f"{name}_seg.nii.gz", reference)
    with caplog.at_level(logging.WARNING):
        scores = scoring.score(tmp_path / "p", tmp_path / "r")
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2 and all("\n" not in line for line in warned)
    write_json(tmp_path / "scores.json", scores)
    cases = json.loads((tmp_path / "scores.json").read_text())["cases"]
    for name, dice in {"both": 1, "missed": 0, "invented": 0, "fine": 1}.items():
        case = cases[name]["binary"]
        for metric in ("dice", "iou", "precision", "recall", "bf_score", "f1_pre_sen", "nsd_1mm"):
            assert case[metric] == dice, (name, metric)
        distance = 0 if name == "fine" else None
        assert case["hd95_mm"] == case["assd_mm"] == distance
    summary = scores["summary"]["binary"]
    assert summary["hd95_mm"] == {"mean": 0, "std": 0, "median": 0, "pooled": 0, "n": 1}
    assert (summary["dice"]["mean"], summary["dice"]["n"]) == (0.5, 4)
    # Of four equal surfaces (two in "fine"), those of the missed and the invented mask are missed.
    assert summary["nsd_1mm"]["pooled"] == 0.5

    for name in ("both", "missed", "invented"):
        (tmp_path / "p" / f"{name}_seg.nii.gz").unlink()
    (tmp_path / "p" / "fine_seg.nii.gz").rename(tmp_path / "p" / "missed_seg.nii.gz")
    save(tmp_path / "p" / "missed_seg.nii.gz", empty)
    scores = scoring.score(tmp_path / "p", tmp_path / "r")
    assert scores["summary"]["binary"]["hd95_mm"] == {
        "mean": None, "std": None, "median": None, "pooled": None, "n": 0
    }  # fmt: skip
    assert "hd95_mm" in summary_table(scores)


def bad_inputs(root: Path) -> dict[str, tuple[Path, Path, str]]:
    one = save(root / "r" / "x_seg.nii.gz", vertebrae())
    save(root / "other" / "y_seg.nii.gz", vertebrae())
    save(root / "twice" / "x_seg.nii.gz", vertebrae())
    save(root / "twice" / "sub" / "x_msk.nii.gz", vertebrae())
    (root / "empty").mkdir()
    moved = AFFINE.copy()
    moved[:3, 3] = 5
    zoomed = AFFINE @ np.diag([1, 1, 1.1, 1])
    return {
        "absent": (root / "nothing", one, "no such file"),
        "mixed": (root / "r", one, "two label files or two folders"),
        "no match": (root / "other", root / "r", "no case is in both"),
        "duplicate": (root / "twice", root / "r", "have one name"),
        "empty folder": (root / "empty", root / "r", "no label file"),
        "moved": (save(root / "m.nii", vertebrae(), moved), one, "not on one grid"),
        "zoomed": (save(root / "z.nii", vertebrae(), zoomed), one, "not on one grid"),
        "shape": (save(root / "s.nii", vertebrae()[:-1]), one, "29x34x24 LPS and 30x34x24 LPS"),
    }


@pytest.mark.parametrize(
    "kind",
    ["absent", "mixed", "no match", "duplicate", "empty folder", "moved", "zoomed", "shape"],
)
def test_bad_input_is_told_in_one_line(tmp_path, kind):
    prediction, reference, message = bad_inputs(tmp_path)[kind]
    with pytest.raises(InputError, match=message) as caught:
        scoring.score(prediction, reference)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


REAL = [
    "verse/derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz",
    "verse/derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
    "totalsegmentator/example_vertebrae_verse-ids.nii.gz",
]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("change", ["shifted", "dilated", "vertebra lost"])
def test_real_masks_agree_with_scipy(real_data, tmp_path, name, change):
    image = nibabel.load(real_data / name)
    reference = np.asarray(image.dataobj).astype(np.uint8)
    prediction = reference.copy()
    if change == "shifted":
        prediction = np.roll(reference, (2, -1, 1), (0, 1, 2))
    elif change == "dilated":
        prediction = ndimage.grey_dilation(reference, (3, 3, 3))
    else:
        prediction[reference == np.unique(reference)[2]] = 0
    nibabel.Nifti1Image(prediction, image.affine).to_filename(tmp_path / "p.nii.gz")
    scores = scoring.score(tmp_path / "p.nii.gz", real_data / name)
    spacing = [float(size) for size in nibabel.affines.voxel_sizes(image.affine)]
    axial = next(i for i, c in enumerate(nibabel.aff2axcodes(image.affine)) if c in "IS")
    (case,) = scores["cases"].values()
    expected = by_scipy(prediction, reference, spacing, axial)
    assert case["binary"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REAL)
def test_real_masks_agree_with_monai(real_data, tmp_path, name):
    monai_metrics = pytest.importorskip("monai.metrics", exc_type=ImportError)
    torch = pytest.importorskip("torch")
    image = nibabel.load(real_data / name)
    reference = np.asarray(image.dataobj).astype(np.uint8)
    prediction = np.roll(ndimage.grey_erosion(reference, (3, 3, 1)), (1, 3, 0), (0, 1, 2))
    case = scoring.score_arrays(prediction, reference, image.affine).binary
    pair = [torch.from_numpy((m[None, None] > 0).astype(np.uint8)) for m in (prediction, reference)]
    spacing = [float(size) for size in nibabel.affines.voxel_sizes(image.affine)]
    options = {"include_background": True, "spacing": spacing}
    matrix = monai_metrics.get_confusion_matrix(*pair)
    expected = {
        "dice": monai_metrics.compute_dice(*pair, include_background=True),
        "iou": monai_metrics.compute_iou(*pair, include_background=True),
        "hd95_mm": monai_metrics.compute_hausdorff_distance(*pair, percentile=95, **options),
        "assd_mm": monai_metrics.compute_average_surface_distance(*pair, symmetric=True, **options),
        "nsd_1mm": monai_metrics.compute_surface_dice(*pair, class_thresholds=[1.0], **options),
    } | {
        metric: monai_metrics.compute_confusion_matrix_metric(metric, matrix)
        for metric in ("precision", "recall", "specificity", "accuracy")
    }
    for metric, value in expected.items():
        assert case[metric] == pytest.approx(float(value), rel=1e-6), metric


def test_the_labelled_range_leaves_out_what_nobody_labelled():
    reference = np.zeros((4, 4, 20), np.uint8)
    reference[1:3, 1:3, 5:10] = 20
    prediction = np.zeros_like(reference)
    prediction[1:3, 1:3, 3:14] = 1  # 4 x 6 voxels beyond the range, 4 x 5 in it
    prediction[0, 0, 6] = 1
    for axis in range(3):  # whichever axis runs from foot to head
        order = np.roll([0, 1, 2], axis)
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, order]
        pair = (np.transpose(a, order) for a in (prediction, reference))
        case = scoring.collect({"a": scoring.score_arrays(*pair, affine)})
        assert case["cases"]["a"]["labelled_range"] == {
            "dice": pytest.approx(40 / 41),
            "precision": pytest.approx(20 / 21),
            "recall": 1.0,
        }
        assert case["cases"]["a"]["binary"]["precision"] == pytest.approx(20 / 45)
        assert case["summary"]["labelled_range"]["recall"]["mean"] == 1.0


def test_a_segmentation_is_scored_like_its_file(tmp_path):
    affine = np.array([[0, -0.7, 0, 3], [0.1, 0, 2.5, -9], [0.6, 0, 0.2, 40], [0, 0, 0, 1]])
    reference = save(tmp_path / "ref" / "case7_seg.nii.gz", vertebrae(0), affine)
    scan = scanfile.read_volume(save(tmp_path / "case7_ct.nii.gz", vertebrae(0), affine))
    found = Segmentation(scan.to_canonical(vertebrae(1)), scan, "case7", named=True)
    paths = found.save(tmp_path / "out", picture=False)
    scores = scoring.score(found, reference)
    assert scores == scoring.score(paths[0], reference)
    assert list(scores["cases"]) == ["case7"] and "vertebrae" in scores["summary"]
    with pytest.raises(InputError, match="the prediction is one scan"):
        scoring.score(found, tmp_path / "ref")
