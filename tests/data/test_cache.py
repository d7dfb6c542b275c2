"""The cache: keyed by content, whole entries only, and what happens when things go wrong."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest

from spinejax.data import cache
from spinejax.data.preprocess import SlicePreprocess, preprocess_slabs
from spinejax.datasets.verse import Case
from spinejax.errors import InputError
from spinejax.files import LIST
from spinejax.io import scanfile

HOW = SlicePreprocess()


def write_case(folder, name, seed=0, shape=(6, 20, 24)):
    rng = np.random.default_rng(seed)
    affine = np.diag([-2.0, -0.8, 1.2, 1.0])
    labels = np.zeros(shape, np.uint8)
    labels[2:5, 6:12, 8:16] = 20
    image = rng.integers(-1000, 500, shape).astype(np.int16) + labels * np.int16(10)
    paths = folder / f"{name}_ct.nii.gz", folder / f"{name}_msk.nii.gz"
    for path, array in zip(paths, (image, labels), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        os.utime(path, (1e9, 1e9))  # long ago: its digest may be remembered
    return Case(id=name, subject=name, image=paths[0], labels=paths[1])


@pytest.fixture
def cases(tmp_path):
    return [write_case(tmp_path, f"case{i}", seed=i) for i in range(3)]


def prepare(cases, folder, how=HOW, **options):
    return cache.prepare(cases, how, folder, **options)


def entries(folder):
    own = ("digests.json", LIST)
    return {path.name for path in folder.iterdir() if path.name not in own}


def count_reads(monkeypatch):
    reads = []
    original = scanfile.read_pair

    def counting(*args, **kwargs):
        reads.append(args[0])
        return original(*args, **kwargs)

    monkeypatch.setattr(scanfile, "read_pair", counting)
    return reads


def test_entries_hold_what_preprocessing_gives(cases, tmp_path):
    cached = prepare(cases, tmp_path / "cache")
    assert [case.id for case in cached] == ["case0", "case1", "case2"]
    for case, entry in zip(cases, cached, strict=True):
        scan, labels = scanfile.read_pair(case.image, case.labels)
        ((_, image, label),) = preprocess_slabs(scan, HOW, labels)
        np.testing.assert_array_equal(entry.image, image)
        np.testing.assert_array_equal(entry.label, label)
        assert isinstance(entry.image, np.memmap) and not entry.image.flags.writeable
        assert entry.shape == image.shape
        assert entry.foreground_counts.tolist() == [(part > 0).sum() for part in label]
        expected = [image.mean(), image.std(), image.min(), image.max()]
        np.testing.assert_allclose(entry.stats, expected, rtol=1e-6)
        assert entry.stats.dtype == np.float32
        assert entry.spacing_mm == pytest.approx((1.0, 24 * 1.2 / 29))
        assert entry.slice_spacing_mm == pytest.approx(2.0)


def test_a_second_call_reads_no_scan(cases, tmp_path, monkeypatch):
    first = prepare(cases, tmp_path / "cache")
    reads = count_reads(monkeypatch)
    second = prepare(cases, tmp_path / "cache")
    assert reads == []
    assert [a.path for a in first] == [b.path for b in second]
    np.testing.assert_array_equal(first[1].stats, second[1].stats)


def test_a_second_call_hashes_no_unchanged_file(cases, tmp_path, monkeypatch):
    prepare(cases, tmp_path / "cache")
    monkeypatch.setattr("hashlib.file_digest", None)
    prepare(cases, tmp_path / "cache")


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"a": 3}', None])
def test_a_damaged_digest_file_costs_only_time(cases, tmp_path, monkeypatch, text):
    prepare(cases, tmp_path / "cache")
    (tmp_path / "cache" / "digests.json").unlink(missing_ok=True)
    if text is None:
        os.mkfifo(tmp_path / "cache" / "digests.json")
    else:
        (tmp_path / "cache" / "digests.json").write_text(text)
    reads = count_reads(monkeypatch)
    prepare(cases, tmp_path / "cache")
    assert reads == []


def test_a_changed_setting_is_noticed(cases, tmp_path, monkeypatch):
    prepare(cases, tmp_path / "cache")
    reads = count_reads(monkeypatch)
    (other, *_) = prepare(cases, tmp_path / "cache", SlicePreprocess(plane="axial"))
    assert len(reads) == 3 and other.shape[0] == 24


def test_intensities_have_entries_of_their_own(cases, tmp_path, monkeypatch):
    window = {"intensity": "op_window", "clamp_hu": (100, 1500), "mode": "native"}
    how = SlicePreprocess(**window)
    (clamped, *_) = prepare(cases[:1], tmp_path / "cache")
    (native, *_) = prepare(cases[:1], tmp_path / "cache", how)
    assert native.path != clamped.path
    assert native.shape == (6, 20, 24) and native.spacing_mm == pytest.approx((0.8, 1.2))
    assert native.image.min() == 0 and native.settings.fill_hu == 0
    reads = count_reads(monkeypatch)
    unread = SlicePreprocess(**window, smoothing_sigma_mm=2.0, spacing_mm=3.0, size=(8, 8))
    (again,) = prepare(cases[:1], tmp_path / "cache", unread)
    assert again.path == native.path and reads == []


def test_keys_of_earlier_versions_still_hold(monkeypatch):
    """Of the settings there were before `intensity`: no scan is preprocessed again for it."""
    monkeypatch.setattr(cache, "FORMAT", 1)
    assert cache._entry_key(HOW, "a", "b") == "dd19cd7d34bfdb3cf60587c8944eb96c"
    resize = SlicePreprocess(mode="resize", plane="axial")
    assert cache._entry_key(resize, "a", "b") == "cef72d4b276f834b60ada2907723a53f"


def test_a_changed_mask_is_noticed(cases, tmp_path, monkeypatch):
    (before, *_) = prepare(cases, tmp_path / "cache")
    stored = nibabel.load(cases[0].labels)
    array = np.asarray(stored.dataobj).copy()
    array[5, 6:12, 8:16] = 21
    nibabel.save(nibabel.Nifti1Image(array, stored.affine), cases[0].labels)
    reads = count_reads(monkeypatch)
    (after, *_) = prepare(cases, tmp_path / "cache")
    assert reads == [cases[0].image]
    assert after.path != before.path and after.label.max() == 21


def test_a_moved_file_is_recognised(cases, tmp_path, monkeypatch):
    (before, *_) = prepare(cases[:1], tmp_path / "cache")
    shutil.copy(cases[0].image, tmp_path / "moved.nii.gz")
    reads = count_reads(monkeypatch)
    moved = Case(id="moved", subject="m", image=tmp_path / "moved.nii.gz", labels=cases[0].labels)
    (after,) = prepare([moved], tmp_path / "cache")
    assert reads == [] and after.id == "moved" and after.path == before.path


def test_a_damaged_entry_is_made_anew(cases, tmp_path, monkeypatch):
    (entry, *_) = prepare(cases, tmp_path / "cache")
    expected = np.array(entry.image)
    cache._open_array.cache_clear()
    os.truncate(entry.path / "image.npy", 1000)
    reads = count_reads(monkeypatch)
    (again, *_) = prepare(cases, tmp_path / "cache")
    assert reads == [cases[0].image]
    np.testing.assert_array_equal(again.image, expected)
    assert len(entries(tmp_path / "cache")) == 3


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "meta.json"])
def test_a_fifo_in_an_entry_is_never_opened(cases, tmp_path, name):
    (entry, *_) = prepare(cases, tmp_path / "cache")
    (entry.path / name).unlink()
    os.mkfifo(entry.path / name)
    (again, *_) = prepare(cases, tmp_path / "cache")
    assert again.path == entry.path and (entry.path / name).is_file()


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "meta.json"])
def test_an_entry_with_a_changed_byte_is_made_anew_with_a_word(
    cases, tmp_path, monkeypatch, caplog, name
):
    (entry, *_) = prepare(cases, tmp_path / "cache")
    expected = np.array(entry.image)
    file = entry.path / name
    data = bytearray(file.read_bytes())
    place = data.index(b'"stats": [') + 13 if name == "meta.json" else len(data) - 7
    data[place] ^= 1  # a digit stays a digit
    file.write_bytes(data)
    reads = count_reads(monkeypatch)
    (again, *_) = prepare(cases, tmp_path / "cache")
    assert reads == [cases[0].image]
    np.testing.assert_array_equal(again.image, expected)
    np.testing.assert_array_equal(again.stats, entry.stats)
    (said,) = caplog.messages
    assert "case case0: its preprocessed scan" in said and "damaged and is made again" in said


def test_an_entry_without_checksums_is_made_anew_without_a_word(cases, tmp_path, caplog):
    """Older versions wrote none."""
    (entry,) = prepare(cases[:1], tmp_path / "cache")
    file = entry.path / "meta.json"
    meta = json.loads(file.read_text())
    del meta["crc32"]
    file.write_text(json.dumps(meta))
    prepare(cases[:1], tmp_path / "cache")
    assert "crc32" in json.loads(file.read_text()) and not caplog.messages


def test_a_mask_edited_with_size_and_time_kept_is_noticed(cases, tmp_path, monkeypatch):
    prepare(cases, tmp_path / "cache")
    path = cases[0].labels
    data = bytearray(path.read_bytes())
    data[4] ^= 1  # the time in the header of gzip
    path.write_bytes(data)
    os.utime(path, (1e9, 1e9))
    reads = count_reads(monkeypatch)
    prepare(cases, tmp_path / "cache")
    assert reads == [cases[0].image]


def test_cases_travel_through_pickle_without_their_arrays(cases, tmp_path):
    (entry, *_) = prepare(cases, tmp_path / "cache")
    assert entry.image.size
    data = pickle.dumps(entry)
    assert len(data) < 4000
    np.testing.assert_array_equal(pickle.loads(data).image, entry.image)


OPEN = """
import resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
from spinejax.data import cache
for number in range(300):
    assert cache._open_array(f"{sys.argv[1]}/copy{number}.npy").any()
