"""Patches as numbers: places and classes by brute force, under-sampling, exact orders."""

import itertools
import logging
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax import schema
from spinejax.data import patches
from spinejax.data.cache import CachedCase
from spinejax.errors import InputError
from tests.support.patch_scans import SIZE, STRIDE, make_case, make_cases


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return make_cases(tmp_path_factory.mktemp("cache"))


def index_of(cases, **options):
    values = {"size": SIZE, "stride": STRIDE, "label_rule": "majority"} | options
    return patches.index_patches(cases, **values)


def training(index, **options):
    return patches.TrainingPatches(index, **{"rus": "once", "ratio": 1.0, "seed": 5} | options)


def by_loops(case, size, stride, rule):
    """Every patch of a case, written as the paper puts it: (slice, row, column, class)."""
    n, h, w = case.shape
    found = []
    for position in range(n):
        label = np.array(case.label[position])
        for row in range(0, h - size + 1, stride):
            for column in range(0, w - size + 1, stride):
                patch = label[row : row + size, column : column + size]
                foreground = sum(value > 0 for value in patch.ravel())
                vertebra = foreground > size * size / 2
                if rule != "majority":
                    vertebra = patch[size // 2, size // 2] > 0
                found.append((position, row, column, int(vertebra)))
    return found


@pytest.mark.parametrize("rule", schema.choices("data.patches.label_rule"))
@pytest.mark.parametrize(("size", "stride"), [(8, 3), (7, 7), (26, 1), (5, 40)])
def test_index_is_what_loops_over_pixels_find(cases, rule, size, stride):
    index = index_of(cases, size=size, stride=stride, label_rule=rule)
    expected = [
        (i, *place) for i, case in enumerate(cases) for place in by_loops(case, size, stride, rule)
    ]
    case, position, row, column = index.locate(np.arange(len(index)))
    assert case.dtype == np.int32
    rows = np.stack([case, position, row, column, index.classes], axis=1)
    np.testing.assert_array_equal(rows, expected)
    assert index.vertebra_count == sum(place[-1] for place in expected)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.integers(1, 40),
    stride=st.integers(1, 45),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_majority_counts_every_pixel(shape, size, stride, density, seed):
    size = min(size, *shape)
    label = np.random.default_rng(seed).random(shape) < density
    found = patches.patch_classes(label * np.uint8(200), size, stride, "majority")
    starts = [range(0, length - size + 1, stride) for length in shape]
    assert found.shape == tuple(map(len, starts))
    for (i, row), (j, column) in itertools.product(*map(enumerate, starts)):
        foreground = int(label[row : row + size, column : column + size].sum())
        assert found[i, j] == (foreground > size * size / 2)


@pytest.mark.parametrize(("pixels", "expected"), [(512, 0), (513, 1), (1024, 1), (0, 0)])
def test_majority_of_a_patch_of_32_begins_at_513_pixels(pixels, expected):
    """Paper B, section II.B."""
    label = np.zeros(1024, np.uint8)
    label[np.random.default_rng(0).permutation(1024)[:pixels]] = 28
    assert patches.patch_classes(label.reshape(32, 32), 32, 12, "majority") == [[expected]]


def test_centre_of_a_patch_of_32_is_pixel_16(cases):
    label = np.zeros((40, 40), np.uint8)
    label[20, 24] = 1
    found = patches.patch_classes(label, 32, 4, "centre")
    assert np.argwhere(found).tolist() == [[1, 2]]  # first pixels (4, 8)


def test_a_slice_of_the_size_of_the_papers_has_1681_patches():
    found = patches.patch_classes(np.ones((512, 512), np.uint8), 32, 12, "majority")
    assert found.shape == (41, 41) and found.all()


def test_a_million_patches_take_a_megabyte(tmp_path):
    label = np.zeros((16, 290, 290), np.uint8)
    label[:, 100:190, 100:190] = 1
    case = make_case(tmp_path, "large", label)
    tracemalloc.start()
    index = index_of([case], size=32, stride=1)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == 16 * 259 * 259 > 1_000_000
    assert index.nbytes < len(index) + 1000
    assert kept < len(index) + 100_000
    # While it is made: a few arrays of one slice more.
    assert peak < len(index) + 8 * 8 * 290 * 290
    chosen = training(index)
    assert chosen.order(0).nbytes == 4 * len(chosen)


def test_labels_are_not_read_where_there_is_no_foreground(tmp_path, monkeypatch):
    label = np.zeros((3, 30, 30), np.uint8)
    label[1, 5:25, 5:25] = 1
    case = make_case(tmp_path, "case", label)
    seen = []
    classes = patches.patch_classes
    monkeypatch.setattr(
        patches, "patch_classes", lambda *a: seen.append(int(a[0].sum())) or classes(*a)
    )
    index_of([case])
    assert seen == [400]


@pytest.mark.parametrize("rus", ["once", "epoch"])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 2.0, 1e6])
def test_rus_keeps_all_vertebrae_and_the_wanted_background(cases, rus, ratio):
    index = index_of(cases)
    vertebrae = set(np.flatnonzero(index.classes))
    rest = len(index) - len(vertebrae)
    chosen = training(index, rus=rus, ratio=ratio)
    background = min(rest, round(ratio * len(vertebrae)))
    assert len(chosen) == len(vertebrae) + background == chosen.balanced_count
    for epoch in range(3):
        order = chosen.order(epoch)
        assert len(set(order)) == len(order) == len(chosen)
        assert vertebrae <= set(order)


