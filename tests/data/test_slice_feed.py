"""The input pipeline: exact resume, exact sharding, controlled shares, every pixel once."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import grain
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax import machine
from spinejax.data import cache, feeds
from spinejax.data.preprocess import SlicePreprocess
from spinejax.data.slice_feed import RandomWindow, SliceFeed
from spinejax.datasets.verse import Case
from spinejax.errors import InputError

SIZE = (32, 24)
SPINE_SLICES = range(4, 9)


def make_cached(
    folder, count=3, *, shape=(15, 50, 40), labelled=SPINE_SLICES, plane="sagittal", **fields
):
    cases = []
    for i in range(count):
        rng = np.random.default_rng(i)
        n = shape[0] + i
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        labels = np.zeros((n, *shape[1:]), np.uint8)
        labels[labelled.start : labelled.stop, 10:20, 12:20] = 20 + i
        image = rng.integers(-1000, 800, labels.shape).astype(np.int16)
        paths = folder / f"{i}_ct.nii.gz", folder / f"{i}_msk.nii.gz"
        for path, array in zip(paths, (image, labels), strict=True):
            nibabel.save(nibabel.Nifti1Image(array, affine), path)
        cases.append(Case(id=str(i), subject=str(i), image=paths[0], labels=paths[1]))
    how = SlicePreprocess(plane=plane, smoothing_sigma_mm=0.0, **fields)
    return cache.prepare(cases, how, folder / "cache")


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return make_cached(tmp_path_factory.mktemp("scans"))


SHARE = ("start_step", "process_index", "process_count")


def train_batches(cached, **options):
    """Batches of a feed that trains on `cached`."""
    share = {name: options.pop(name) for name in SHARE if name in options}
    return SliceFeed({"train": cached, "val": []}, **options).train(**share)


def eval_batches(cached, *, size, batch_size, neighbours=0, **share):
    how = dict(size=size, batch_size=batch_size, seed=0, neighbours=neighbours)
    return SliceFeed({"train": [], "val": cached}, **how).val(**share)


def take(cached, count, **options):
    options = {"size": SIZE, "batch_size": 8, "seed": 3, "spine_free_fraction": 0.25} | options
    with closing(train_batches(cached, **options)) as batches:
        return list(itertools.islice(batches, count))


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_have_the_promised_shapes_and_types(cached):
    (batch,) = take(cached, 1)
    expected = {
        "image": ((8, *SIZE), np.int16),
        "label": ((8, *SIZE), np.uint8),
        "stats": ((8, 4), np.float32),
        "case": ((8,), np.int32),
        "index": ((8,), np.int32),
        "weight": ((8,), np.float32),
        "position": ((8,), np.int32),
    }
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected
    assert all(type(value) is np.ndarray for value in batch.values())
    for case, stats in zip(batch["case"], batch["stats"], strict=True):
        np.testing.assert_array_equal(stats, cached[case].stats)


@pytest.mark.parametrize("start", [1, 7, 33])
@pytest.mark.parametrize("threads", [0, 3])
def test_resuming_at_a_step_gives_the_same_batches(cached, start, threads):
    straight = take(cached, start + 3)
    resumed = take(cached, 3, start_step=start, threads=threads, prefetch=threads)
    for a, b in zip(straight[start:], resumed, strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 3, "threads": 0}])
def test_workers_read_the_stream_of_the_process_itself(cached, options):
    straight = take(cached, 9, threads=0)
    for a, b in zip(straight[2:], take(cached, 7, start_step=2, **options), strict=True):
        assert_equal(a, b)


def test_a_killed_process_leaves_no_worker_behind(cached, tmp_path):
    """Neither do signals for the whole group end a worker while the process reads on."""
    program = tmp_path / "read.py"
    program.write_text(
        "import multiprocessing, pickle, sys, time\n"
        "from spinejax.data.slice_feed import SliceFeed\n"
        "if __name__ == '__main__':\n"
        "    cached = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "    feed = SliceFeed({'train': cached, 'val': []}, size=(32, 24), batch_size=8, seed=3,\n"
        "                     workers=2)\n"
        "    batches = feed.train()\n"
        "    next(batches), next(batches)\n"
        "    children = multiprocessing.active_children()\n"
        "    print(*[child.pid for child in children], flush=True)\n"
        "    sys.stdin.readline()\n"
        "    for _ in range(20):\n"
        "        next(batches)\n"
        "    print('read on', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, str(program), pickle.dumps(list(cached)).hex()]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            workers = [int(word) for word in process.stdout.readline().split()]
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker, signal.SIGTERM)
                os.kill(worker, signal.SIGINT)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "read on\n"
        finally:
            process.kill()
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(pid: int) -> bool:
    """Whether a process exists that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_threads_come_from_the_cores_that_the_process_may_use(cached, monkeypatch):
    found = []

    class Options(grain.ReadOptions):
        def __post_init__(self):
            found.append((self.num_threads, self.prefetch_buffer_size))
            super().__post_init__()

    monkeypatch.setattr(machine, "cores", lambda: 6)
    monkeypatch.setattr(feeds.grain, "ReadOptions", Options)
    take(cached, 1)
    take(cached, 1, threads=3, prefetch=2)
    monkeypatch.setattr(machine, "cores", lambda: 256)
    take(cached, 1)
    take(cached, 1, threads=3, prefetch=0)
    # Each thread has a place for its batch.
    assert found == [(6, 6), (3, 3), (16, 16), (0, 0)]
    # Workers read training batches only.
    split, how = {"train": cached, "val": cached}, {"size": SIZE, "batch_size": 8, "seed": 3}
    with closing(SliceFeed(split, workers=64, **how).val()) as batches:
        next(batches)
    assert found[-1] == (16, 16)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_together_read_the_stream_of_one(cached, processes):
    whole = take(cached, 6)
    shares = [
        take(cached, 4, process_index=p, process_count=processes, start_step=2, threads=p)
        for p in range(processes)
    ]
    for step, parts in enumerate(zip(*shares, strict=True), start=2):
        order = np.argsort(np.concatenate([part["position"] for part in parts]))
        merged = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
        assert_equal(merged, whole[step])