"""


def test_more_scans_than_file_descriptors_can_be_open(cases, tmp_path):
    (entry, *_) = prepare(cases, tmp_path / "cache")
    for i in range(300):
        (tmp_path / f"copy{i}.npy").symlink_to(entry.path / "image.npy")
    subprocess.run([sys.executable, "-c", OPEN, str(tmp_path)], check=True)


def test_what_follows_from_a_scan_is_kept_until_it_is_damaged(cases, tmp_path):
    (entry, *_) = prepare(cases, tmp_path / "cache")
    made = []

    def sums():
        made.append(1)
        return entry.label.sum((1, 2))

    for _ in range(2):
        np.testing.assert_array_equal(cache.kept(entry, "sums-1", sums), entry.label.sum((1, 2)))
    assert len(made) == 1
    file = entry.path / "sums-1.npz"
    content = file.read_bytes()
    middle = len(content) // 2
    for damaged in (b"", content[:-30], content[:middle] + b"??" + content[middle + 2 :]):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(cache.kept(entry, "sums-1", sums), entry.label.sum((1, 2)))
        assert file.read_bytes() != damaged
    assert len(made) == 4
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        np.testing.assert_array_equal(cache.kept(entry, "sums-1", sums), entry.label.sum((1, 2)))
    assert cache.kept(entry, "others-1", lambda: np.ones(2)).tolist() == [1, 1]
    # It goes with the entry, and is no reason against making a damaged entry anew.
    (entry.path / "meta.json").write_text("damaged")
    assert prepare(cases, tmp_path / "cache")[0].path == entry.path
    assert {path.name for path in entry.path.iterdir()} == set(cache._FILES)


def test_what_cannot_be_kept_is_made_each_time(cases, tmp_path, monkeypatch):
    (entry, *_) = prepare(cases, tmp_path / "cache")
    before = {path.name for path in entry.path.parent.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    for _ in range(2):
        assert cache.kept(entry, "ones-1", lambda: np.ones(2)).tolist() == [1, 1]
    assert {path.name for path in entry.path.iterdir()} == set(cache._FILES)
    assert {path.name for path in entry.path.parent.iterdir()} == before


def test_entries_of_another_host_are_waited_for(cases, tmp_path):
    """Its cache lies elsewhere, and its entries appear late."""
    theirs = prepare(cases, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()

    def show():
        time.sleep(0.3)
        for entry in theirs:
            shutil.copytree(entry.path, tmp_path / "ours" / entry.path.name)

    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(show)
        found = cache.seen_from(tmp_path / "ours", theirs)
        shown.result()
    for one, other in zip(found, theirs, strict=True):
        assert one.path.parent == tmp_path / "ours"
        np.testing.assert_array_equal(one.image, other.image)
    shutil.rmtree(found[1].path)
    with pytest.raises(InputError, match="does not show case case1 here.*that all hosts share"):
        cache.seen_from(tmp_path / "ours", theirs, wait_s=0)


def test_digests_of_several_processes_come_together(cases, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    # Both read the file before either writes it.
    shares = [cache.digests_in(folder) for _ in range(2)]
    for digests, case in zip(shares, cases, strict=False):
        digests.of(case.image)
        digests.save()
    known = json.loads((folder / "digests.json").read_text())
    assert sorted(known) == sorted(str(case.image) for case in cases[:2])


def test_a_failing_case_is_named_and_the_others_are_kept(cases, tmp_path, monkeypatch):
    cases[1].image.write_bytes(b"not a scan")
    cases.append(write_case(tmp_path, "empty", seed=9))
    stored = nibabel.load(cases[3].labels)
    nibabel.save(nibabel.Nifti1Image(np.zeros(stored.shape, np.uint8), np.eye(4)), cases[3].labels)
    with pytest.raises(InputError, match=r"2 of 4 scans failed: case1.*case1_ct") as e:
        prepare(cases, tmp_path / "cache")
    assert "\n" not in str(e.value)
    assert len(entries(tmp_path / "cache")) == 2
    reads = count_reads(monkeypatch)
    prepare([cases[0], cases[2]], tmp_path / "cache")
    assert reads == []


def test_an_empty_mask_is_named(tmp_path):
    case = write_case(tmp_path, "empty")
    stored = nibabel.load(case.labels)
    zeros = np.zeros(stored.shape, np.uint8)
    nibabel.save(nibabel.Nifti1Image(zeros, stored.affine), case.labels)
    with pytest.raises(InputError, match="empty_msk.nii.gz: no voxel is labelled"):
        prepare([case], tmp_path / "cache")


def test_missing_files_are_named(cases, tmp_path):
    incomplete = Case(id="half", subject="h", image=cases[0].image, labels=None)
    with pytest.raises(InputError, match="half has no label file"):
        prepare([incomplete], tmp_path / "cache")
    cases[0].image.unlink()
    with pytest.raises(InputError, match="case0_ct.nii.gz: cannot be read"):
        prepare(cases, tmp_path / "cache")


def test_a_folder_that_cannot_be_made_is_named(cases, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache folder .*file/cache cannot be written"):
        prepare(cases, tmp_path / "file" / "cache")


def test_a_full_disk_is_one_line_and_leaves_nothing(cases, tmp_path, monkeypatch):
    original = cache._npy

    def full(path, shape, dtype):
        if path.name == "image.npy":
            path.symlink_to("/dev/full")  # every write fails as on a full disk
        return original(path, shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_npy", full)
        with pytest.raises(InputError, match="disk is full.*data.cache_dir") as error:
            prepare(cases, tmp_path / "cache", workers=1)
    assert "\n" not in str(error.value)
    assert entries(tmp_path / "cache") == set()
    assert len(prepare(cases, tmp_path / "cache")) == 3


def test_workers_must_be_positive(cases, tmp_path):
    with pytest.raises(InputError, match="workers 0"):
        prepare(cases, tmp_path / "cache", workers=0)


SLOW = """
import sys, time
from pathlib import Path
from spinejax.data import cache
from spinejax.data.preprocess import SlicePreprocess
from spinejax.datasets.verse import Case
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
original = cache.preprocess_slabs
def slow(*args, **kwargs):
    for part in original(*args, slab_slices=2, **kwargs):
        yield part
        time.sleep(seconds)
