"""VerSe's scoring: real masks against the dullest implementation, and properties on random maps."""

import itertools
import json
import logging

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from spinejax import geometry, labels, scoring
from spinejax.cli import main
from spinejax.errors import InputError
from spinejax.io import centroid_json
from spinejax.metrics import identification
from spinejax.metrics.aggregate import summary_table
from spinejax.volume import LabelVolume
from tests.io.test_centroid_json import miccai_records

CASE_KEYS = [
    "per_label", "dice_mean", "id_rate", "d_mean_mm", "n_reference", "n_predicted", "n_missed",
    "n_extra", "all_correct",
]  # fmt: skip
LABEL_KEYS = ["dice", "hd_mm", "hd95_mm", "assd_mm", "nsd_1mm", "centroid_distance_mm"]
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


# The dullest way.


def dull_distances(one, other, spacing):
    """Every surface voxel of `one` against every one of `other`."""
    ours, theirs = (np.argwhere(m & ~ndimage.binary_erosion(m)) * spacing for m in (one, other))
    return np.concatenate(
        [cdist(part, theirs).min(1) for part in np.array_split(ours, 20) if len(part)]
    )


def dull_block(prediction, reference, affine):
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    ids = [i for i in range(1, 29) if i not in (26, 27)]
    present = [i for i in ids if (reference == i).any()]
    predicted = [i for i in ids if (prediction == i).any()]
    centre = {}
    for name, mask in (("true", reference), ("found", prediction)):
        for i in ids:
            if (mask == i).any():
                centre[name, i] = affine[:3, :3] @ np.argwhere(mask == i).mean(0) + affine[:3, 3]
    rows, hits = {}, 0
    for i in present:
        r, p = reference == i, prediction == i
        row = {"dice": 2 * (r & p).sum() / (r.sum() + p.sum()), "nsd_1mm": 0.0}
        row |= dict.fromkeys(("hd_mm", "hd95_mm", "assd_mm", "centroid_distance_mm"))
        if i in predicted:
            there, back = dull_distances(p, r, spacing), dull_distances(r, p, spacing)
            both = np.concatenate([there, back])
            row["hd_mm"] = both.max()
            row["hd95_mm"] = max(np.percentile(there, 95), np.percentile(back, 95))
            row["assd_mm"] = both.mean()
            row["nsd_1mm"] = (both <= 1 + 1e-5).mean()
            row["centroid_distance_mm"] = np.linalg.norm(centre["found", i] - centre["true", i])
            nearest, least = None, np.inf
            for j in present:
                if j in predicted:
                    away = np.linalg.norm(centre["found", i] - centre["true", j])
                    if away < least:
                        nearest, least = j, away
            hits += nearest == i and least <= 20
        rows[str(i)] = row
    matched = [i for i in present if i in predicted]
    extra = [i for i in predicted if i not in present]
    apart = [rows[str(i)]["centroid_distance_mm"] for i in matched]
    return hits, {
        "per_label": rows,
        "dice_mean": np.mean([row["dice"] for row in rows.values()]),
        "id_rate": hits / len(present),
        "d_mean_mm": np.mean(apart) if apart else None,
        "n_reference": len(present),
        "n_predicted": len(predicted),
        "n_missed": len(present) - len(matched),
        "n_extra": len(extra),
        "all_correct": hits == len(present) and not extra,
    }


