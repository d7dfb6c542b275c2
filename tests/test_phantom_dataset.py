"""Phantoms on disk: a VerSe-like data set that the project's own readers accept."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from spinejax.data import centroids, nifti, scanfile, verse
from spinejax.data.phantom import acquisition, dataset
from spinejax.errors import InputError

LIMITS = {"max_spacing_mm": 3.0, "min_spacing_mm": 1.5, "max_extent_mm": 200.0}
SMALL = {**LIMITS, "max_voxels": 200_000, "progress": False}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms")
    assert dataset.write_dataset(out, 3, 7, **SMALL) == ["phantom000", "phantom001", "phantom002"]
    return out


def test_index_finds_every_case_whole(written):
    cases = verse.index_dataset(written)
    assert len(cases) == 3
    assert len({case.subject for case in cases}) == 3
    for case in cases:
        assert case.image and case.labels and case.centroids
        assert not case.problems


def test_scans_keep_to_the_limits_and_are_int16(written):
    orientations = set()
    for case in verse.index_dataset(written):
        volume, labels = scanfile.read_pair(case.image, case.labels)
        assert volume.array.dtype == np.int16
        assert max(volume.spacing_mm) <= 3.0 + 1e-4 and min(volume.spacing_mm) >= 1.5 - 1e-4
        extent = np.array(volume.shape) * volume.spacing_mm
        assert extent.max() <= 200.0 + 3.0
        assert 200 < (labels.array > 0).sum() < 0.5 * labels.array.size
        orientations.add(volume.orientation)
    assert len(orientations) > 1


def test_centroids_lie_in_the_vertebra_that_they_name(written):
    for case in verse.index_dataset(written):
        volume, labels = scanfile.read_pair(case.image, case.labels)
        points = centroids.read_centroids(case.centroids, volume)
        assert set(points) == set(np.unique(labels.array)) - {0}
        for vertebra, point in points.items():
            if vertebra == 1:
                continue
            assert labels.array[tuple(np.round(point).astype(int))] == vertebra


def test_vertebrae_cut_by_the_field_are_bone_without_a_label(written):
    for case in verse.index_dataset(written):
        volume, labels = scanfile.read_pair(case.image, case.labels)
        axis = next(i for i, letter in enumerate(volume.orientation) if letter in "SI")
        ends = np.take(labels.array, [0, -1], axis)
        assert not ends.any()
        beyond = ndimage.binary_dilation(labels.array > 0, iterations=2)
        assert (volume.array[~beyond] > 250).sum() > 100


def test_a_case_does_not_depend_on_how_many_are_written_and_is_reproducible(written, tmp_path):
    dataset.write_dataset(tmp_path, 1, 7, **SMALL)
    for path, other in zip(
        dataset.case_paths(tmp_path, 0), dataset.case_paths(written, 0), strict=True
    ):
        if path.suffix == ".json":
            assert path.read_bytes() == other.read_bytes()
        else:
            assert (nifti.read_volume(path).array == nifti.read_volume(other).array).all()


def test_writing_continues_where_it_was_interrupted(written, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(written, out)
    before = {p: p.stat().st_mtime_ns for p in dataset.case_paths(out, 0)}
    missing = dataset.case_paths(out, 1)
    missing[2].unlink()
    dataset.write_dataset(out, 3, 7, **SMALL)
    assert missing[2].read_bytes() == dataset.case_paths(written, 1)[2].read_bytes()
    assert before == {p: p.stat().st_mtime_ns for p in dataset.case_paths(out, 0)}


def test_folder_of_another_seed_is_refused(written):
    with pytest.raises(InputError, match="other settings"):
        dataset.write_dataset(written, 3, 8, **SMALL)


def test_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "README").write_text("my scans")
    with pytest.raises(InputError, match="holds other files"):
        dataset.write_dataset(tmp_path, 1, 0, progress=False)
    (tmp_path / "dataset_description.json").write_text('{"Name": "mine"}')
    with pytest.raises(InputError, match="another kind"):
        dataset.write_dataset(tmp_path, 1, 0, progress=False)
    assert (tmp_path / "README").read_text() == "my scans"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("cases", "options", "words"),
    [
        (0, {}, "cases=0"),
        (1, {"max_spacing_mm": 0.2}, "voxel sizes"),
        (1, {"max_extent_mm": 10.0}, "max_extent_mm"),
        (1, {"min_extent_mm": 0.0}, "min_extent_mm"),
        (1, {"min_extent_mm": float("inf")}, "min_extent_mm"),
        (1, {"max_voxels": 0}, "max_voxels"),
        (1, {"max_spacing_mm": float("nan")}, "voxel sizes"),
    ],
    ids=["cases", "spacing", "extent", "height", "infinite", "voxels", "nan"],
)
def test_unusable_numbers_are_refused(tmp_path, cases, options, words):
    with pytest.raises(InputError, match=words) as error:
        dataset.write_dataset(tmp_path / "x", cases, 0, progress=False, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_output_that_is_a_file_is_refused(tmp_path):
    path = Path(tmp_path) / "file"
    path.write_text("")
    with pytest.raises(InputError, match="cannot write phantoms"):
        dataset.write_dataset(path, 1, 0, progress=False)


def test_planned_scans_hold_a_vertebra_and_fit_their_budget():
    rng = np.random.default_rng(0)
    ids = np.r_[1:25, 0, 0]
    origins = np.c_[np.zeros(26), np.zeros(26), np.linspace(300, -300, 26)]
    fine = 10.0
    for _ in range(200):
        scan = acquisition.plan_scan(
            rng, ids, origins, ("LPS",), min_spacing_mm=0.3, max_spacing_mm=3.0,
            min_extent_mm=116.0, max_extent_mm=400.0, max_voxels=2_000_000,
        )  # fmt: skip
        spacing = np.diag(scan.affine)[:3]
        fine = min(fine, spacing.min())
        assert spacing.max() <= 3.001
        assert np.prod(scan.shape) < 2_200_000
        assert (np.array(scan.shape) * spacing)[2] >= 110
        assert 8 <= scan.noise_hu <= 90
    assert fine < 0.48


def test_noise_has_the_stated_standard_deviation_whatever_its_grain():
    for grain in (0.0, 0.9):
        scan = acquisition.Scan((40, 40, 40), np.eye(4), "LPS", 0.5, 30.0, grain, False, -1024)
        noisy = acquisition.acquire(np.random.default_rng(0), np.zeros((40, 40, 40)), scan)
        assert noisy.dtype == np.int16
        assert abs(noisy.std() - 30.0) < 1.0


def test_outside_of_the_reconstruction_circle_stands_its_value():
    scan = acquisition.Scan((40, 40, 4), np.eye(4), "LPS", 0.5, 10.0, 0.0, True, -2048)
    out = acquisition.acquire(np.random.default_rng(0), np.zeros((40, 40, 4)), scan)
    assert (out[0, 0] == -2048).all()
    assert out[20, 20].min() > -1024