def test_without_rus_every_patch_comes_once_an_epoch(cases):
    index = index_of(cases)
    chosen = training(index, rus="none", ratio=0.5)
    for epoch in range(2):
        assert sorted(chosen.order(epoch)) == list(range(len(index)))
    some = chosen.balanced(10**9)
    assert len(set(some)) == len(some) == chosen.balanced_count
    assert index.classes[some].sum() == index.vertebra_count
    assert len(some) == index.vertebra_count + round(index.vertebra_count * 0.5)


def drawn(chosen, index, epoch):
    order = chosen.order(epoch)
    return frozenset(order[index.classes[order] == patches.BACKGROUND].tolist())


def test_epochs_redraw_the_background_or_keep_it(cases):
    index = index_of(cases)
    kept, new = (training(index, rus=rus, ratio=1.0) for rus in ("once", "epoch"))
    assert len({drawn(kept, index, epoch) for epoch in range(4)}) == 1
    draws = [drawn(new, index, epoch) for epoch in range(120)]
    assert len(set(draws)) == 120
    # Every background patch has its turn, as often as the others: binomial, 5 sigma.
    background = len(index) - index.vertebra_count
    share = len(draws[0]) / background
    assert 0.02 < share < 0.5
    turns = np.bincount([n for draw in draws for n in draw], minlength=len(index))
    turns = turns[index.classes == patches.BACKGROUND]
    assert np.abs(turns - 120 * share).max() < 5 * np.sqrt(120 * share * (1 - share)) + 1
    assert turns.min() > 0
    # The number per case varies as that of a draw from all cases at once (hypergeometric).
    first = [sum(n < index.offsets[1] for n in draw) for draw in draws]
    ours = (index.classes[: index.offsets[1]] == patches.BACKGROUND).sum()
    p = ours / background
    variance = len(draws[0]) * p * (1 - p) * (1 - share) * background / (background - 1)
    assert np.mean(first) == pytest.approx(len(draws[0]) * p, abs=4 * np.sqrt(variance / 120))
    assert np.var(first) == pytest.approx(variance, rel=0.6)


def test_held_out_patches_depend_on_the_seed_of_the_split_alone(cases):
    index = index_of(cases)
    held = [
        training(index, seed=seed, split_seed=split, held_out_share=0.3).held_out
        for seed, split in ((5, 0), (6, 0), (5, 1))
    ]
    np.testing.assert_array_equal(held[0], held[1])
    assert not np.array_equal(held[0], held[2])


