"""`spinejax predict`: scans, folders of scans; bad files are named and nothing is half-written."""

import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest

from spinejax.cli import main
from spinejax.files import LIST
from spinejax.predictor import Model
from tests.support import dicom_files
from tests.support.cli_runs import (
    AFFINE,
    ROOT,
    bad_mask,
    bright_box,
    ct_of,
    fails,
    mask_of,
    snapshot,
)


def test_labels_lie_on_the_grid_of_the_scan_and_can_be_scored(dataset, run, tmp_path, capsys):
    out, ct, labels = tmp_path / "out", ct_of(dataset), mask_of(dataset)
    assert main(["predict", str(ct), "-o", str(out), "--workdir", str(run),
                 f"--reference={labels}"]) == 0  # fmt: skip
    prediction = out / "sub-verse500_seg.nii.gz"
    picture = out / "sub-verse500_quicklook.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    *_, summary, first, page, second = capsys.readouterr().out.splitlines()
    found = r"(\d+ ml of spine written|no spine found, the labels are empty)"
    assert re.fullmatch(rf"sub-verse500: {found} \(\d+\.\d s, \d+\.\d GB\)", summary)
    named = [prediction, out / "sub-verse500.html", picture]
    assert [first, page, second] == [f"  {path}" for path in named]
    image, source = nib.load(prediction), nib.load(ct)
    assert image.shape == source.shape and image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, source.affine)

    target = tmp_path / "scores.json"
    assert main(["score", f"--prediction={prediction}", f"--reference={labels}",
                 f"--output={target}"]) == 0  # fmt: skip
    scored = json.loads(target.read_text())["cases"]
    counts = next(iter(scored.values()))["voxels"]
    truth = np.asarray(nib.load(labels).dataobj) > 0
    guess = np.asarray(image.dataobj) > 0
    assert counts == {
        "tp": int((truth & guess).sum()),
        "fp": int((~truth & guess).sum()),
        "fn": int((truth & ~guess).sum()),
        "tn": int((~truth & ~guess).sum()),
    }


def test_several_scans_and_a_name_that_two_of_them_have(dataset, run, tmp_path, capsys):
    scans = [str(ct_of(dataset, number)) for number in (500, 501)]
    where = ["-o", str(tmp_path / "out"), "--workdir", str(run)]
    assert main(["predict", *scans, *where]) == 0
    names = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert names == {"sub-verse500_seg.nii.gz", "sub-verse501_seg.nii.gz"}
    fails(
        capsys,
        ["predict", scans[0], str(ct_of(dataset).parent), *where],
        "would overwrite each other",
    )


def test_a_folder_is_predicted_and_its_bad_file_named(dataset, run, tmp_path, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(ct_of(dataset), scans / "a_ct.nii.gz")
    (scans / "b_ct.nii.gz").write_bytes(b"")
    shutil.copy(ct_of(dataset, 501), scans / "c_ct.nii.gz")
    out = tmp_path / "out"
    status = main(["predict", f"--workdir={run}", f"--input={scans}", f"--output={out}"])
    error = capsys.readouterr().err
    assert status == 1 and "b_ct.nii.gz" in error and "1 of 3" in error
    assert {path.name for path in out.glob("*.nii.gz")} == {"a_seg.nii.gz", "c_seg.nii.gz"}


@pytest.mark.parametrize("layout", ["nnunet", "folder_per_scan"])
def test_folders_of_data_sets_are_predicted_again_and_again(layout, dataset, run, tmp_path, capsys):
    """Masks, and the results of an earlier prediction among the scans, are not taken for scans."""
    root = tmp_path / "scans of März"
    names = {
        "nnunet": ("imagesTr/a{}_0000.nii.gz", "labelsTr/a{}.nii.gz"),
        "folder_per_scan": ("a{}/ct.NII.GZ", "a{}/segmentations/mask.nii.gz"),
    }[layout]
    for number in (500, 501):
        sources = (ct_of(dataset, number), mask_of(dataset, number))
        for name, source in zip(names, sources, strict=True):
            path = root / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, path)
    arguments = ["predict", f"--workdir={run}", f"--input={root}", f"--output={root / 'out'}"]
    expected = {f"a{n}_{kind}" for n in (500, 501) for kind in ("seg.nii.gz", "quicklook.png")}
    expected |= {"a500.html", "a501.html", "index.html"}
    for more in ([f"--reference={root}"], []):
        assert main([*arguments, *more]) == 0
        assert {path.name for path in (root / "out").iterdir()} == expected | {LIST}
    inside = f"--input={(root / names[0]).parent if layout == 'nnunet' else root}"
    out = tmp_path / "again"
    assert main([*arguments[:2], inside, f"--output={out}"]) == 0
    assert {path.name for path in out.iterdir()} == expected | {LIST}
    one = f"--reference={root / names[1].format(500)}"
    fails(capsys, [*arguments, one], "one file for 2 scans")
    fails(capsys, [*arguments, "--reference=nowhere"], "nowhere", "--reference")
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom/IM0001").write_bytes(b"\0" * 128 + b"DICM")
    arguments[2] = f"--input={tmp_path / 'dicom'}"
    fails(capsys, arguments, "holds no CT image")


