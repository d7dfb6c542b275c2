"""Cubes of cached scans: exact resume and sharding, every voxel once, rare labels as often."""

import itertools
from contextlib import closing

import numpy as np
import pytest

from spinejax.data import cache, cube_feed, feeds
from spinejax.data.preprocess import SlicePreprocess
from spinejax.errors import InputError
from tests.data.test_slice_feed import assert_equal, make_cached, row

SIZE = (12, 16, 20)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return make_cached(tmp_path_factory.mktemp("scans"), mode="isotropic", spacing_mm=1.0)


def feed(cached, **fields):
    fields = {"size": SIZE, "batch_size": 4, "seed": 3, "threads": 2, "prefetch": 2} | fields
    return cube_feed.CubeFeed({"train": cached, "val": cached}, **fields)


def take(cached, count, *, start=0, process=0, processes=1, **fields):
    batches = feed(cached, **fields).train(
        start_step=start, process_index=process, process_count=processes
    )
    with closing(batches):
        return list(itertools.islice(batches, count))


def test_batches_have_the_promised_shapes_and_types(cached):
    (batch,) = take(cached, 1)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "image": ((4, *SIZE), np.int16),
        "label": ((4, *SIZE), np.uint8),
        "stats": ((4, 4), np.float32),
        "case": ((4,), np.int32),
        "index": ((4,), np.int32),
        "weight": ((4,), np.float32),
        "position": ((4,), np.int32),
    }


@pytest.mark.parametrize("threads", [0, 3])
def test_resuming_at_a_step_gives_the_same_batches(cached, threads):
    whole = take(cached, 9)
    for expected, got in zip(whole[5:], take(cached, 4, start=5, threads=threads), strict=True):
        assert_equal(expected, got)
    other = take(cached, 1, seed=4)[0]
    assert not np.array_equal(other["image"], whole[0]["image"])


def test_processes_together_read_the_stream_of_one(cached):
    whole = take(cached, 3)
    shares = [take(cached, 3, process=i, processes=2) for i in range(2)]
    for step, expected in enumerate(whole):
        joined = {k: np.concatenate([s[step][k] for s in shares]) for k in expected}
        order = np.argsort(joined["position"])
        assert_equal(expected, {k: v[order] for k, v in joined.items()})


def test_batches_of_one_cube_read_the_same_stream(cached):
    (whole,) = take(cached, 1)
    for index, batch in enumerate(take(cached, 4, batch_size=1)):
        assert_equal(row(whole, index), row(batch, 0))


def test_cubes_are_cut_from_their_scan_at_their_place(cached):
    for batch in take(cached, 4):
        for image, label, case, first in zip(
            batch["image"], batch["label"], batch["case"], batch["index"], strict=True
        ):
            scan = cached[case]
            rows = scan.image[max(first, 0) : first + SIZE[0]]
            # The cube's middle slice occurs in that slice of the scan, label and all.
            middle = SIZE[0] // 2
            at = first + middle
            if not 0 <= at < scan.shape[0]:
                continue
            assert len(rows)
            views = np.lib.stride_tricks.sliding_window_view(scan.image[at], SIZE[1:])
            same = np.flatnonzero((views == image[middle]).all((2, 3)))
            assert len(same)
            row, column = np.unravel_index(same[0], views.shape[:2])
            part = scan.label[at, row : row + SIZE[1], column : column + SIZE[2]]
            np.testing.assert_array_equal(label[middle], part)


def test_two_thirds_hold_a_label_and_each_label_as_often(tmp_path):
    """A label of a hundredth of the volume of the other comes as often."""
    cached = make_cached(tmp_path, count=1, shape=(40, 60, 60))
    label = np.zeros(cached[0].shape, np.uint8)
    label[5:25, 5:35, 5:35] = 20
    label[37:39, 50:56, 50:56] = 3
    np.save(cached[0].path / "label.npy", label)
    cache._open_array.cache_clear()
    size = (6, 6, 6)
    seen = {3: 0, 20: 0, 0: 0}
    batches = take(cached, 100, size=size, batch_size=8)
    for batch in batches:
        for one in batch["label"]:
            for value in (3, 20):
                seen[value] += bool((one == value).any())
            seen[0] += not one.any()
    total = 800
    # Cubes anywhere: the small label is met by fewer than 1 %, the large one by about a third.
    assert 0.28 < seen[3] / total < 0.39
    assert seen[20] / total > 0.36
    assert seen[0] / total == pytest.approx(1 / 3 * 0.67, abs=0.07)