cache.preprocess_slabs = slow
cases = [
    Case(id=f"case{i}", subject=f"{i}", image=folder / f"case{i}_ct.nii.gz",
         labels=folder / f"case{i}_msk.nii.gz")
    for i in range(3)
]
print("started", flush=True)
cached = cache.prepare(cases, SlicePreprocess(), folder / "cache", workers=1)
print(*(entry.path.name for entry in cached))
"""


def start_slow(folder, seconds):
    command = [sys.executable, "-W", "error", "-c", SLOW, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_leaves_whole_entries_and_continues(cases, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    with start_slow(tmp_path, 0.5) as process:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            names = entries(folder) if folder.exists() else set()
            whole = {name for name in names if not name.startswith(".spinejax-tmp-")}
            if len(whole) == 1 and len(names) == 2:  # one is done, the next is being written
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    names = entries(folder)
    assert len(whole) == 1 and len(names) == 2
    reads = count_reads(monkeypatch)
    cached = prepare(cases, folder)
    assert len(reads) == 2
    assert entries(folder) == {entry.path.name for entry in cached}  # what was stale is gone


def test_two_processes_may_make_the_same_entries(cases, tmp_path):
    with start_slow(tmp_path, 0.05) as one, start_slow(tmp_path, 0.05) as two:
        outputs = [process.communicate(timeout=60)[0] for process in (one, two)]
        assert one.returncode == two.returncode == 0
    assert outputs[0] == outputs[1]
    names = outputs[0].split()[1:]
    assert entries(tmp_path / "cache") == set(names)
    for entry, case in zip(prepare(cases, tmp_path / "cache"), cases, strict=True):
        ((_, image, _),) = preprocess_slabs(scanfile.read_volume(case.image), HOW)
        np.testing.assert_array_equal(entry.image, image)


def test_threads_may_make_the_same_entry(cases, tmp_path):
    same = [cases[0]] * 8
    cached = prepare(same, tmp_path / "cache", workers=8)
    assert len({entry.path for entry in cached}) == 1
    assert len(entries(tmp_path / "cache")) == 1
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: prepare(cases, tmp_path / "cache2"), range(4)):
            assert len(result) == 3
    assert len(entries(tmp_path / "cache2")) == 3


def test_folders_of_running_processes_are_left_alone(cases, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    ours = cache._temporary_folder(folder)
    elsewhere = folder / ".spinejax-tmp-anotherhost-17-0123456789abcdef"
    elsewhere.mkdir()
    prepare(cases, folder)
    assert ours.is_dir() and elsewhere.is_dir()
    theirs = [folder / ".tmp-mine", folder / ".spinejax-tmp-mine", elsewhere / "notes.txt"]
    for path in theirs:
        path.write_text("mine")
    for path in (*theirs, elsewhere):
        os.utime(path, (1e9, 1e9))
    prepare(cases, folder)
    assert all(path.read_text() == "mine" for path in theirs)
    theirs[-1].unlink()
    os.utime(elsewhere, (1e9, 1e9))
    prepare(cases, folder)
    assert ours.is_dir() and not elsewhere.exists()


def test_files_of_somebody_else_in_the_folder_stay(cases, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "digests.json").write_text('{"mine": 1}')
    (entry, *_) = prepare(cases, folder)
    assert (folder / "digests.json").read_text() == '{"mine": 1}'
    (entry.path / "meta.json").write_text("damaged")
    (entry.path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{entry.path}: is damaged, and holds what"):
        prepare(cases, folder)
    assert (entry.path / "notes.txt").read_text() == "mine"
    (entry.path / "notes.txt").unlink()
    assert len(prepare(cases, folder)) == 3


def test_meta_says_how_an_entry_was_made(cases, tmp_path):
    (entry, *_) = prepare(cases, tmp_path / "cache")
    meta = json.loads((entry.path / "meta.json").read_text())
    assert meta["settings"]["smoothing_sigma_mm"] == 0.75
    assert meta["format"] == cache.FORMAT
