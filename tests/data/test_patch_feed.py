"""Batches of patches: exact resume, exact sharding, every validation patch once."""

import itertools
import threading
from contextlib import closing

import numpy as np
import pytest

from spinejax import schema
from spinejax.data.patch_feed import PatchFeed
from spinejax.errors import InputError
from tests.support.patch_scans import SIZE, STRIDE, make_case, make_cases

BATCH = 12


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    cases = make_cases(tmp_path_factory.mktemp("cache"), 4)
    return {"train": cases[:2], "val": cases[2:]}


def make_feed(split, **options):
    values = {
        "size": SIZE,
        "stride": STRIDE,
        "label_rule": "majority",
        "split_unit": "scan",
        "rus": "once",
        "rus_ratio": 1.0,
        "val_fraction": 0.2,
        "batch_size": BATCH,
        "seed": 3,
        "margin": 2,
    }
    return PatchFeed(split, **(values | options))


def take(batches, count):
    with closing(batches):
        return list(itertools.islice(batches, count))


def places(batches, cases):
    """(id of case, slice, row, column) of every patch that counts."""
    return [
        (cases[c].id, int(s), int(r), int(k))
        for batch in batches
        for c, s, r, k, w in zip(
            *(batch[name] for name in ("case", "index", "row", "column", "weight")), strict=True
        )
        if w
    ]


def every_patch(cases):
    return [
        (case.id, n, row, column)
        for case in cases
        for n in range(case.shape[0])
        for row in range(0, case.shape[1] - SIZE + 1, STRIDE)
        for column in range(0, case.shape[2] - SIZE + 1, STRIDE)
    ]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def merge(parts):
    order = np.argsort(np.concatenate([part["position"] for part in parts]))
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def vertebrae(batch, margin=0):
    """The class of each patch, from the label in the batch."""
    inner = batch["label"][:, margin : margin + SIZE, margin : margin + SIZE]
    return np.count_nonzero(inner, axis=(1, 2)) > SIZE * SIZE / 2


def test_batches_have_the_promised_shapes_and_types(split):
    (batch,) = take(make_feed(split).train(), 1)
    side = SIZE + 4
    expected = {
        "image": ((BATCH, side, side), np.int16),
        "label": ((BATCH, side, side), np.uint8),
        "stats": ((BATCH, 4), np.float32),
        "case": ((BATCH,), np.int32),
        "index": ((BATCH,), np.int32),
        "weight": ((BATCH,), np.float32),
        "row": ((BATCH,), np.int32),
        "column": ((BATCH,), np.int32),
        "position": ((BATCH,), np.int32),
    }
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected
    assert all(type(value) is np.ndarray for value in batch.values())
    assert (batch["weight"] == 1).all()


@pytest.mark.parametrize("rus", schema.choices("data.patches.rus"))
@pytest.mark.parametrize("threads", [0, 3])
def test_resuming_at_any_step_gives_the_same_batches(split, rus, threads):
    feed = make_feed(split, rus=rus, batch_size=60)
    count = 2 * feed.per_epoch + 3
    straight = take(feed.train(), count)
    for start in range(count):
        again = make_feed(split, rus=rus, batch_size=60, threads=threads, prefetch=threads)
        (resumed,) = take(again.train(start_step=start), 1)
        assert_equal(straight[start], resumed)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("kind", ["train", "val"])