def test_validation_sees_every_voxel_once(cached):
    counts = [np.zeros(case.shape, int) for case in cached]
    sums = np.zeros(len(cached), int)
    given = feed(cached).val(process_index=0, process_count=1)
    rows = 0
    for batch in given:
        for i in range(4):
            rows += 1
            if batch["weight"][i]:
                sums[batch["case"][i]] += int((batch["label"][i] > 0).sum())
    table = feeds.tile_table(cached, SIZE)
    for case, *start in table:
        region = tuple(slice(max(s, 0), max(s + n, 0)) for s, n in zip(start, SIZE, strict=True))
        counts[case][region] += 1
    assert all((count == 1).all() for count in counts)
    assert rows % 4 == 0 and rows >= len(table)
    assert sums.tolist() == [int((case.label > 0).sum()) for case in cached]
    assert feed(cached).per_epoch == -(-len(table) // 4)


def test_no_scan_and_unusable_numbers_are_input_errors(cached):
    with pytest.raises(InputError, match="no cubes to read"):
        take([], 1)
    with pytest.raises(InputError, match="batch_size"):
        take(cached, 1, batch_size=0)


def test_scans_of_one_spacing_are_what_isotropic_makes(tmp_path):
    how = SlicePreprocess(mode="isotropic", spacing_mm=2.0)
    cached = make_cached(tmp_path, count=1, mode="isotropic", spacing_mm=2.0)
    assert cached[0].settings.identity()["mode"] == how.mode
    # 15 x 50 x 40 voxels of 1 mm.
    assert cached[0].shape == (8, 25, 20)
    assert cached[0].slice_spacing_mm == pytest.approx(15 / 8)


# Cubes of single vertebrae


def middles(label, spacing_mm):
    assert spacing_mm == (1.0, 1.0, 1.0)
    return {i: np.argwhere(label == i).mean(0) for i in np.unique(label).tolist() if i}


def outlines(cached, **fields):
    fields = dict(size=SIZE, shift=np.array([0, 2.0, -1.0]), jitter=0.0, centres=middles) | fields
    reading = dict(batch_size=4, seed=3, threads=0, prefetch=2)
    return cube_feed.OutlineFeed({"train": cached, "val": cached}, **fields, **reading)


def first_batches(feed, count, start=0):
    with closing(feed.train(start_step=start)) as batches:
        return list(itertools.islice(batches, count))


def test_a_cube_lies_about_its_vertebra_and_labels_no_other(cached):
    feed = outlines(cached)
    middle = [(n - 1) / 2 - s for n, s in zip(SIZE, (0, 2.0, -1.0), strict=True)]
    for batch in first_batches(feed, feed.per_epoch):
        for case, first, label in zip(batch["case"], batch["index"], batch["label"], strict=True):
            assert set(np.unique(label)) <= {0, 1} and label.any()
            scan = cached[case].label
            found = middles(scan, (1.0, 1.0, 1.0)).values()
            apart = [abs(centre[0] - (first + middle[0])) for centre in found]
            assert min(apart) <= 0.5


def test_an_epoch_has_every_vertebra_once_and_validation_too(cached):
    feed = outlines(cached)
    count = sum(len(np.unique(scan.label)) - 1 for scan in cached)
    assert feed.epoch_samples == count
    seen = [batch for batch in feed.val()]
    weight = np.concatenate([batch["weight"] for batch in seen])
    assert weight.sum() == count and len(weight) == 4 * len(seen)
    filler = np.concatenate([batch["label"] for batch in seen])[weight == 0]
    assert not filler.any()
    cases = np.concatenate([batch["case"] for batch in seen])[weight > 0]
    assert set(cases) == set(range(len(cached)))


def test_jitter_moves_cubes_in_training_alone_and_resumes(cached):
    still, moved = outlines(cached), outlines(cached, jitter=3.0)
    for a, b in zip(still.val(), moved.val(), strict=True):
        assert_equal(a, b)
    whole = first_batches(moved, 4)
    assert any(
        (a["label"] != b["label"]).any()
        for a, b in zip(first_batches(still, 4), whole, strict=True)
    )
    for expected, got in zip(whole[2:], first_batches(moved, 2, start=2), strict=True):
        assert_equal(expected, got)


def test_a_split_without_vertebrae_is_refused():
    with pytest.raises(InputError, match="to read: the split holds no case"):
        outlines([]).epoch_samples  # noqa: B018
