import itertools
import json

import numpy as np
import pytest
from scipy import ndimage

from spinejax import geometry
from spinejax.errors import InputError
from spinejax.io import centroid_json, scanfile
from spinejax.volume import LabelVolume, Volume

MASKS = {
    "sub-verse004": ("verse004", "sub-verse004_seg-vert_msk.nii.gz", "seg-subreg_ctd"),
    "sub-verse014": ("verse014", "sub-verse014_seg-vert_msk.nii.gz", "seg-vb_ctd"),
    "sub-gl003": ("GL003", "sub-gl003_dir-ax_seg-vert_msk.nii.gz", "seg-subreg_ctd"),
}


def mask_of(real_data, subject):
    folder = real_data / "verse" / "derivatives" / subject
    _, name, suffix = MASKS[subject]
    mask = scanfile.read_labels(folder / name)
    return mask, folder / name.replace("seg-vert_msk.nii.gz", f"{suffix}.json")


def grid(shape=(40, 50, 60), code="LPS", spacing=(1.0, 1.0, 1.0)) -> Volume:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*spacing, 1.0])
    lps[:3, 3] = (100, -30, 7)
    array, affine = geometry.reorient(np.zeros(shape, np.int16), lps, code)
    return Volume(array, affine)


def write(path, records):
    path.write_text(json.dumps(records))
    return path


def miccai_records(points, volume, axes):
    """The inverse of reading, by another way: flip and scale one axis at a time."""
    code, sides = volume.orientation, volume.native.shape
    spacing_mm = geometry.spacing_mm(volume.native_affine)
    records = []
    for label, point in points.items():
        point = volume.native_index(point)
        values = []
        for letter in axes:
            same = next(i for i, c in enumerate(code) if {c, letter} <= set(pair_of(letter)))
            index = point[same] if code[same] == letter else sides[same] - 1 - point[same]
            values.append(float(index * spacing_mm[same]))
        records.append({"label": label, **dict(zip("XYZ", values, strict=True))})
    return records


def pair_of(letter):
    return next(pair for pair in ("RL", "AP", "SI") if letter in pair)


def test_golden_values_of_verse004(real_data):
    mask, path = mask_of(real_data, "sub-verse004")
    points = centroid_json.read_centroids(path, mask)
    assert list(points) == list(range(16, 25))
    np.testing.assert_allclose(mask.native_index(points[24]), (57.2, 266.4, 29.3), atol=1e-9)


@pytest.mark.parametrize("subject", sorted(MASKS))
def test_real_centroids_lie_in_their_vertebra(real_data, subject):
    mask, path = mask_of(real_data, subject)
    points = centroid_json.read_centroids(path, mask)
    inside = centroid_json.count_inside(points, mask, mask)
    # C1 has no body: its point may lie in the ring's hole or in the dens of C2.
    assert inside >= len(points) - (subject == "sub-gl003")
    assert sorted(points) == [label for label in np.unique(mask.array) if label]


@pytest.mark.parametrize("code", ["PIR", "LAS", "PSR", "RAI"])
def test_points_follow_the_volume_whatever_its_orientation(real_data, code):
    mask, path = mask_of(real_data, "sub-verse014")
    points = centroid_json.read_centroids(path, mask)
    turned = LabelVolume(*geometry.reorient(mask.array, mask.affine, code))
    again = centroid_json.read_centroids(path, turned)  # the record says PIR all the while
    for label, point in points.items():
        np.testing.assert_allclose(
            geometry.voxel_to_world(turned.affine, again[label]),
            geometry.voxel_to_world(mask.affine, point),
            atol=1e-6,
        )


@pytest.mark.parametrize("subject", sorted(MASKS))
@pytest.mark.parametrize(("edition", "axes"), centroid_json.FRAMES.items())
@pytest.mark.parametrize("code", ["PIR", "LAS", "SRP"])
def test_miccai_files_made_from_real_ones_are_read_back(
    real_data, tmp_path, subject, edition, axes, code
):
    mask, path = mask_of(real_data, subject)
    mask = LabelVolume(*geometry.reorient(mask.array, mask.affine, code))
    points = centroid_json.read_centroids(path, mask)
    records = miccai_records(points, mask, axes)
    # The mask alone decides, even against the name.
    for name in ("verse004_ctd.json", "verse004_iso-ctd.json", "unnamed.json"):
        file = write(tmp_path / name, records)
        again = centroid_json.read_centroids(file, mask, mask=mask)
        for label, point in points.items():
            np.testing.assert_allclose(again[label], point, atol=1e-6)
    # Without it the edition, without that the name.
    np.testing.assert_allclose(
        centroid_json.read_centroids(file, mask, edition=edition)[max(points)], points[max(points)]
    )
    named = "verse004_ctd.json" if edition == "verse19" else "GL124_CT_ax-iso-ctd.json"
    file = write(tmp_path / named, records)
    np.testing.assert_allclose(
        centroid_json.read_centroids(file, mask)[max(points)], points[max(points)]
    )