def assert_same(one, other, where=""):
    """Equal but for rounding, through dicts of dicts."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, float) and other is not None:
        assert one == pytest.approx(float(other), rel=1e-6, abs=1e-6), where
    else:
        assert one == other, where


# name -> (file, steps through it: brute force has no time for 0.3 mm)
REAL = {
    "verse004": ("verse/derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz", (2, 2, 1)),
    "gl003": ("verse/derivatives/sub-gl003/sub-gl003_dir-ax_seg-vert_msk.nii.gz", (6, 6, 2)),
    "totalsegmentator": ("totalsegmentator/example_vertebrae_verse-ids.nii.gz", (1, 1, 1)),
}


def real_mask(real_data, name):
    path, steps = REAL[name]
    image = nibabel.load(real_data / path)
    array = np.asarray(image.dataobj).astype(np.uint8)[tuple(slice(None, None, s) for s in steps)]
    return array, image.affine @ np.diag([*steps, 1.0])


def change(reference, how):
    """A prediction with known faults, and its number of missed and extra vertebrae."""
    ids = [int(i) for i in np.unique(reference) if i]
    prediction = np.roll(reference, (1, -1, 1), (0, 1, 2))
    if how == "shifted labels":
        prediction = np.where(prediction, prediction + 1, 0).astype(np.uint8)
        return prediction, 1, 1
    if how == "deleted":
        return np.where(np.isin(prediction, ids[1:3]), 0, prediction).astype(np.uint8), 2, 0
    if how == "swapped":
        table = np.arange(256, dtype=np.uint8)
        table[ids[1]], table[ids[2]] = ids[2], ids[1]
        return table[prediction], 0, 0
    prediction = reference.copy()  # two slabs in the background, of labels that no one has
    for axis, label in ((0, 28), (1, 25)):
        side = np.moveaxis(prediction, axis, 0)[:3]
        side[side == 0] = label
    return prediction, 0, 2


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("how", ["shifted labels", "deleted", "swapped", "added"])
def test_real_masks_agree_with_the_dullest_implementation(real_data, name, how):
    reference, affine = real_mask(real_data, name)
    prediction, missed, extra = change(reference, how)
    scan = identification.score_scan(prediction, reference, affine)
    block = identification.case_block(scan)
    hits, expected = dull_block(prediction, reference, affine)
    assert_same({key: block[key] for key in CASE_KEYS}, expected)
    assert (block["n_missed"], block["n_extra"]) == (missed, extra)
    assert not block["all_correct"]
    whole = identification.summarise({"a": scan})
    assert whole["id_precision"] == pytest.approx(hits / block["n_predicted"])
    if how == "swapped":
        assert hits == block["n_reference"] - 2
    if how == "added":
        assert hits == block["n_reference"]


@pytest.mark.parametrize("name", REAL)
def test_outlines_equal_those_of_the_whole_volume(real_data, name):
    # `surface.surface_distances` knows nothing of labels and slabs.
    from spinejax.metrics import surface

    reference, affine = real_mask(real_data, name)
    prediction, _, _ = change(reference, "deleted")
    rows = identification.case_block(
        identification.score_scan(np.asfortranarray(prediction), reference, affine)
    )["per_label"]
    for label, row in rows.items():
        masks = (prediction == int(label), reference == int(label))
        apart = surface.surface_distances(*masks, geometry.spacing_mm(affine))
        if apart.defined:
            assert row["hd_mm"] == surface.hausdorff_mm(apart)
            assert row["assd_mm"] == pytest.approx(surface.assd_mm(apart))
        assert row["nsd_1mm"] == surface.nsd(apart, 1.0)


def test_slabs_do_not_matter(monkeypatch):
    prediction, reference = random_map(1), random_map(2)
    straight = identification.score_scan(prediction, reference, AFFINE)
    monkeypatch.setattr(identification, "_SLAB_VOXELS", 1)
    assert identification.score_scan(prediction, reference, AFFINE) == straight


# Properties.


def random_map(seed, least=2):
    """Voxels of a few labels, strewn over a small grid."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(labels.VERSE_IDS, rng.integers(least, 7), replace=False)
    array = np.zeros((7, 6, 8), np.uint8)
    places = rng.permutation(array.size)[: len(ids) * rng.integers(1, 12)]
    array.reshape(-1)[places] = np.resize(ids, len(places))
    return array


@st.composite
def cases(draw):
    prediction, reference = (random_map(draw(st.integers(0, 2**32 - 1))) for _ in range(2))
    spacing = draw(st.lists(st.sampled_from([0.5, 1.0, 3.0, 9.0]), min_size=3, max_size=3))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (3, -20, 700)
    return prediction, reference, affine


def block_of(prediction, reference, affine, **kwargs):
    return identification.case_block(
        identification.score_scan(prediction, reference, affine, **kwargs)
    )


@given(cases())
@settings(max_examples=40, deadline=None)
def test_random_maps_agree_with_the_dullest_implementation(case):
    block = block_of(*case)
    hits, expected = dull_block(*case)
    # Centroids of strewn voxels tie now and then; a tie counts as nearest here only.
    assert block.pop("id_rate") >= expected.pop("id_rate")
    assert block.pop("all_correct") >= expected.pop("all_correct")
    assert_same(block, expected)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_a_mask_against_itself_is_perfect(case):
    _, reference, affine = case
    block = block_of(reference, reference, affine)
    assert (block["id_rate"], block["dice_mean"], block["d_mean_mm"]) == (1, 1, 0)
    assert (block["n_missed"], block["n_extra"], block["all_correct"]) == (0, 0, True)
    perfect = {"dice": 1, "nsd_1mm": 1, **dict.fromkeys(LABEL_KEYS[1:4], 0)}
    for row in block["per_label"].values():
        assert row == perfect | {"centroid_distance_mm": 0}


