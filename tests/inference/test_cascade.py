"""Naming a scan's vertebrae: box, grids, outlines, centroids, and what can go wrong."""

import tracemalloc

import numpy as np
import pytest

from spinejax import geometry, labels
from spinejax.data.preprocess import SlicePreprocess
from spinejax.inference import cascade
from spinejax.inference.sequence import ANOMALIES, Calibration
from spinejax.io import scanfile
from spinejax.volume import Volume
from tests.support.cubes import ways

CLASS_OF = np.zeros(labels.MAX_ID + 1, int)
CLASS_OF[list(labels.VERSE_IDS)] = labels.to_contiguous(np.array(labels.VERSE_IDS))
STEP = 20  # HU between labels


def settings(prior="crop", spacing_mm=2.0, **fields):
    how = SlicePreprocess(
        plane="sagittal",
        smoothing_sigma_mm=0.0,
        clamp_hu=(0.0, 1000.0),
        mode="isotropic",
        spacing_mm=spacing_mm,
        size=(8, 8),
        intensity="clamp",
        smoothing_sigma_px=0.7,
        smoothing_kernel_px=3,
    )
    values = dict(
        preprocess=how,
        normalise="sym",
        window=(24, 24, 32),
        overlap=0.5,
        batch_size=2,
        prior=prior,
        offsets=False,
        margin_mm=10.0,
        shifts=1,
        anomalies=ANOMALIES,
        calibration=Calibration(),
        drop_cut=False,
    )
    return cascade.CubeSettings(**{**values, **fields})


def look_up(cubes, masks, stats):
    """A network that reads the label off the HU."""
    ids = np.rint(cubes / STEP).astype(int).clip(0, labels.MAX_ID)
    return np.eye(labels.NUM_CLASSES, dtype=np.float32)[CLASS_OF[ids]]


def blocks(ids=(19, 20, 21, 22), spacing=(1.0, 1.0, 1.0), shape=(70, 80, 150)):
    """Canonical labels of blocks one above the other, the first id at the head."""
    array = np.zeros(shape, np.uint8)
    x, y = (n // 2 for n in shape[:2])
    for place, label in enumerate(ids):
        top = shape[2] - 12 - 32 * place
        array[x - 18 : x + 18, y - 16 : y + 16, top - 26 : top] = label
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = (40, 30, -900)
    return array, affine


def as_scan(array, affine, code="LPS"):
    """Scan whose HU tell the labels, stored in any orientation, and the labels."""
    turned, moved = geometry.reorient(array, affine, code)
    turned = np.ascontiguousarray(turned)
    return Volume(turned.astype(np.int16) * STEP, moved), array


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "ASL"])
@pytest.mark.parametrize("prior", ["none", "crop", "channel"])
def test_labels_and_centroids_are_on_the_scans_own_grid(code, prior):
    volume, true = as_scan(*blocks(), code)
    found = cascade.label_scan(look_up, volume, true > 0, settings(prior))
    assert found.record.labels == (19, 20, 21, 22)
    assert found.labels.shape == volume.shape and found.labels.dtype == np.uint8
    assert (found.labels == true).mean() > 0.99
    if prior != "none":  # the mask draws the outlines
        np.testing.assert_array_equal(found.labels > 0, true > 0)
    for label, point in found.centroids.items():
        apart = (point - np.argwhere(true == label).mean(0)) * volume.spacing_mm
        assert np.linalg.norm(apart) < 2.0


def test_anisotropic_scan():
    array, affine = blocks(spacing=(3.0, 0.5, 1.0), shape=(30, 160, 150))
    array[:] = 0
    for place, label in enumerate((19, 20, 21, 22)):
        array[9:21, 50:110, 112 - 32 * place : 138 - 32 * place] = label
    volume, true = as_scan(array, affine, "PIR")
    found = cascade.label_scan(look_up, volume, true > 0, settings())
    assert (found.labels == true).mean() > 0.99
    assert found.record.labels == (19, 20, 21, 22)