def test_processes_together_read_the_batches_of_one(split, processes, kind):
    def read(p, n):
        feed = make_feed(split, rus="epoch", threads=p)
        start = {"start_step": 30} if kind == "train" else {}
        return take(
            getattr(feed, kind)(process_index=p, process_count=n, **start),
            10**9 if kind == "val" else 8,
        )

    whole = read(0, 1)
    shares = [read(p, processes) for p in range(processes)]
    assert {len(share) for share in shares} == {len(whole)}
    for parts, expected in zip(zip(*shares, strict=True), whole, strict=True):
        assert {len(part["case"]) for part in parts} == {BATCH // processes}
        assert_equal(merge(parts), expected)


def test_an_epoch_without_rus_has_every_patch_once(split):
    feed = make_feed(split, rus="none", batch_size=7)
    total = len(every_patch(split["train"]))
    assert feed.per_epoch == -(-total // 7)
    seen = places(take(feed.train(), feed.per_epoch * 2), feed.train_cases)
    assert sorted(seen[:total]) == sorted(every_patch(split["train"]))
    assert sorted(seen[total : 2 * total]) == sorted(seen[:total])
    assert seen[total : 2 * total] != seen[:total]


def test_training_is_balanced_and_of_the_training_scans(split):
    feed = make_feed(split, batch_size=1)
    batches = take(feed.train(), feed.per_epoch)
    assert np.mean([vertebrae(batch, margin=2)[0] for batch in batches]) == 0.5
    seen = places(batches, feed.train_cases)
    assert len(set(seen)) == len(seen) == sum(feed.counts()["after"].values())
    assert {place[0] for place in seen} == {case.id for case in split["train"]}


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_validation_has_every_patch_of_its_scans_once(split, batch_size):
    feed = make_feed(split, batch_size=batch_size)
    batches = list(feed.val())
    assert places(batches, feed.val_cases) == every_patch(split["val"])
    for batch in batches:
        assert batch["image"].shape == (batch_size, SIZE, SIZE)
        filler = batch["weight"] == 0
        assert not batch["label"][filler].any()
        assert (batch["image"][filler] == split["val"][0].settings.fill_hu).all()
    assert list(map(len, (feed.train_cases, feed.val_cases))) == [2, 2]


@pytest.mark.parametrize("rus", schema.choices("data.patches.rus"))
def test_splitting_patches_shares_the_pool_without_overlap(split, rus):
    feed = make_feed(split, split_unit="patch", rus=rus, batch_size=1)
    pool = [*split["train"], *split["val"]]
    assert list(feed.train_cases) == list(feed.val_cases) == pool
    val = places(feed.val(), pool)
    epochs = places(take(feed.train(), 2 * feed.per_epoch), pool)
    first, second = epochs[: feed.per_epoch], epochs[feed.per_epoch :]
    assert not set(val) & set(epochs)
    assert len(set(val)) == len(val) and len(set(first)) == len(first)
    assert len(val) == round(0.2 * (len(val) + len(first)))
    assert (set(first) == set(second)) == (rus != "epoch")
    counts = feed.counts()
    assert sum(counts["before"].values()) == len(every_patch(pool))
    assert sum(counts["after"].values()) == len(first)
    assert sum(counts["validation"].values()) == len(val)
    both = [counts["after"][name] + counts["validation"][name] for name in counts["after"]]
    if rus == "none":
        assert both == list(counts["before"].values())
    else:
        assert both == [counts["before"]["vertebra"]] * 2
    # Validation patches come from scans that also train: the leak.
    assert {place[0] for place in val} & {place[0] for place in first}


def test_counts_are_those_of_the_batches(split):
    feed = make_feed(split, batch_size=1)
    counts = feed.counts()
    true = sum(int(vertebrae(batch)[0]) for batch in feed.val())
    assert counts["validation"] == {
        "background": len(every_patch(split["val"])) - true,
        "vertebra": true,
    }
    assert counts["after"]["background"] == counts["after"]["vertebra"]
    assert counts["after"]["vertebra"] == counts["before"]["vertebra"]
    assert sum(counts["before"].values()) == len(every_patch(split["train"]))
    assert counts["balanced_total"] == 2 * counts["before"]["vertebra"]
    assert all(type(n) is int for pair in list(counts.values())[:3] for n in pair.values())


@pytest.mark.parametrize("rus", schema.choices("data.patches.rus"))
def test_balanced_patches_are_a_sample_of_the_first_epoch(split, rus):
    feed = make_feed(split, rus=rus)
    total = feed.counts()["balanced_total"]
    everything = list(feed.balanced(10**9))
    seen = places(everything, feed.train_cases)
    assert len(set(seen)) == len(seen) == total
    weight = np.concatenate([batch["weight"] for batch in everything])
    true = np.concatenate([vertebrae(batch) for batch in everything])
    assert true[weight > 0].mean() == 0.5
    few = list(feed.balanced(30))
    assert [len(batch["weight"]) for batch in few] == [BATCH] * 3
    assert places(few, feed.train_cases) == seen[:30]
    if rus != "none":
        assert seen == places(take(feed.train(), feed.per_epoch), feed.train_cases)[:total]
    assert list(feed.balanced(0)) == []


@pytest.mark.parametrize("val", [{}, {"val": []}])
def test_no_validation_scans_mean_no_validation(split, val):
    feed = make_feed({"train": split["train"]} | val)
    assert list(feed.val_cases) == list(feed.val()) == []
    assert feed.counts()["validation"] == {"background": 0, "vertebra": 0}


def test_no_share_of_patches_means_no_validation(split):
    feed = make_feed(split, split_unit="patch", val_fraction=0.0)
    assert list(feed.val_cases) == list(feed.val()) == []
    assert len(feed.train_cases) == 4


def test_one_training_scan_is_enough_for_a_split_of_patches(split):
    feed = make_feed({"train": split["train"][:1]}, split_unit="patch")
    assert len(places(feed.val(), feed.val_cases)) > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"split_unit": "slice"}, "data.patches.split_unit = 'slice'"),
        ({"rus": "twice"}, "data.patches.rus"),
        ({"label_rule": "most"}, "data.patches.label_rule"),
        ({"rus_ratio": -1.0}, "data.patches.rus_ratio"),
        ({"stride": 0}, "data.patches.stride"),
        ({"size": 500}, "data.patches.size 500.*case0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"margin": -1}, "margin -1"),
        ({"margin": 10**9}, "augment.scale"),
        ({"threads": -1}, "threads -1"),
        ({"seed": -1}, "seed -1"),
        ({"split_unit": "patch", "val_fraction": 1.5}, "data.val_fraction 1.5"),
    ],
)
def test_unusable_values_are_named(split, options, named):
    with pytest.raises(InputError, match=named):
        make_feed(split, **options)