@given(cases(), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_a_deleted_vertebra_is_missed_and_has_no_distance(case, which):
    _, reference, affine = case
    ids = np.unique(reference)[1:]
    gone = int(ids[which % len(ids)])
    prediction = np.where(reference == gone, 0, reference).astype(np.uint8)
    block = block_of(prediction, reference, affine)
    assert (block["n_missed"], block["n_extra"], block["all_correct"]) == (1, 0, False)
    assert block["id_rate"] == block["dice_mean"] == pytest.approx((len(ids) - 1) / len(ids))
    assert block["per_label"][str(gone)] == {
        "dice": 0, "hd_mm": None, "hd95_mm": None, "assd_mm": None, "nsd_1mm": 0,
        "centroid_distance_mm": None,
    }  # fmt: skip
    # The other way round it is extra, and no mean sees it but precision.
    scan = identification.score_scan(reference, prediction, affine)
    whole = identification.summarise({"a": scan})
    assert (whole["n_extra"], whole["n_missed"], scan.extra) == (1, 0, (gone,))
    assert (whole["id_rate"], whole["dice_mean"], whole["all_correct"]) == (1, 1, 0)
    assert whole["id_precision"] == pytest.approx((len(ids) - 1) / len(ids))


@given(cases(), st.sampled_from(geometry.ALL_ORIENTATIONS))
@settings(max_examples=40, deadline=None)
def test_flips_and_transposes_do_not_matter(case, code):
    prediction, reference, affine = case
    straight = block_of(*case)
    turned, there = geometry.reorient(reference, affine, code)
    assert_same(block_of(geometry.reorient(prediction, affine, code)[0], turned, there), straight)


# The rule of identification, by hand.


def points(**mm):
    return {labels.id_of(name): np.array([value, 0.0, 0.0]) for name, value in mm.items()}


def test_identification_in_closed_form():
    true = points(L1=0, L2=30, L3=60, L4=90)
    apart = identification.identify(points(L1=1, L2=50.001, L3=46, L5=120), true)
    # L2 is 20.001 mm off; nearest to L3's is L3's own, since what only one has is not looked at.
    assert {labels.name(k): hit for k, (_, hit) in apart.items()} == {
        "L1": True, "L2": False, "L3": True, "L4": False
    }  # fmt: skip
    assert [d and round(d, 3) for d, _ in apart.values()] == [1, 20.001, 14, None]
    assert identification.identify(points(L2=50), points(L2=30))[21] == (20, True)
    # 14 mm away, but another one of the reference is nearer: in the neck that is a shift by one.
    neck = identification.identify(points(C3=14, C4=31), points(C3=0, C4=17))
    assert [hit for _, hit in neck.values()] == [False, True]
    assert identification.identify({}, true)[20] == (None, False)


@pytest.mark.parametrize(
    ("found", "true", "why"),
    [
        ({1}, {1}, identification.BINARY),
        (set(), {1}, identification.BINARY),
        (set(), set(), identification.BINARY),
        ({1}, {20, 21}, identification.BINARY_PREDICTION),
        ({1, 2}, {1}, identification.BINARY_REFERENCE),
        ({255}, {255}, identification.NO_VERTEBRA),
        ({26, 27}, {40}, identification.NO_VERTEBRA),
        (set(), {20}, None),
        ({20}, set(), None),
        ({1, 2}, {1, 2}, None),
        ({28}, {19}, None),
    ],
)
def test_what_can_be_compared(found, true, why):
    assert identification.not_comparable(found, true) == why


def spine(ids, shape=(12, 14, 60)):
    """A block per label, from top to bottom."""
    array = np.zeros(shape, np.uint8)
    for number, label in enumerate(ids):
        array[3:9, 4:10, shape[2] - 10 * number - 9 : shape[2] - 10 * number - 1] = label
    return array


def test_sacrum_and_unknown_numbers_are_passed_over():
    reference = spine([19, 28, 20])
    prediction = reference.copy()
    prediction[0, 0, :2], reference[0, 1, :2] = 26, 60
    block = block_of(prediction, reference, AFFINE)
    assert list(block["per_label"]) == ["19", "28", "20"]  # T13 lies between T12 and L1
    assert block["all_correct"] and (block["n_extra"], block["n_reference"]) == (0, 3)


def test_without_vertebrae_in_the_reference_there_is_nothing_to_rate():
    block = block_of(spine([20]), np.zeros((12, 14, 60), np.uint8), AFFINE)
    assert block["id_rate"] is block["dice_mean"] is block["d_mean_mm"] is None
    assert (block["n_extra"], block["all_correct"], block["per_label"]) == (1, False, {})


# Files.


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, affine).to_filename(path)
    return path