def test_closed_forms_of_the_miccai_frames(tmp_path):
    # Published conversions: in LPS mm, '19 is x = Z, y = Y, z = Nz sz - X; '20 is x = Nx sx - Z,
    # y = X, z = Nz sz - Y, as a published script has it. It turns an axis with size instead of
    # size - 1, hence one voxel less here, on exactly the turned axes.
    volume = grid(spacing=(0.7, 1.1, 2.5))
    (nx, _, nz), (sx, _, sz) = volume.shape, volume.spacing_mm
    x, y, z = 11.3, 17.9, 8.6
    file = write(tmp_path / "verse004_ctd.json", [{"label": 20, "X": x, "Y": y, "Z": z}])
    got = centroid_json.read_centroids(file, volume)[20] * volume.spacing_mm
    np.testing.assert_allclose(got, (z, y, nz * sz - x - sz))
    file = write(tmp_path / "verse004_iso-ctd.json", [{"label": 20, "X": x, "Y": y, "Z": z}])
    got = centroid_json.read_centroids(file, volume)[20] * volume.spacing_mm
    np.testing.assert_allclose(got, (nx * sx - z - sx, x, nz * sz - y - sz))


def test_published_verse19_points_of_verse014_lie_in_its_mask(real_data, tmp_path):
    # X, Y, Z of the MICCAI'19 file, undone from the LPS mm in Payer et al.'s set-up file, where
    # z = Nz sz - X and Nz sz = 186.
    mask, _ = mask_of(real_data, "sub-verse014")
    lps = [(37, 74, 150), (37, 61, 126), (36, 51, 96), (36, 56, 62), (37, 77, 39)]
    records = [{"label": 20 + i, "X": 186 - z, "Y": y, "Z": x} for i, (x, y, z) in enumerate(lps)]
    file = write(tmp_path / "verse014_ctd.json", records)
    points = centroid_json.read_centroids(file, mask)
    assert centroid_json.count_inside(points, mask, mask) == 5
    # The other convention puts one there, by chance; the mask outweighs a wrong edition.
    wrong = centroid_json.read_centroids(file, mask, edition="verse20")
    assert centroid_json.count_inside(wrong, mask, mask) == 1
    right = centroid_json.read_centroids(file, mask, edition="verse20", mask=mask)
    assert centroid_json.count_inside(right, mask, mask) == 5


def test_published_verse20_points_are_centres_of_mass_of_the_mask(real_data, tmp_path):
    # L5, L4 and T9 of verse004 and C7 and T5 of GL003 in Payer et al.'s set-up file, LPS mm with
    # x = Nx sx - Z, y = X, z = Nz sz - Y.
    published = {
        "sub-verse004": {
            24: (65.11722616, 66.66108713, 75.51525326),
            23: (64.93076342, 58.55445222, 104.32369678),
            16: (58.56901596, 91.04300927, 298.78440225),
        },
        "sub-gl003": {
            7: (69.94412749, 39.74887962, 136.88936946),
            12: (68.38909299, 74.48902897, 24.51016155),
        },
    }
    for subject, landmarks in published.items():
        mask, _ = mask_of(real_data, subject)
        (nx, _, nz), (sx, _, sz) = mask.shape, mask.spacing_mm
        records = [
            {"label": label, "X": y, "Y": nz * sz - z, "Z": nx * sx - x}
            for label, (x, y, z) in landmarks.items()
        ]
        file = write(tmp_path / f"{MASKS[subject][0]}_iso-ctd.json", records)
        points = centroid_json.read_centroids(file, mask)
        for label, point in points.items():
            expected = np.array(ndimage.center_of_mass(mask.array == label))
            assert np.abs((point - expected) * mask.spacing_mm).max() < 0.6