def test_a_dicom_folder_gives_the_labels_of_its_nifti_twin(dataset, run, tmp_path, capsys):
    """Results are called after the folder; nothing tells who the patient is."""
    ct = nib.load(ct_of(dataset))
    folder = tmp_path / "case 7"
    hu = np.asarray(ct.dataobj).clip(-1024)
    part = hu[:, :, : hu.shape[2] // 2]
    dicom_files.write(folder / "MUSTER_ERIKA", dicom_files.series(hu, ct.affine))
    dicom_files.write(folder / "2", dicom_files.series(part, ct.affine, SeriesInstanceUID="1.2.9"))
    out = tmp_path / "out"
    for source in (folder, ct_of(dataset)):
        assert main(["predict", str(source), "-o", str(out), "--workdir", str(run)]) == 0
    printed = "".join(capsys.readouterr())
    assert "reading series 4" in printed and "--series=N" in printed
    ours, twin = (nib.load(out / f"{name}_seg.nii.gz") for name in ("case 7", "sub-verse500"))
    np.testing.assert_array_equal(ours.dataobj, twin.dataobj)
    np.testing.assert_allclose(ours.affine, twin.affine, atol=1e-4)
    assert main(["predict", str(folder), "-o", str(out), "--workdir", str(run), "--series=5"]) == 0
    assert nib.load(out / "case 7_seg.nii.gz").shape == part.shape
    written = b"".join(map(_unzipped, out.iterdir()))
    printed += "".join(capsys.readouterr())
    for word in ("muster", "erika", "4711"):
        assert word not in printed.lower() and word.encode() not in written.lower()


def _unzipped(path):
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def test_a_dicom_segmentation_holds_the_labels_and_is_written_on_request(
    dataset, run, tmp_path, capsys, monkeypatch
):
    ct = nib.load(ct_of(dataset))
    hu = np.asarray(ct.dataobj).clip(-1024)
    images = dicom_files.series(hu, ct.affine, FrameOfReferenceUID="1.2.5")
    folder, out = dicom_files.write(tmp_path / "case7", images), tmp_path / "out"
    where = ["-o", str(out), "--workdir", str(run), "--nopage"]
    arguments = ["predict", str(folder), str(ct_of(dataset)), *where, "--formats=seg.dcm"]
    segment = Model.segment

    def bone(model, scan, **options):  # the network of so few steps finds nothing
        mask = (scan.array > 200).view(np.uint8)
        return replace(segment(model, scan, **options), mask=mask)

    monkeypatch.setattr(Model, "segment", bone)
    assert main(arguments) == 1  # before the work
    printed = "".join(capsys.readouterr())
    assert f"{ct_of(dataset)}: is no DICOM, which seg.dcm refers to; leave seg.dcm out" in printed
    assert f"  {out / 'case7.seg.dcm'}" in printed and "Muster" not in printed
    assert not list(out.glob("sub-verse500*"))
    twin = nib.load(out / "case7_seg.nii.gz")
    expected = np.asarray(twin.dataobj).transpose(2, 1, 0)
    found = highdicom.seg.segread(out / "case7.seg.dcm")
    uids = [one.SOPInstanceUID for one in images]
    mask = found.get_pixels_by_source_instance(uids)[..., 0]
    assert expected.any() and found.PatientName == dicom_files.PATIENT
    np.testing.assert_array_equal(mask, expected)
    with_name = {path.name for path in out.iterdir() if b"Muster" in _unzipped(path)}
    assert with_name == {"case7.seg.dcm"}
    assert main(["predict", str(out), "-o", str(tmp_path / "again"), *where[2:]]) == 1
    assert "case7.seg.dcm" not in "".join(capsys.readouterr())  # a result is no scan

    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    fails(capsys, arguments, "the package highdicom is not installed", "pip install highdicom")


def test_pages_of_somebody_else_stay_and_nopage_writes_none(dataset, run, tmp_path, capsys):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    out.mkdir()
    for name in ("a", "index"):
        shutil.copy(ct_of(dataset), scans / f"{name}.nii.gz")
    arguments = ["predict", f"--workdir={run}", f"--input={scans}", f"--output={out}"]
    (out / "a.html").write_text("mine")
    fails(capsys, arguments, "a.html", "did not write this file", "2 of 2 scans failed")
    assert (out / "a.html").read_text() == "mine" and not (out / "a_seg.nii.gz").exists()
    (out / "index.html").write_text("mine")
    fails(capsys, arguments, "index.html", "did not write this file")
    assert (out / "index.html").read_text() == "mine"
    assert main([*arguments, "--nopage"]) == 0
    assert {path.name for path in out.glob("*.html")} == {"a.html", "index.html"}
    assert (out / "a.html").read_text() == (out / "index.html").read_text() == "mine"

    alone = tmp_path / "alone"
    arguments[2:] = [f"--input={scans / 'index.nii.gz'}", f"--output={alone}"]
    assert main(arguments) == 0
    assert (alone / "index_seg.nii.gz").exists() and (alone / "index.html").exists()
    capsys.readouterr()


def test_a_later_scan_joins_the_index_of_the_folder(dataset, run, tmp_path, capsys):
    out = tmp_path / "out"
    for number, pages in ((500, 0), (501, 2)):
        ct = ct_of(dataset, number)
        assert main(["predict", f"--workdir={run}", str(ct), f"--output={out}"]) == 0
        printed = capsys.readouterr().out
        assert ("index of the pages" in printed) == (pages > 0) == (out / "index.html").exists()
    found = (out / "index.html").read_text("utf-8")
    assert 'href="sub-verse500.html"' in found and 'href="sub-verse501.html"' in found


def test_what_somebody_else_wrote_is_not_replaced(dataset, run, tmp_path, capsys):
    """The layout of MICCAI's VerSe names masks as this command names its labels."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in (500, 501):
        shutil.copy(ct_of(dataset, number), flat / f"a{number}.nii.gz")
    shutil.copy(mask_of(dataset, 500), flat / "a500_seg.nii.gz")
    human = (flat / "a500_seg.nii.gz").read_bytes()
    arguments = ["predict", f"--workdir={run}", f"--input={flat}", f"--output={flat}"]
    fails(capsys, arguments, "a500_seg.nii.gz", "did not write this file", "--overwrite")
    assert (flat / "a500_seg.nii.gz").read_bytes() == human
    assert not (flat / "a500_quicklook.png").exists()
    assert (flat / "a501_seg.nii.gz").exists() and (flat / "a501_quicklook.png").exists()

    fails(capsys, [*arguments, f"--reference={flat}", "--overwrite"], "2 of 2 scans failed")
    assert (flat / "a500_seg.nii.gz").read_bytes() == human
    assert main([*arguments, "--overwrite"]) == 0
    assert (flat / "a500_seg.nii.gz").read_bytes() != human

    assert main(arguments) == 0  # its own files by now
    shutil.copy(mask_of(dataset, 501), flat / "a501_seg.nii.gz")  # as corrected by hand
    fails(capsys, arguments, "a501_seg.nii.gz", "was changed since")
    assert (flat / "a501_seg.nii.gz").read_bytes() == mask_of(dataset, 501).read_bytes()


def test_an_input_that_is_named_like_its_output(dataset, run, tmp_path, capsys):
    ct = tmp_path / "x_seg.nii.gz"
    shutil.copy(ct_of(dataset), ct)
    before = ct.read_bytes()
    arguments = ["predict", f"--workdir={run}", f"--input={ct}", f"--output={tmp_path}/../"]
    arguments[-1] += tmp_path.name
    fails(capsys, [*arguments, "--overwrite"], "x_seg.nii.gz: is an input of this command")
    assert ct.read_bytes() == before and os.listdir(tmp_path) == ["x_seg.nii.gz"]


def test_home_folders_are_expanded(dataset, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(ct_of(dataset)), f"--workdir={run}", "--output=~/out"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_log_file_holds_a_few_lines_and_no_bars(dataset, run, tmp_path):
    command = [sys.executable, "-m", "spinejax", "predict", str(ct_of(dataset))]
    with (tmp_path / "log").open("wb") as log:
        command += ["-o", str(tmp_path / "out"), f"--workdir={run}"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=log, stderr=log)
    text = (tmp_path / "log").read_bytes().decode()
    assert "\r" not in text and "it/s" not in text
    assert len(text.splitlines()) < 10, text


# Bad scans.


def _header(**fields) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((12, 36, 40))
    header.set_sform(AFFINE, 1)
    for name, value in fields.items():
        header[name] = value
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return header.binaryblock + b"\0" * 4


def bad_scan(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}_ct.nii.gz"
    hu = bright_box(0)[0]
    if kind == "missing":
        return path
    if kind == "truncated":
        nib.Nifti1Image(hu, AFFINE).to_filename(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text":
        path.write_text("this is not a scan\n" * 50)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "two_dimensions":
        nib.Nifti1Image(hu[0], AFFINE).to_filename(path)
    elif kind == "four_dimensions":
        nib.Nifti1Image(np.stack([hu, hu], -1), AFFINE).to_filename(path)
    elif kind == "zero_affine":
        data = _header(srow_x=0, srow_y=0, srow_z=0, pixdim=[0] * 8) + hu.tobytes("F")
        path.write_bytes(gzip.compress(data))
    elif kind == "nan_affine":
        nan = [np.nan] * 4
        data = _header(srow_x=nan, srow_y=nan, srow_z=nan, pixdim=[np.nan] * 8) + hu.tobytes("F")
        path.write_bytes(gzip.compress(data))
    elif kind == "huge":
        block = bytearray(_header())
        struct.pack_into("<8h", block, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
        path.write_bytes(gzip.compress(bytes(block)))
    elif kind == "not_finite":
        nib.Nifti1Image(np.full(hu.shape, np.nan, np.float32), AFFINE).to_filename(path)
    elif kind == "small":
        nib.Nifti1Image(hu[:, :1, :1], AFFINE).to_filename(path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "truncated",
        "text",
        "empty",
        "two_dimensions",
        "four_dimensions",
        "zero_affine",
        "nan_affine",
        "huge",
        "not_finite",
        "small",
    ],
)
def test_bad_scans_are_refused(kind, run, tmp_path, capsys):
    path = bad_scan(kind, tmp_path)
    out = tmp_path / "results" / "out"
    arguments = ["predict", f"--workdir={run}", f"--input={path}", f"--output={out}"]
    fails(capsys, arguments, path.name, ";")
    assert not out.parent.exists()


@pytest.mark.parametrize("kind", ["elsewhere", "out_of_range", "negative", "fractional"])
def test_bad_references_are_refused(kind, dataset, run, tmp_path, capsys):
    path, out = bad_mask(kind, tmp_path), tmp_path / "out"
    arguments = ["predict", str(ct_of(dataset)), f"--workdir={run}", f"--output={out}"]
    fails(capsys, [*arguments, f"--reference={path}"], path.name, ";")
    assert not out.exists()


# Bad folders, disks and runs.


def test_an_output_folder_that_is_a_file(dataset, run, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    arguments = ["predict", f"--workdir={run}", f"--input={ct_of(dataset)}"]
    fails(capsys, [*arguments, f"--output={tmp_path / 'out'}"], "out")
    fails(capsys, [*arguments, "--output=/proc/nowhere"], "/proc/nowhere")
    fails(capsys, [*arguments, f"--output={tmp_path / 'mask.nii.gz'}"], "mask.nii.gz", "folder")


def test_a_full_disk(run, small_disk, tmp_path, capsys):
    (small_disk / "ballast").write_bytes(os.urandom(56 * 1024))
    before = snapshot(small_disk)
    ct = tmp_path / "noise_ct.nii.gz"
    hu = np.random.default_rng(0).integers(-500, 1500, (40, 40, 40)).astype(np.int16)
    nib.Nifti1Image(hu, AFFINE).to_filename(ct)
    fails(
        capsys,
        ["predict", f"--workdir={run}", f"--input={ct}", f"--output={small_disk / 'out'}"],
        "full",
    )
    for path in snapshot(small_disk) - before:  # a file that is there is whole
        assert path.suffixes in ([], [".nii", ".gz"]) or path.name == LIST
        if path.name.endswith(".gz"):
            np.asarray(nib.load(small_disk / path).dataobj)


def test_missing_and_damaged_runs(dataset, run, tmp_path, capsys):
    arguments = ["predict", f"--input={ct_of(dataset)}", f"--output={tmp_path / 'out'}"]
    fails(capsys, [*arguments, f"--workdir={tmp_path / 'nowhere'}"], "nowhere")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    fails(capsys, [*arguments, f"--workdir={copy}"], "copy")
    assert not (tmp_path / "out").exists()
