"""Averages over runs and over the mirror image."""

import numpy as np
import pytest

from spinejax import cli
from spinejax.inference import ensemble
from spinejax.io.scanfile import read_volume
from spinejax.predictor import load
from spinejax.training import loop
from tests.support import tiny_run

NO_STATS = np.zeros(4, np.float32)


def nothing(slices):
    """Stand in for a progress bar."""


def shifted(by):
    """A network of slices that tells left from right: HU of the pixel `by` to the left."""

    def predict(stack, stats, advance, within=None):
        advance(len(stack))
        return np.roll(stack, by, axis=1).astype(np.float32)

    return predict


def test_the_mean_is_numpys_and_counts_slices_once():
    stack = np.random.default_rng(0).integers(-99, 99, (3, 8, 5)).astype(np.int16)
    members = [shifted(0), shifted(1), shifted(2)]
    done = []
    found = ensemble.mean_stack(members)(stack, NO_STATS, done.append)
    alone = [member(stack, NO_STATS, nothing) for member in members]
    np.testing.assert_allclose(found, np.mean(alone, 0), rtol=1e-6)
    assert sum(done) == 3
    assert ensemble.mean_stack(members[:1])(stack, NO_STATS, nothing).dtype == np.float32


def test_averaged_over_the_mirror_image_left_and_right_are_treated_alike():
    stack = np.random.default_rng(1).integers(-99, 99, (3, 8, 5)).astype(np.int16)
    both = ensemble.mirrored_stack(shifted(1))
    mirrored = both(stack[:, ::-1], NO_STATS, nothing)[:, ::-1]
    np.testing.assert_array_equal(both(stack, NO_STATS, nothing), mirrored)
    assert (shifted(1)(stack[:, ::-1], NO_STATS, nothing)[:, ::-1] != mirrored).any()


@pytest.mark.parametrize("offsets", [True, False])
def test_cubes_are_mirrored_with_their_masks_and_ways(offsets):
    rng = np.random.default_rng(2)
    image = rng.integers(-99, 99, (2, 6, 5, 4)).astype(np.int16)
    spine = (image > 0).astype(np.uint8)

    def predict(image, spine, stats):
        x = np.roll(image, 1, axis=1).astype(np.float32)
        # Two classes, then a way along x, y and z.
        return np.stack([x, spine - x, 2 * x, 3 * x, 4 * x][: 5 if offsets else 2], -1)

    both = ensemble.mirrored_cubes(predict, offsets=offsets)
    seen = both(image, spine, NO_STATS)
    mirror = both(image[:, ::-1], spine[:, ::-1], NO_STATS)[:, ::-1]
    if offsets:
        # What lies to the left lies to the right there.
        np.testing.assert_array_equal(mirror[..., 2], -seen[..., 2])
        mirror = np.delete(mirror, 2, -1)
        seen = np.delete(seen, 2, -1)
    np.testing.assert_array_equal(seen, mirror)
    mean = ensemble.mean_cubes([predict, predict])(image, spine, NO_STATS)
    np.testing.assert_array_equal(mean, predict(image, spine, NO_STATS))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in seed and normalisation, one of other pixels, and an axial one."""
    folder = tmp_path_factory.mktemp("runs")
    root = tiny_run.write_scans(folder / "scans")
    changes = {
        "a": {},
        "b": {"seed": 1, "data.normalise": "zscore"},
        "coarse": {"data.preprocess.spacing_mm": 2.0},
        "axial": {"data.plane": "axial"},
    }
    for name, fields in changes.items():
        config = tiny_run.tiny_config(
            root, **{"data.cache_dir": str(folder / "cache"), "train.steps": 3, **fields}
        )
        loop.train(config, folder / name)
    return folder


def test_two_runs_are_averaged_and_one_with_itself_is_that_one(runs, tmp_path, capsys):
    ct = runs / "scans" / "images" / "case0.nii.gz"

    def found(*names):
        out = tmp_path / "-".join(names)
        words = [f"--workdir={runs / name}" for name in names]
        assert cli.main(["predict", *words, f"--input={ct}", f"--output={out}"]) == 0
        return read_volume(out / "case0_seg.nii.gz").array

    np.testing.assert_array_equal(found("a"), found("a", "a"))
    # Statistics of the scan are there if any member needs them, in either order.
    np.testing.assert_array_equal(found("a", "b"), found("b", "a"))
    capsys.readouterr()


@pytest.mark.parametrize(
    ("names", "words", "said"),
    [
        (("a", "coarse"), (), "data.preprocess.spacing_mm is 2.0 there and 1.0 here"),
        (("a",), ("--flip",), "sees sagittal slices"),
        (("a", "none"), (), "none is not the folder of a run"),
    ],
)
def test_what_cannot_be_averaged_is_refused(runs, tmp_path, capsys, names, words, said):
    ct = runs / "scans" / "images" / "case0.nii.gz"
    folders = [f"--workdir={runs / name}" for name in names]
    out = tmp_path / "out"
    assert cli.main(["predict", *folders, *words, f"--input={ct}", f"--output={out}"]) == 1
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_runs_of_two_planes_are_averaged_in_either_order(runs):
    volume = read_volume(runs / "scans" / "images" / "case0.nii.gz")
    one, other = (
        load([runs / name for name in names], checkpoint="latest").segment(volume).mask
        for names in (("a", "axial"), ("axial", "a"))
    )
    np.testing.assert_array_equal(one, other)
    alone = load(runs / "a", checkpoint="latest").segment(volume).mask
    assert one.shape == alone.shape


def test_axial_slices_can_be_mirrored(runs):
    volume = read_volume(runs / "scans" / "images" / "case0.nii.gz")
    models = [load(runs / "axial", checkpoint="latest", flip=flip) for flip in (False, True)]
    shapes = {model.segment(volume).mask.shape for model in models}
    assert shapes == {volume.shape}