@pytest.mark.parametrize("code", geometry.ALL_ORIENTATIONS)
def test_written_centroids_are_read_back(tmp_path, code):
    volume = grid(code=code, spacing=(0.5, 1.5, 3.0))
    points = {24: np.array([1.25, 2.5, 3.75]), 28: np.array([30.0, 0.0, 9.5]), 1: np.zeros(3)}
    path = tmp_path / "sub-x_seg-subreg_ctd.json"
    centroid_json.write_centroids(path, points, volume)
    assert json.loads(path.read_text())[0] == {"direction": list(code)}
    again = centroid_json.read_centroids(path, volume)
    assert list(again) == [1, 28, 24]
    for label, point in points.items():
        np.testing.assert_allclose(again[label], point, atol=1e-9)


def test_direction_of_another_orientation_turns_the_points(tmp_path):
    # By hand: (x, y, z) of an LPS array of 40 x 50 x 60 is (y, 59 - z, 39 - x) in PIR.
    path = write(
        tmp_path / "a_ctd.json",
        [{"direction": ["P", "I", "R"]}, {"label": 20, "X": 20.0, "Y": 29.0, "Z": 29.0}],
    )
    point = centroid_json.read_centroids(path, grid())[20]
    np.testing.assert_allclose(point, (10, 20, 30))
    assert centroid_json.read_direction(path) == "PIR"


def test_not_a_number_is_skipped(tmp_path):
    path = tmp_path / "verse004_ctd.json"
    path.write_text(
        '[{"direction": "LPS"}, {"label": 20, "X": NaN, "Y": 1, "Z": 2},'
        ' {"label": 21, "X": null, "Y": 1, "Z": 2}, {"label": "22", "X": "5", "Y": 1, "Z": 2}]'
    )
    assert list(centroid_json.read_centroids(path, grid())) == [22]


def test_markups_are_in_slicer_space(tmp_path):
    volume = grid(spacing=(2.0, 1.0, 1.0))
    path = tmp_path / "a.mrk.json"
    centroid_json.write_markups(path, {24: np.array([1, 2, 3]), 20: np.zeros(3)}, volume)
    (markup,) = json.loads(path.read_text())["markups"]
    assert markup["coordinateSystem"] == "LPS"
    # World is RAS, Slicer's file is LPS: x and y change sign. This grid is LPS itself, so that the
    # points move along with the index, by 1 * 2 mm, 2 * 1 mm and 3 * 1 mm.
    origin = -volume.affine[:2, 3]
    assert [p["label"] for p in markup["controlPoints"]] == ["L1", "L5"]
    np.testing.assert_allclose(markup["controlPoints"][0]["position"], (*origin, 7))
    np.testing.assert_allclose(
        markup["controlPoints"][1]["position"], (origin[0] + 2, origin[1] + 2, 10)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[{", "is not JSON"),
        ("\x00\x01", "is not JSON"),
        ("{}", "is not a list"),
        ("[[1, 2, 3]]", "record 0 is no object"),
        ('[{"label": 20, "X": 1, "Y": 2}]', "record 0 must have"),
        ('[{"label": "L1", "X": 1, "Y": 2, "Z": 3}]', "record 0 must have"),
        ('[{"label": 20, "X": [1], "Y": 2, "Z": 3}]', "record 0 must have"),
        ('[{"label": Infinity, "X": 1, "Y": 2, "Z": 3}]', "record 0 must have"),
        ('[{"label": 26, "X": 1, "Y": 2, "Z": 3}]', "label 26 is no vertebra"),
        ('[{"direction": ["P", "P", "R"]}]', "direction"),
        ('[{"direction": 5}]', "direction"),
        ('[{"label": 20, "X": 1, "Y": 2, "Z": 3}, {"label": 20, "X": 1, "Y": 2, "Z": 3}]',
         "L1 has two centroids"),
        ('[{"label": 20, "X": 1, "Y": 2, "Z": 3}]', "no direction record"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "points.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        centroid_json.read_centroids(path, grid())
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_missing_file_and_undecodable_bytes_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        centroid_json.read_centroids(tmp_path / "none.json", grid())
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="is not JSON"):
        centroid_json.read_centroids(tmp_path / "bytes.json", grid())


def test_label_at_is_background_outside_the_mask():
    mask = LabelVolume(np.full((2, 2, 2), 7, np.uint8), np.eye(4))
    for corner in itertools.product((-1, 2), repeat=3):
        assert centroid_json.label_at(np.array(corner), mask, mask) == 0
    assert centroid_json.label_at(np.array((1, 0, 1)), mask, mask) == 7