def test_batches_of_one_slice_read_the_same_stream(cached):
    (whole,) = take(cached, 1)
    for index, batch in enumerate(take(cached, 8, batch_size=1)):
        assert_equal(row(whole, index), row(batch, 0))
    assert len(list(eval_batches(cached, size=(64, 64), batch_size=1))) == 48


def row(batch, index):
    return {name: value[index] for name, value in batch.items() if name != "position"}


def test_seeds_give_different_streams_and_passes(cached):
    """Slices of different seeds and passes come in different orders, also one pass apart."""

    def order(seed):
        batches = take(cached, 24, seed=seed)
        return [
            (int(c), int(s)) for b in batches for c, s in zip(b["case"], b["index"], strict=True)
        ]

    zero, one = order(0), order(1)
    assert zero == order(0)
    spine = [[pair for pair in stream if pair[1] in SPINE_SLICES] for stream in (zero, one)]
    a, b = spine[0][:15], spine[0][15:30]
    assert sorted(a) == sorted(b) and a != b
    assert b != spine[1][:15] and a != spine[1][:15]


def has_spine(batch):
    return np.isin(batch["index"], SPINE_SLICES)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_share_of_spine_free_slices_is_the_wanted_one(cached, fraction):
    batches = take(cached, 50, spine_free_fraction=fraction)
    free = 1 - np.concatenate([has_spine(batch) for batch in batches]).mean()
    assert free == pytest.approx(fraction, abs=1 / 400)


def test_every_slice_is_seen_once_per_pass(cached):
    """15 slices with a spine; at a share of one half they take 30 samples a pass."""
    batches = take(cached, 15, batch_size=2, spine_free_fraction=0.5)
    seen = [
        (int(c), int(s))
        for batch in batches
        for c, s in zip(batch["case"], batch["index"], strict=True)
        if s in SPINE_SLICES
    ]
    assert sorted(seen) == [(c, s) for c in range(3) for s in SPINE_SLICES]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_one_kind_of_slice_alone_is_used_as_it_is(tmp_path, fraction):
    only_spine = make_cached(tmp_path, 1, shape=(4, 30, 30), labelled=range(0, 4))
    (batch,) = take(only_spine, 1, spine_free_fraction=fraction)
    assert batch["image"].shape == (8, *SIZE)


@pytest.mark.parametrize(("plane", "shape"), [("coronal", (15, 40)), ("axial", (15, 50))])
def test_other_planes_are_cut(tmp_path, plane, shape):
    cached = make_cached(tmp_path, 1, plane=plane)
    assert cached[0].shape[1:] == shape
    (batch,) = take(cached, 1)
    for i in range(8):
        crop = batch["image"][i]
        assert set(np.unique(crop)) <= set(np.unique(cached[0].image[batch["index"][i]])) | {-1000}