def test_no_spine_gives_empty_labels():
    volume, true = as_scan(*blocks())
    nothing = np.zeros_like(true)
    found = cascade.label_scan(look_up, volume, nothing, settings())
    assert not found.labels.any() and found.record is None and found.centroids == {}
    empty = Volume(np.zeros_like(volume.array), volume.affine)
    for spine in (true > 0, None):
        found = cascade.label_scan(
            look_up, empty, spine, settings("none" if spine is None else "crop")
        )
        assert not found.labels.any() and found.record is None


def test_vertebrae_that_an_end_cuts_are_told_and_dropped_on_request():
    array, affine = blocks()
    volume, true = as_scan(array[:, :, 30:], affine)
    kept = cascade.label_scan(look_up, volume, true > 0, settings())
    assert kept.record.cut == (22,) and kept.record.dropped == ()
    assert (kept.labels == 22).any()
    dropped = cascade.label_scan(look_up, volume, true > 0, settings(drop_cut=True))
    assert dropped.record.dropped == (22,) and not (dropped.labels == 22).any()
    assert 22 not in dropped.centroids and dropped.record.labels == (19, 20, 21, 22)


def test_what_is_dropped_is_not_given_to_its_neighbour():
    array, affine = blocks()
    array[16:54, 24:56, 42:74] = 21  # down to the next one
    volume, true = as_scan(array[:, :, 30:], affine)
    kept, dropped = (
        cascade.label_scan(look_up, volume, true > 0, settings(spacing_mm=4.0, drop_cut=drop))
        for drop in (False, True)
    )
    rest = np.where(kept.labels == 22, 0, kept.labels)
    np.testing.assert_array_equal(dropped.labels, rest)


def test_what_is_no_vertebra_is_left_out_and_counted():
    """A piece beside L1 that looks like L5, such as of a hip: without a name or a voxel."""
    array, affine = blocks((19, 20, 21), shape=(100, 80, 110))
    array[78:98, 26:58, 44:68] = 24
    volume, true = as_scan(array, affine)
    found = cascade.label_scan(look_up, volume, true > 0, settings())
    assert found.record.labels == (19, 20, 21) and found.record.unnamed == 1
    np.testing.assert_array_equal(found.labels, np.where(true == 24, 0, true))
    assert set(found.centroids) == {19, 20, 21}


def test_a_face_of_the_box_is_no_end_of_the_scan():
    """With a margin smaller than nothing the box ends at the vertebrae, the scan goes on."""
    volume, true = as_scan(*blocks())
    found = cascade.label_scan(look_up, volume, true > 0, settings(margin_mm=0.0))
    assert found.record.cut == ()


@pytest.mark.parametrize("shifts", [1, 2, 3])
def test_one_slice_and_tiny_scans_do_not_fail(shifts):
    array, affine = blocks()
    for box in (np.s_[30:31], np.s_[:, 40:41], np.s_[:, :, 120:121], np.s_[34:36, 40:42, 120:123]):
        volume, true = as_scan(array[box], affine)
        how = settings(shifts=shifts)
        done = []
        found = cascade.label_scan(look_up, volume, true > 0, how, advance=done.append)
        assert found.labels.shape == volume.shape
        assert sum(done) == cascade.count_windows(volume, true > 0, how)


def test_a_scan_upside_down_is_said():
    array, affine = blocks(ids=(18, 19, 20, 21, 22), shape=(70, 80, 190))
    volume, true = as_scan(array[:, :, ::-1].copy(), affine)
    found = cascade.label_scan(look_up, volume, true > 0, settings())
    assert found.record.reversed
    assert not cascade.label_scan(
        look_up, *as_scan(array, affine)[:1], array > 0, settings()
    ).record.reversed


