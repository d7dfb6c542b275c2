"""Phantoms on disk: a VerSe-like data set that the project's own readers accept."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from spinejax import geometry, plausible
from spinejax.datasets import verse
from spinejax.errors import InputError
from spinejax.io import centroid_json, nifti, scanfile
from spinejax.phantom import dataset
from spinejax.phantom.scanner import scan_plan
from spinejax.volume import Volume

LIMITS = {"max_spacing_mm": 3.0, "min_spacing_mm": 1.5, "max_extent_mm": 200.0}


SMALL = {**LIMITS, "max_voxels": 200_000}


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


def test_scans_keep_to_the_limits(written):
    orientations = set()
    for case in verse.index_dataset(written):
        volume, labels = scanfile.read_pair(case.image, case.labels)
        assert -1024 <= volume.array.min() and volume.array.max() <= 8000
        assert max(volume.spacing_mm) <= 3.0 + 1e-4 and min(volume.spacing_mm) >= 1.5 - 1e-4
        extent = np.array(volume.shape) * volume.spacing_mm
        assert extent.max() <= 200.0 + 3.0
        assert 200 < (labels.array > 0).sum() < 0.5 * labels.array.size
        orientations.add(volume.orientation)
    assert len(orientations) > 1


def test_centroids_lie_in_the_vertebra_that_they_name(written):
    for case in verse.index_dataset(written):
        volume, labels = scanfile.read_pair(case.image, case.labels)
        points = centroid_json.read_centroids(case.centroids, volume)
        assert set(points) == set(np.unique(labels.array)) - {0}
        for vertebra, point in points.items():
            if vertebra == 1:
                continue
            assert labels.array[tuple(np.round(point).astype(int))] == vertebra


def test_vertebrae_cut_by_the_field_are_bone_without_a_label(written):
    for case in verse.index_dataset(written):
        volume, labels = scanfile.read_pair(case.image, case.labels)
        ends = labels.array[:, :, [0, -1]]
        assert not ends.any()
        beyond = ndimage.binary_dilation(labels.array > 0, iterations=2)
        assert (volume.array[~beyond] > 250).sum() > 100


def test_cut_vertebrae_are_labelled_where_that_is_asked_for(written, tmp_path):
    """The same scans: labels come on top, at their ends; centroids that lie outside do not."""
    dataset.write_dataset(tmp_path, 3, 7, **SMALL, label_cut=True)
    more = 0
    for without, case in zip(
        verse.index_dataset(written), verse.index_dataset(tmp_path), strict=True
    ):
        volume, labels = scanfile.read_pair(case.image, case.labels)
        plain, few = scanfile.read_pair(without.image, without.labels)
        np.testing.assert_array_equal(volume.array, plain.array)
        assert (labels.array[few.array > 0] == few.array[few.array > 0]).all()
        added = set(np.unique(labels.array)) - set(np.unique(few.array))
        more += len(added)
        points = centroid_json.read_centroids(case.centroids, volume)
        assert set(np.unique(few.array)) - {0} <= set(points) <= set(np.unique(labels.array))
    assert more >= 3
    with pytest.raises(InputError, match="other settings"):
        dataset.write_dataset(tmp_path, 3, 7, **SMALL)


def test_a_case_does_not_depend_on_how_many_are_written_and_is_reproducible(written, tmp_path):
    dataset.write_dataset(tmp_path, 1, 7, **SMALL)
    for path, other in zip(
        dataset.case_paths(tmp_path, 0), dataset.case_paths(written, 0), strict=True
    ):
        if path.suffix == ".json":
            assert path.read_bytes() == other.read_bytes()
        else:
            assert (scanfile.read_volume(path).array == scanfile.read_volume(other).array).all()


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
        dataset.write_dataset(tmp_path, 1, 0)
    (tmp_path / "dataset_description.json").write_text('{"Name": "mine"}')
    with pytest.raises(InputError, match="another kind"):
        dataset.write_dataset(tmp_path, 1, 0)
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
        dataset.write_dataset(tmp_path / "x", cases, 0, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_output_that_is_a_file_is_refused(tmp_path):
    path = Path(tmp_path) / "file"
    path.write_text("")
    with pytest.raises(InputError, match="cannot write phantoms"):
        dataset.write_dataset(path, 1, 0)


@pytest.mark.parametrize("workers", [2])
def test_processes_write_the_same_bytes_as_one(written, tmp_path, workers):
    dataset.write_dataset(tmp_path, 3, 7, workers=workers, **SMALL)
    for index in range(3):
        for path in dataset.case_paths(written, index):
            assert (tmp_path / path.relative_to(written)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("storage", scan_plan._STORAGES, ids=lambda s: f"{s.dtype}x{s.slope}")
def test_values_survive_every_type_on_disk(tmp_path, storage):
    rng = np.random.default_rng(0)
    hu = rng.integers(-2048, 3072, (6, 5, 4)).astype(np.int16)
    affine = geometry.LPS_TO_RAS @ np.diag([0.5, 0.6, 2.0, 1.0])
    path = tmp_path / "a.nii"
    nifti.write_volume(
        path, Volume(hu, affine), storage.dtype, slope=storage.slope, inter=storage.inter
    )
    image = nib.load(path)
    assert image.get_data_dtype() == np.dtype(storage.dtype)
    np.testing.assert_array_equal(np.asarray(image.dataobj), hu)
    np.testing.assert_allclose(image.affine, affine)
    np.testing.assert_array_equal(scanfile.read_volume(path).array, np.maximum(hu, -1024))


def test_variants_come_at_the_rate_asked_for(tmp_path):
    limits = dataset.check_limits(
        1, 0, min_spacing_mm=3.0, max_spacing_mm=3.0, min_extent_mm=200.0, max_extent_mm=300.0,
        max_voxels=100_000, rates={"no_t12": 1.0, "l6": 1},
    )  # fmt: skip
    assert limits["rates"] == {"no_t12": 1.0, "l6": 1.0}
    for index in range(3):
        person, *_ = dataset.plan_case(0, index, limits)
        ids = np.asarray(person["spine"]["id"])
        assert 25 in ids and 19 not in ids and 28 not in ids
    for rates, words in (({"t14": 1}, "t14"), ({"t13": 2}, "give a probability from 0 to 1")):
        with pytest.raises(InputError, match=words):
            dataset.write_dataset(tmp_path / "x", 1, 0, rates=rates)
    assert not (tmp_path / "x").exists()


def test_a_ct_stored_uncompressed_is_not_drawn_again(tmp_path):
    image, mask, points = dataset.case_paths(tmp_path, 0)
    for path in (image.with_suffix(""), mask, points):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert dataset._complete(tmp_path, 0)
    image.with_suffix("").unlink()
    assert not dataset._complete(tmp_path, 0)


def test_phantoms_are_plausible(written):
    for path in written.rglob("*_ct.nii.gz"):
        assert plausible.check(scanfile.read_volume(path), "phantom") == []