@pytest.mark.parametrize("rus", schema.choices("data.patches.rus"))
def test_orders_hang_on_seed_and_epoch_alone(cases, rus):
    index = index_of(cases)
    straight = training(index, rus=rus)
    orders = [straight.order(epoch) for epoch in range(6)]
    np.testing.assert_array_equal(training(index, rus=rus).order(4), orders[4])
    np.testing.assert_array_equal(straight.order(0), orders[0])
    assert not np.array_equal(training(index, rus=rus, seed=6).order(0), orders[0])
    for a, b in itertools.combinations(orders, 2):
        assert not np.array_equal(a, b)


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 10_000), count=st.integers(1, 500), step=st.integers(1, 4))
def test_the_endless_sequence_is_epoch_after_epoch(cases, start, count, step):
    chosen = training(index_of(cases[:1], stride=9), rus="epoch")
    places = np.arange(start, start + count, step)
    expected = [chosen.order(p // len(chosen))[p % len(chosen)] for p in places]
    np.testing.assert_array_equal(chosen.at(places), expected)


def test_only_orders_in_reach_are_kept(cases):
    chosen = training(index_of(cases[:1]), rus="none")
    for epoch in range(300):
        chosen.order(epoch)
    assert sum(map(len, chosen._orders.values())) <= 2 * len(chosen) + 4096


@pytest.mark.parametrize("rus", schema.choices("data.patches.rus"))
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_held_out_patches_are_never_trained_on(cases, rus, share):
    index = index_of(cases)
    whole, rest = training(index, rus=rus), training(index, rus=rus, held_out_share=share)
    held = set(rest.held_out.tolist())
    assert len(held) == len(rest.held_out) == round(share * len(whole))
    assert len(held) + len(rest) == len(whole)
    for epoch in range(3):
        order = rest.order(epoch)
        assert len(set(order)) == len(order) == len(rest)
        assert not held & set(order)
        vertebrae = index.classes[order].sum()
        assert vertebrae == rest.vertebra_count
        assert vertebrae + index.classes[rest.held_out].sum() == index.vertebra_count
    np.testing.assert_array_equal(
        training(index, rus=rus, held_out_share=share).held_out, rest.held_out
    )


def padded(case, margin):
    edge = ((0, 0), (margin, margin), (margin, margin))
    fill = case.settings.fill_hu
    return np.pad(case.image, edge, constant_values=fill), np.pad(case.label, edge)


@pytest.mark.parametrize("margin", [0, 1, 5, 40])
def test_gathered_patches_are_slices_of_the_padded_scans(cases, margin):
    index = index_of(cases)
    numbers = np.random.default_rng(0).permutation(len(index))[:200]
    found = patches.gather(index, numbers, margin)
    side = SIZE + 2 * margin
    assert found["image"].shape == found["label"].shape == (200, side, side)
    scans = [padded(case, margin) for case in cases]
    for k in range(200):
        case, position, row, column = (
            int(found[name][k]) for name in ("case", "index", "row", "column")
        )
        image, label = scans[case]
        window = (position, slice(row, row + side), slice(column, column + side))
        np.testing.assert_array_equal(found["image"][k], image[window])
        np.testing.assert_array_equal(found["label"][k], label[window])
        np.testing.assert_array_equal(found["stats"][k], cases[case].stats)
    inner = found["label"][:, margin : margin + SIZE, margin : margin + SIZE] > 0
    np.testing.assert_array_equal(inner.sum(axis=(1, 2)) > SIZE * SIZE / 2, index.classes[numbers])


def test_a_case_without_foreground_is_named(tmp_path, caplog):
    good, *_ = make_cases(tmp_path, 1)
    empty = make_case(tmp_path, "empty", np.zeros((2, 20, 20), np.uint8))
    with caplog.at_level(logging.WARNING):
        index = index_of([empty, good])
    (record,) = caplog.records
    assert "case empty: none of its 50 patches is vertebra" in record.getMessage()
    assert "(0 labelled pixels)" in record.getMessage()
    assert len(training(index).order(0)) == 2 * index.vertebra_count


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": 27}, r"data.patches.size 27 is larger.*case case0 \(30 x 26 pixels\)"),
        ({"size": 0}, "data.patches.size=0 must"),
        ({"stride": 0}, "data.patches.stride=0 must"),
        ({"label_rule": "center"}, "data.patches.label_rule.*did you mean 'centre'"),
    ],
)
def test_unusable_grids_are_named(cases, options, named):
    with pytest.raises(InputError, match=named):
        index_of(cases, **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rus": "twice"}, "data.patches.rus = 'twice'"),
        ({"ratio": 0.0}, "data.patches.rus_ratio=0.0"),
        ({"ratio": float("nan")}, "data.patches.rus_ratio=nan"),
        ({"ratio": float("inf")}, "data.patches.rus_ratio=inf"),
        ({"seed": -1}, "seed -1"),
        ({"held_out_share": 1.0}, "data.val_fraction 1.0"),
        ({"held_out_share": 0.9999}, "data.val_fraction 0.9999 .*one class"),
    ],
)
def test_unusable_selections_are_named(cases, options, named):
    with pytest.raises(InputError, match=named):
        training(index_of(cases), **options)


def test_more_patches_than_can_be_numbered_are_refused(tmp_path):
    case = make_case(tmp_path, "case", np.ones((1, 9, 9), np.uint8))
    huge = CachedCase(**{**vars(case), "shape": (10_000, 512, 512)})
    with pytest.raises(InputError, match="data.patches.stride 1 makes 2550250000 patches"):
        index_of([huge], stride=1)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (0, "none of the 50 training patches is vertebra under data.patches.label_rule=majority"),
        (9, "all 50 training patches are vertebra under data.patches.label_rule=majority"),
    ],
)
def test_patches_of_one_class_are_refused(tmp_path, value, named):
    case = make_case(tmp_path, "case", np.full((2, 20, 20), value, np.uint8))
    for rus in schema.choices("data.patches.rus"):
        with pytest.raises(InputError, match=named) as error:
            training(index_of([case]), rus=rus)
        assert "\n" not in str(error.value)


def test_no_patches_are_refused():
    with pytest.raises(InputError, match="no slices"):
        training(index_of([]))