def test_what_is_almost_as_probable_counts():
    """The larger half of every vertebra is a little more likely its lower neighbour, all are."""
    array, affine = blocks()

    def unsure(cubes, masks, stats):
        true = look_up(cubes, masks, stats)
        below = np.roll(true, 1, -1) * (true[..., :1] == 0)
        front = (np.arange(cubes.shape[2]) % 4 < 3)[:, None, None]
        wrong = np.where(true[..., :1] > 0, true, 0.45 * true + 0.55 * below)
        return np.where(front, wrong, true).astype(np.float32)

    volume = Volume(array.astype(np.int16) * STEP, affine)
    found = cascade.label_scan(unsure, volume, array > 0, settings("crop", window=(48, 48, 64)))
    assert found.record.labels == (19, 20, 21, 22)


def test_the_part_that_is_held_is_small(monkeypatch):
    """Classes x scan is never held: one layer of windows is."""
    volume, true = as_scan(*blocks())
    sizes = []
    zeros = np.zeros

    def counting(shape, *args, **kwargs):
        out = zeros(shape, *args, **kwargs)
        sizes.append(out.nbytes)
        return out

    monkeypatch.setattr(np, "zeros", counting)
    cascade.label_scan(look_up, volume, None, settings("none"))
    grid = np.prod([n // 2 for n in volume.shape])
    assert max(sizes) < 0.6 * grid * labels.NUM_CLASSES * 4
    assert max(sizes) < cascade.estimate_bytes(volume, settings("none"), labels.NUM_CLASSES)


@pytest.mark.parametrize(("shifts", "offsets"), [(1, False), (2, False), (2, True)])
def test_memory_is_as_announced(shifts, offsets):
    """What a whole scan takes at most, beside itself, by Python's own count of allocations.

    Slabs of the preprocessing, 64 MB at most, come on top: here two of the whole scan.
    """
    volume, true = as_scan(*blocks(shape=(120, 130, 220)))
    how = settings(
        "none", spacing_mm=4.0, shifts=shifts, window=(16, 16, 32), offsets=offsets, batch_size=1
    )

    def network(cubes, masks, stats):
        known = look_up(cubes, masks, stats)
        return np.concatenate([known, np.zeros_like(known[..., :3])], -1) if offsets else known

    tracemalloc.start()
    cascade.label_scan(network, volume, None, how)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    announced = cascade.estimate_bytes(volume, how, labels.NUM_CLASSES)
    assert 0.5 * announced < peak < 1.05 * announced + 8 * volume.array.size


@pytest.mark.parametrize("shifts", [1, 2, 3])
def test_windows_are_counted_for_the_bar(shifts):
    volume, true = as_scan(*blocks())
    done = []
    how = settings(shifts=shifts)
    cascade.label_scan(look_up, volume, true > 0, how, advance=done.append)
    assert 0 < sum(done) <= cascade.count_windows(volume, true > 0, how)
    assert cascade.count_windows(volume, np.zeros_like(true), how) == 0


def test_moved_grids_together_are_a_finer_one():
    """To a network that looks at single voxels, two grids of 4 mm along an axis are one of 2 mm."""
    volume, true = as_scan(*blocks())
    window = (12, 12, 16)
    coarse = settings(spacing_mm=4.0, shifts=2, window=window)
    moved = cascade.label_scan(look_up, volume, true > 0, coarse)
    fine = cascade.label_scan(look_up, volume, true > 0, settings(spacing_mm=2.0))
    np.testing.assert_array_equal(moved.labels, fine.labels)
    assert moved.record.labels == fine.record.labels == (19, 20, 21, 22)
    assert cascade.estimate_bytes(volume, coarse, 27) > cascade.estimate_bytes(
        volume, settings(spacing_mm=4.0, window=window), 27
    )


@pytest.mark.parametrize(
    ("kept", "completed"), [(1.0, True), (0.9, True), (0.5, True), (0.2, True), (0.0, False)]
)
def test_what_the_mask_misses_of_a_vertebra_is_completed(kept, completed):
    """The mask holds a share of L2, the second step sees all of it; what it misses whole stays."""
    volume, true = as_scan(*blocks())
    place = np.argwhere(true == 21)
    mask = true > 0
    low = place[:, 1].min()
    mask[true == 21] = place[:, 1] < low + round(kept * (place[:, 1].max() + 1 - low))
    part = cascade._part(volume, true > 0, settings())
    net = cascade._inner(true, part)
    net = net[np.ix_(*(geometry.nearest(n, m) for n, m in zip(net.shape, part.shape)))]  # noqa: B905

    def network(cubes, masks, stats):
        classes = np.eye(labels.NUM_CLASSES, dtype=np.float32)[CLASS_OF[net]]
        return np.concatenate([classes, ways(net, 0.2)], -1)[None]

    how = settings("channel", window=tuple(net.shape), batch_size=1, offsets=True, margin_mm=10.0)
    found = cascade.label_scan(network, volume, mask, how)
    own = found.labels == 21
    if not completed:
        assert not own.any() and set(found.record.labels) == {19, 20, 22}
        return
    assert found.record.labels == (19, 20, 21, 22)
    dice = 2 * (own & (true == 21)).sum() / (own.sum() + (true == 21).sum())
    assert dice > 0.9
    if kept >= 0.9:  # trusted: the mask draws the outlines
        np.testing.assert_array_equal(own, mask & (true == 21))
    others = found.labels[np.isin(true, (19, 20, 22))]
    np.testing.assert_array_equal(others, true[np.isin(true, (19, 20, 22))])


REAL = pytest.mark.parametrize(
    "files",
    [
        (
            "verse/rawdata/sub-verse014/sub-verse014_ct.nii.gz",
            "verse/derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
        ),
        (
            "totalsegmentator/example_ct.nii.gz",
            "totalsegmentator/example_vertebrae_verse-ids.nii.gz",
        ),
    ],
)


@REAL
def test_true_classes_of_real_scans_come_back(real_data, files):
    """A network that is right at 2 mm, on real masks: what grids and decoder lose."""
    volume, true, net = on_the_networks_grid(real_data, files)

    def network(cubes, masks, stats):
        return np.eye(labels.NUM_CLASSES, dtype=np.float32)[CLASS_OF[net[None]]]

    how = settings(window=tuple(net.shape), batch_size=1)
    found = cascade.label_scan(network, volume, true > 0, how)
    assert set(found.record.labels) == set(np.unique(true)) - {0}
    assert (found.labels == true)[true > 0].mean() > 0.97


@REAL
def test_centres_part_what_has_one_name(real_data, files):
    """A network that takes every voxel for L1 first, knows the name second and the centre well."""
    volume, true, net = on_the_networks_grid(real_data, files)

    def network(cubes, masks, stats):
        classes = np.eye(labels.NUM_CLASSES, dtype=np.float32)
        found = 0.45 * classes[CLASS_OF[net]] + 0.55 * classes[CLASS_OF[20 * (net > 0)]]
        return np.concatenate([found, ways(net, 0.2)], -1)[None].astype(np.float32)

    how = settings(window=tuple(net.shape), batch_size=1, offsets=True)
    found = cascade.label_scan(network, volume, true > 0, how)
    assert set(found.record.labels) == set(np.unique(true)) - {0}
    assert (found.labels == true)[true > 0].mean() > 0.97


def on_the_networks_grid(real_data, files):
    """Scan and mask, and the mask on the network's grid."""
    scan, mask = (real_data / file for file in files)
    volume, reference = scanfile.read_pair(scan, mask, valid=None)
    true = reference.array
    spine = (true > 0).view(np.uint8)
    part = cascade._part(volume, spine, settings())
    marks = cascade._inner(true, part)
    sides = zip(marks.shape, part.shape, strict=True)
    net = marks[np.ix_(*(geometry.nearest(native, side) for native, side in sides))]
    return volume, true, net