def data_set(root):
    """Three scans: perfect; C7 missed and T2 extra; L1 and L2 exchanged."""
    truth = {"a": [1, 2, 3], "b": [7, 8], "c": [19, 20, 21, 22]}
    found = {"a": [1, 2, 3], "b": [9, 8], "c": [19, 21, 20, 22]}
    for name in truth:
        save(root / "r" / f"{name}_seg.nii.gz", spine(truth[name]))
        save(root / "p" / f"{name}_seg.nii.gz", spine(found[name]))
    return root / "p", root / "r"


def test_data_set_regions_and_table(tmp_path):
    scores = scoring.score(*data_set(tmp_path))
    assert "without_vertebrae" not in scores
    blocks = {name: case["vertebrae"] for name, case in scores["cases"].items()}
    assert all(list(block) == CASE_KEYS for block in blocks.values())
    assert all(list(r) == LABEL_KEYS for b in blocks.values() for r in b["per_label"].values())
    assert [blocks[n]["id_rate"] for n in "abc"] == [1, 0.5, 0.5]
    assert [blocks[n]["all_correct"] for n in "abc"] == [True, False, False]
    assert [blocks[n]["d_mean_mm"] for n in "abc"] == [0, 0, 10]  # 20 mm for L1 and L2
    whole = scores["summary"]["vertebrae"]
    expected = {
        "reference_centroids": "masks", "n_scans": 3, "n_reference": 9, "n_predicted": 9,
        "n_missed": 1, "n_extra": 1, "id_rate": 6 / 9, "id_precision": 6 / 9, "dice_mean": 6 / 9,
        "d_mean_mm": 40 / 8, "nsd_1mm_mean": 6 / 9, "hd_mean_mm": 40 / 8, "all_correct": 1 / 3,
    }  # fmt: skip
    assert_same({key: whole[key] for key in expected}, expected)
    regions = whole["per_region"]
    assert [regions[r]["id_rate"] for r in "CTL"] == [3 / 4, 1, 1 / 3]
    assert [regions[r]["id_precision"] for r in "CTL"] == [1, 2 / 3, 1 / 3]
    assert [(regions[r]["n_missed"], regions[r]["n_extra"]) for r in "CTL"] == [
        (1, 0), (0, 1), (0, 0)
    ]  # fmt: skip
    assert list(whole["per_label"]) == ["1", "2", "3", "7", "8", "9", "19", "20", "21", "22"]
    assert whole["per_label"]["9"]["dice_mean"] is None
    assert whole["over_scans"]["id_rate"]["mean"] == pytest.approx(2 / 3)
    assert whole["over_scans"]["id_rate"]["n"] == 3
    table = summary_table(scores)
    lines = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert lines["all"] == ["0.6667", "5.0000", "0.6667", "9", "1", "1"]
    assert lines["L"] == ["0.3333", "13.3333", "0.3333", "3", "0", "0"]
    assert "scans with every vertebra right: 1 of 3" in table
    assert "centroids are the masks' centres of mass" in table
    json.dumps(scores, allow_nan=False)


