"""The cases of a run: phantoms that are written once, scans that are left out."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from spinejax.phantom import dataset
from spinejax.training import parallel, run_cases
from tests.support.tiny_run import tiny_config, write_scans


def test_phantoms_are_written_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        dataset, "write_dataset", lambda root, *args, **options: calls.append((args, options))
    )
    config = tiny_config("", **{"data.source": "phantom", "data.phantom.cases": 5})
    for _ in range(2):
        assert run_cases.dataset_root(config, tmp_path) == tmp_path / "phantoms"
    assert [args for args, _ in calls] == [(5, 0)]
    assert calls[0][1]["max_spacing_mm"] == 3.0 and calls[0][1]["max_extent_mm"] == 400.0


def test_scans_without_a_mask_are_left_out_and_said(tmp_path, caplog):
    write_scans(tmp_path, cases=5)
    (tmp_path / "labels" / "case3.nii.gz").unlink()
    split = run_cases.find(tiny_config(tmp_path), tmp_path / "run")
    assert sum(map(len, split.values())) == 4
    assert "left out: 1 of 5 scans lack CT or mask (first: case3)" in caplog.text


def test_phantoms_of_an_earlier_start_are_left_out(tmp_path, monkeypatch):
    def touch(root, cases, *args, **options):
        for index in range(cases):
            for path in dataset.case_paths(root, index):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

    monkeypatch.setattr(dataset, "write_dataset", touch)
    for count in (8, 5):
        changes = {"data.source": "phantom", "data.phantom.cases": count}
        split = run_cases.find(tiny_config("", **changes), tmp_path)
        assert sum(map(len, split.values())) == count


def test_copies_of_a_scan_are_kept_in_one_split_and_said_once(tmp_path, caplog):
    scans = write_scans(tmp_path / "scans", cases=8)
    before = run_cases.find(tiny_config(scans), tmp_path / "run")
    assert not caplog.records
    for copy in COPIES[1:]:
        shutil.copy(scans / f"images/{COPIES[0]}.nii.gz", scans / f"images/{copy}.nii.gz")
    split = run_cases.find(tiny_config(scans), tmp_path / "run")
    (name,) = {n for n, those in split.items() for case in those if case.id in COPIES}
    (record,) = caplog.records
    text = f"{', '.join(COPIES)} are one scan under several names (equal voxels); all are in the"
    assert name == "train"
    assert f"{text} split train; remove all but one" in record.message
    assert sum(map(len, split.values())) == sum(map(len, before.values())) == 8


COPIES = ("case2", "case5", "case7")


def test_the_sacrum_is_background_in_the_cache_and_said_once(tmp_path, caplog):
    write_scans(tmp_path, cases=4)
    for number in range(2):
        path = tmp_path / f"labels/case{number}.nii.gz"
        stored = nib.load(path)
        array = np.asarray(stored.dataobj).copy()
        array[8:, 24:, 24:] = 26
        nib.save(nib.Nifti1Image(array, stored.affine), path)
    config = tiny_config(tmp_path)
    for _ in range(2):  # made, and read from the cache
        caplog.clear()
        cached = run_cases.prepare(config, tmp_path / "run")
        said = [r.message for r in caplog.records if "sacrum" in r.message]
        assert len(said) == 1 and "26 (sacrum) of 2 masks (first: case" in said[0]
        assert {int(one.label.max()) for those in cached.values() for one in those} == {20}


def test_a_doubtful_scan_is_said_each_time(tmp_path, caplog):
    write_scans(tmp_path, cases=4)
    path = tmp_path / "images/case1.nii.gz"
    stored = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj) + np.int16(1024), stored.affine), path)
    for _ in range(2):
        caplog.clear()
        run_cases.prepare(tiny_config(tmp_path), tmp_path / "run")
        (record,) = caplog.records
        assert f"{path}: looks like HU + 1024" in record.message


def test_processes_share_the_scans_whatever_the_order_of_the_splits(tmp_path, monkeypatch):
    """Each process makes a set of the splits, whose order is another one in each."""
    config = tiny_config(write_scans(tmp_path, cases=7))
    found = run_cases.find(config, tmp_path / "run")
    shares = []

    def prepare(cases, *_, **__):
        shares.append([case.id for case in cases])
        raise InterruptedError

    monkeypatch.setattr(run_cases.cache, "prepare", prepare)
    monkeypatch.setattr(parallel, "from_all", lambda work: [work()])
    monkeypatch.setattr(parallel, "process_count", lambda: 3)
    orders = (("train", "val", "test"), ("test", "train", "val"), ("val", "test", "train"))
    for rank, wanted in enumerate(orders):
        monkeypatch.setattr(parallel, "process_index", lambda rank=rank: rank)
        with pytest.raises(InterruptedError):
            run_cases.prepare(config, tmp_path / "run", cases=found, wanted=wanted)
    assert sorted(sum(shares, [])) == [f"case{number}" for number in range(7)]
    assert sorted(map(len, shares)) == [2, 2, 3]