def test_unusable_shares_are_named_at_once(split):
    feed = make_feed(split)
    with pytest.raises(InputError, match="start_step -1"):
        feed.train(start_step=-1)
    with pytest.raises(InputError, match="batch_size 12 must be a multiple"):
        feed.train(process_count=5)
    with pytest.raises(InputError, match="process 2 of 2"):
        feed.val(process_index=2, process_count=2)
    with pytest.raises(InputError, match="balanced patches -1"):
        feed.balanced(-1)


@pytest.mark.parametrize("unit", ["scan", "patch"])
def test_an_empty_training_split_is_named(split, unit):
    with pytest.raises(InputError, match="no slices"):
        make_feed({"train": [], "val": split["val"]}, split_unit=unit)


def test_a_validation_scan_smaller_than_a_patch_is_named(split, tmp_path):
    small = make_case(tmp_path, "small", np.ones((2, 7, 30), np.uint8))
    with pytest.raises(InputError, match=r"case small \(7 x 30 pixels\)"):
        make_feed({"train": split["train"], "val": [small]})


def test_a_vanished_cache_file_is_named(tmp_path):
    cases = make_cases(tmp_path, 1)
    feed = make_feed({"train": cases})
    (cases[0].path / "image.npy").unlink()
    with pytest.raises(InputError, match="image.npy cannot be read"):
        take(feed.train(), 1)


def test_closing_ends_the_threads(split):
    def readers():
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    batches = make_feed(split, threads=2).train()
    next(batches)
    assert readers()
    batches.close()
    for thread in readers():
        thread.join(timeout=10)
    assert not readers()


def test_batches_of_one_patch_read_the_same_stream(split):
    (whole,) = take(make_feed(split).train(), 1)
    for index, batch in enumerate(take(make_feed(split, batch_size=1).train(), 3)):
        assert_equal(
            {k: v[index : index + 1] for k, v in whole.items() if k != "position"},
            {k: v for k, v in batch.items() if k != "position"},
        )