def test_binary_masks_have_no_vertebrae(tmp_path):
    prediction, reference = data_set(tmp_path)
    for labels_, root in (("binary", prediction), ("verse", tmp_path / "b")):
        if labels_ == "verse":
            for name in "ab":
                save(root / f"{name}_seg.nii.gz", (spine([1, 2, 3]) > 0).astype(np.uint8))
            # Beside binary ones an empty prediction is binary too, not one that misses all.
            save(root / "c_seg.nii.gz", np.zeros((12, 14, 60), np.uint8))
        scores = scoring.score(root, reference, labels=labels_)
        assert "vertebrae" not in scores["summary"]
        assert not any("vertebrae" in case for case in scores["cases"].values())
        assert ("without_vertebrae" in scores) == (labels_ == "verse")
    binary, empty = identification.BINARY_PREDICTION, identification.EMPTY_AMONG_BINARY
    assert scores["without_vertebrae"] == {"a": binary, "b": binary, "c": empty}
    table = summary_table(scores)
    assert "no scores per vertebra, the prediction is binary: a, b" in table
    assert "id.rate" not in table
    # An empty prediction among numbered ones does miss all.
    save(prediction / "c_seg.nii.gz", np.zeros((12, 14, 60), np.uint8))
    block = scoring.score(prediction, reference)["cases"]["c"]["vertebrae"]
    assert (block["n_missed"], block["id_rate"], block["d_mean_mm"]) == (4, 0, None)


def test_arrays_are_scored_per_vertebra_on_request():
    reference = spine([20, 21])
    plain = scoring.score_arrays(reference, reference, AFFINE)
    assert plain.vertebrae is None
    assert "vertebrae" not in scoring.collect({"a": plain})["cases"]["a"]
    asked = scoring.score_arrays(reference, reference, AFFINE, vertebrae=True)
    assert scoring.collect({"a": asked})["cases"]["a"]["vertebrae"]["all_correct"]
    binary = scoring.score_arrays(reference > 0, reference, AFFINE, vertebrae=True)
    assert binary.vertebrae == identification.BINARY_PREDICTION


# Centroids from files.


def truth_points(array, offset=0.0):
    return {
        int(i): np.array(ndimage.center_of_mass(array == i)) + (0, offset, 0)
        for i in np.unique(array)
        if i
    }


def records_of(points, volume, direction=None):
    records = [{"direction": list(direction or volume.orientation)}]
    return records + [
        {"label": i, **dict(zip("XYZ", map(float, p), strict=True))} for i, p in points.items()
    ]


def test_centroids_of_all_conventions_and_of_the_mask_agree(tmp_path):
    prediction, reference = data_set(tmp_path)
    by_mask = scoring.score(prediction, reference)
    layouts = {
        "subject": ("sub-{}_seg-subreg_ctd.json", None),
        "verse19": ("{}_ctd.json", centroid_json.FRAMES["verse19"]),
        "verse20": ("{}_iso-ctd.json", centroid_json.FRAMES["verse20"]),
    }
    for layout, (name, axes) in layouts.items():
        for case in "abc":
            array = np.asarray(nibabel.load(reference / f"{case}_seg.nii.gz").dataobj)
            volume = LabelVolume(array, AFFINE)
            found = truth_points(array)
            records = miccai_records(found, volume, axes) if axes else records_of(found, volume)
            file = tmp_path / layout / "deep" / name.format(case).replace("sub-", "")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(records))
        scores = scoring.score(prediction, reference, reference_centroids=tmp_path / layout)
        assert scores["summary"]["vertebrae"].pop("reference_centroids") == "files"
        assert_same(
            scores["summary"]["vertebrae"],
            {
                k: v
                for k, v in by_mask["summary"]["vertebrae"].items()
                if k != "reference_centroids"
            },
        )
        assert_same(
            {k: v["vertebrae"] for k, v in scores["cases"].items()},
            {k: v["vertebrae"] for k, v in by_mask["cases"].items()},
        )


def test_real_centroid_files_are_used(real_data):
    # They mark bodies, which are found in masks to a millimetre or two; their centres of mass lie 7
    # to 16 mm behind.
    root = real_data / "verse"
    for subject in ("verse004", "gl003", "verse014"):
        (file,) = (root / "derivatives" / f"sub-{subject}").glob("*msk.nii.gz")
        scores = scoring.score(file, file, reference_centroids=root)
        whole = scores["summary"]["vertebrae"]
        assert (whole["id_rate"], whole["all_correct"]) == (1, 1)
        assert whole["d_mean_mm"] < 2.0
        assert "the given ones, and the centres of the prediction's bodies" in summary_table(scores)