def coordinates(shape):
    """An image whose values name their own place, and its label: nowhere zero."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.int16).reshape(shape)


def one_slice(cached, image, label):
    """A scan that consists of one slice."""
    how, stats = cached[0].settings, cached[0].stats
    return [SimpleNamespace(image=[image], label=[label], settings=how, stats=stats)]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
    spot=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_random_windows_lie_within_slices_or_hold_them(cached, shape, size, seed, spot):
    image = coordinates(shape)
    label = np.zeros(shape, np.uint8)
    label[int(spot[0] * shape[0]), int(spot[1] * shape[1])] = 9
    cut = RandomWindow(one_slice(cached, image, label), size)
    result = cut.random_map((0, 0), np.random.default_rng(seed))
    inside = result["image"] != -1000
    assert inside.sum() == min(shape[0], size[0]) * min(shape[1], size[1])
    rows, columns = np.nonzero(inside)
    corner = result["image"][rows[0], columns[0]]
    first = np.argwhere(image == corner)[0]
    kept = tuple(slice(f, f + min(n, m)) for f, n, m in zip(first, shape, size, strict=True))
    np.testing.assert_array_equal(result["image"][inside], image[kept].ravel())
    np.testing.assert_array_equal(result["label"][inside], label[kept].ravel())
    assert not result["label"][~inside].any()


def test_two_thirds_of_crops_look_at_the_spine(cached):
    label = np.zeros((200, 200), np.uint8)
    label[150, 30] = 20
    cut = RandomWindow(one_slice(cached, coordinates((200, 200)), label), (10, 10))
    rng = np.random.default_rng(0)
    places = []
    for _ in range(600):
        places.extend(np.argwhere(cut.random_map((0, 0), rng)["label"]))
    assert len(places) / 600 == pytest.approx(2 / 3, abs=0.06)
    # The pixel is anywhere in the crop: a network must not learn that the spine is in the middle.
    assert np.mean(places, axis=0) == pytest.approx((4.5, 4.5), abs=0.5)
    assert set(np.array(places)[:, 0]) == set(range(10))


@pytest.mark.parametrize("size", [(32, 24), (50, 40), (64, 64), (7, 50)])
def test_evaluation_sees_every_pixel_exactly_once(cached, size):
    images = [np.zeros(0, np.int16) for _ in cached]
    labels = 0
    for batch in eval_batches(cached, size=size, batch_size=16):
        assert batch["image"].shape == (16, *size)
        for i in np.flatnonzero(batch["weight"]):
            case = batch["case"][i]
            images[case] = np.concatenate([images[case], batch["image"][i].ravel()])
        labels += (batch["label"] > 0).sum()
        assert not batch["label"][batch["weight"] == 0].any()
    assert labels == sum(case.foreground_counts.sum() for case in cached)
    for case, seen in zip(cached, images, strict=True):
        # Padding is -1000, which is also in the image; every other value is counted.
        counts = [
            np.bincount(x[x > -1000] + 1000, minlength=1801) for x in (seen, case.image.ravel())
        ]
        np.testing.assert_array_equal(*counts)


@pytest.mark.parametrize("processes", [2, 4])
def test_evaluation_gives_every_process_as_many_batches(cached, processes):
    whole = list(eval_batches(cached, size=SIZE, batch_size=8))
    shares = [
        list(
            eval_batches(cached, size=SIZE, batch_size=8, process_index=p, process_count=processes)
        )
        for p in range(processes)
    ]
    assert {len(share) for share in shares} == {len(whole)}
    windows = sum(batch["weight"].sum() for share in shares for batch in share)
    assert windows == sum(batch["weight"].sum() for batch in whole)
    for share, full in zip(shares[1], whole, strict=True):
        np.testing.assert_array_equal(share["image"], full["image"][1::processes])


def test_neighbours_are_windows_of_the_slices_beside(cached):
    """Each channel is the same window of another slice, and the middle one is the plain sample."""
    (plain,), (wide,) = (take(cached, 1, batch_size=32, neighbours=n) for n in (0, 2))
    assert wide["image"].shape == (32, *SIZE, 5) and type(wide["image"]) is np.ndarray
    for name in set(plain) - {"image"}:
        np.testing.assert_array_equal(wide[name], plain[name])
    ends = 0
    for image, five, case, place in zip(
        plain["image"], wide["image"], plain["case"], plain["index"], strict=True
    ):
        scan = cached[case].image
        windows = np.lib.stride_tricks.sliding_window_view(scan[place], SIZE)
        ((row, column),) = np.argwhere((windows == image).all((2, 3)))
        for channel, other in enumerate(range(place - 2, place + 3)):
            ends += other not in range(len(scan))
            held = scan[min(max(other, 0), len(scan) - 1)]
            part = held[row : row + SIZE[0], column : column + SIZE[1]]
            np.testing.assert_array_equal(five[..., channel], part)
    assert ends


def test_evaluation_shows_the_neighbours_of_every_window(cached):
    how = dict(size=(64, 48), batch_size=5)  # a window holds a slice
    plain = [batch["image"] for batch in eval_batches(cached, **how)]
    wide = [batch["image"] for batch in eval_batches(cached, neighbours=1, **how)]
    lengths = [len(case.image) for case in cached]
    first, shown = 0, [np.concatenate(batches) for batches in (plain, wide)]
    for n in lengths:
        alone, seen = (images[first : first + n] for images in shown)
        padded = np.pad(alone, ((1, 1), (0, 0), (0, 0)), "edge")
        np.testing.assert_array_equal(seen, np.stack([padded[k : k + n] for k in range(3)], -1))
        first += n
    assert (shown[1][first:] == -1000).all()


def test_a_scan_of_one_slice_cannot_train_a_network_that_sees_neighbours(tmp_path):
    (case,) = make_cached(tmp_path, 1, shape=(1, 50, 40), labelled=range(1))
    take([case], 1)
    for split in ({"train": [case], "val": []}, {"train": [], "val": [case]}):
        with pytest.raises(InputError, match="^0: .* single sagittal slice .*data.neighbours"):
            SliceFeed(split, size=SIZE, batch_size=2, seed=0, neighbours=1)


def test_evaluation_windows_are_centred():
    assert feeds.tile_starts(10, 10) == [0]
    assert feeds.tile_starts(6, 10) == [-2]
    assert feeds.tile_starts(21, 10) == [-4, 6, 16]


def test_outside_a_slice_is_what_the_preprocessing_fills_with(tmp_path):
    """A window of HU (paper B) sets to 0 what it drops, and air is dropped."""
    window = {"intensity": "op_window", "clamp_hu": (100, 1500), "mode": "native"}
    cached = make_cached(tmp_path, 1, **window)
    assert cached[0].image.max() > 100
    size = (70, 60)
    outside = np.ones(size, bool)
    outside[10:60, 10:50] = False  # the slice of 50 by 40, centred
    for batch in eval_batches(cached, size=size, batch_size=4):
        assert not batch["image"][:, outside].any()
        assert not batch["image"][batch["weight"] == 0].any()
    (batch,) = take(cached, 1, size=size)
    for image, place in zip(batch["image"], batch["index"], strict=True):
        assert image.min() == 0 and image.sum() == cached[0].image[place].sum()


def test_steps_per_epoch_rounds_up(cached):
    slices = sum(case.shape[0] for case in cached)
    assert slices == 15 + 16 + 17
    for batch_size, steps in ((8, 6), (7, 7)):
        feed = SliceFeed({"train": cached, "val": []}, size=SIZE, batch_size=batch_size, seed=0)
        assert feed.per_epoch == steps


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size 6 must be a multiple.*4"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"size": (0, 24)}, "size"),
        ({"size": (24,)}, "size"),
        ({"spine_free_fraction": 1.5}, "spine_free_fraction"),
        ({"start_step": -1}, "start_step"),
        ({"seed": -1}, "seed"),
        ({"threads": -1}, "threads"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2"),
    ],
)
def test_unusable_values_are_named_at_once(cached, options, named):
    values = {"size": SIZE, "batch_size": 8, "seed": 0} | options
    with pytest.raises(InputError, match=named):
        train_batches(cached, **values)


def test_no_slices_is_an_input_error():
    with pytest.raises(InputError, match="no slices"):
        train_batches([], size=SIZE, batch_size=8, seed=0)
    with pytest.raises(InputError, match="no slices"):
        eval_batches([], size=SIZE, batch_size=8)


def test_a_vanished_cache_file_is_named(tmp_path):
    cached = make_cached(tmp_path, 1)
    (cached[0].path / "image.npy").unlink()
    with pytest.raises(InputError, match="image.npy cannot be read"):
        take(cached, 1)


def test_closing_ends_the_threads(cached):
    def readers():
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    batches = train_batches(cached, size=SIZE, batch_size=8, seed=0, threads=2)
    next(batches)
    assert readers()
    batches.close()
    for thread in readers():
        thread.join(timeout=10)
    assert not readers()


def test_leaving_batches_open_does_not_disturb_the_exit(cached, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, pickle, sys\n"
        "from spinejax.data.slice_feed import SliceFeed\n"
        "cached = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "feed = SliceFeed({'train': cached, 'val': []}, size=(32, 32), batch_size=4, seed=0)\n"
        "batches = feed.train()\n"
        "print(next(batches)['image'].shape)\n"
    )
    (tmp_path / "cached").write_bytes(pickle.dumps(cached))
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", script, tmp_path / "cached"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(4, 32, 32)\n", "")