def test_vertebrae_without_centroid_are_not_judged(tmp_path, caplog):
    reference = spine([20, 21, 22])
    mask = save(tmp_path / "x_seg.nii.gz", reference)
    found = truth_points(reference) | {24: np.array([4.0, 4.0, 4.0])}
    del found[21]
    file = tmp_path / "x_ctd.json"
    file.write_text(json.dumps(records_of(found, LabelVolume(reference, AFFINE))))
    with caplog.at_level(logging.WARNING):
        case = scoring.score(mask, mask, reference_centroids=file)["cases"]["x"]["vertebrae"]
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2 and "no centroid of L2" in warned[0] and "of L5" in warned[1]
    assert case["per_label"]["21"]["centroid_distance_mm"] is None
    assert (case["per_label"]["21"]["dice"], case["id_rate"], case["n_reference"]) == (1, 1, 3)
    assert case["all_correct"]


def test_names_of_the_layouts_find_each_other(tmp_path):
    reference = spine([20, 21, 22])
    mask = save(tmp_path / "m" / "sub-gl124_dir-ax_seg-vert_msk.nii.gz", reference)
    (tmp_path / "j").mkdir()
    records = records_of(truth_points(reference), LabelVolume(reference, AFFINE))
    (tmp_path / "j" / "GL124_CT_ax-iso-ctd.json").write_text(json.dumps(records))
    (tmp_path / "j" / "dataset_description.json").write_text("{}")
    scores = scoring.score(mask, mask, reference_centroids=tmp_path / "j")
    assert scores["summary"]["vertebrae"]["reference_centroids"] == "files"


def bad_centroids(root):
    prediction, reference = data_set(root)
    arrays = {n: np.asarray(nibabel.load(reference / f"{n}_seg.nii.gz").dataobj) for n in "abc"}
    for kind in ("missing", "wrong frame", "shifted", "twice", "no json", "no point"):
        for name, array in arrays.items():
            volume, found = LabelVolume(array, AFFINE), truth_points(array)
            direction = "RAI" if kind == "wrong frame" else None
            if kind == "shifted":
                found = {label + 1: point for label, point in found.items()}
            text = json.dumps(records_of({} if kind == "no point" else found, volume, direction))
            (root / kind).mkdir(exist_ok=True)
            if kind != "missing" or name != "b":
                (root / kind / f"{name}_ctd.json").write_text("?" if kind == "no json" else text)
    (root / "twice" / "a_iso-ctd.json").write_text("[]")
    (root / "empty").mkdir()
    return prediction, reference


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no centroid file for case b"),
        ("wrong frame", "of 3 centroids are at their vertebrae"),
        ("shifted", "of 3 centroids are at their vertebrae"),
        ("twice", "have one name"),
        ("no json", "is not JSON"),
        ("no point", "holds no centroid"),
        ("empty", "holds no centroid file"),
        ("nowhere", "no such file or folder"),
        ("missing/a_ctd.json", "is one file for 3 cases"),
    ],
)
def test_bad_centroids_are_told_in_one_line(tmp_path, capsys, kind, message):
    prediction, reference = bad_centroids(tmp_path)
    assert main(["score", f"--prediction={prediction}", f"--reference={reference}",
                 f"--output={tmp_path / 's.json'}",
                 f"--reference_centroids={tmp_path / kind}"]) == 1  # fmt: skip
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1 and message in said[0] and str(tmp_path / kind) in said[0]
    assert not (tmp_path / "s.json").exists()


def test_centroids_of_binary_masks_are_refused(tmp_path):
    prediction, reference = data_set(tmp_path)
    with pytest.raises(InputError, match="leave out --reference_centroids"):
        scoring.score(prediction, reference, labels="binary", reference_centroids=tmp_path)


def test_score_on_the_command_line(tmp_path, capsys):
    prediction, reference = data_set(tmp_path)
    target = tmp_path / "scores.json"
    assert main(["score", f"--prediction={prediction}", f"--reference={reference}",
                 f"--output={target}"]) == 0  # fmt: skip
    assert "scans with every vertebra right: 1 of 3" in capsys.readouterr().out
    scores = json.loads(target.read_text())
    assert scores["summary"]["vertebrae"]["per_region"]["T"]["n_extra"] == 1
    assert list(itertools.chain(*(c["vertebrae"]["per_label"] for c in scores["cases"].values()))) \
        == ["1", "2", "3", "7", "8", "19", "20", "21", "22"]  # fmt: skip
