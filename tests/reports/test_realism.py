"""Phantoms beside real scans: what is off, numbers of real scans, and the command."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from spinejax.cli import main
from spinejax.datasets.plain_folders import real_scans
from spinejax.files import LIST
from spinejax.phantom import dataset, measures
from spinejax.reports import realism
from spinejax.reports.realism import Measured, measure_files
from tests.phantom.test_measures import LPS, muscle, two_boxes
from tests.support.cli_runs import fails

SMALL = {
    "min_spacing_mm": 2.5,
    "max_spacing_mm": 3.0,
    "min_extent_mm": 120.0,
    "max_extent_mm": 130.0,
    "max_voxels": 30_000,
}
FLAGS = [f"--{name}={value}" for name, value in SMALL.items()]


# Comparing.


def scans(name: str, values: list[float]) -> list[Measured]:
    return [Measured(f"{name}{i}", {"scan/noise_hu": value}) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("real", "phantoms", "off"),
    [
        ([10.0, 12.0], [1.0, 2, 3, 4, 5], "low"),
        ([10.0, 12.0], [13.0, 14, 15, 16, 17], "high"),
        ([10.0, 12.0], [1.0, 2, 3, 4, 20], None),
        ([10.0], [8.0, 9, 10, 11, 12], None),
        # One stray phantom in a hundred is outside its own range.
        ([10.0], [*np.linspace(1, 5, 99), 11.0], "low"),
        ([10.0], [1.0, 2, 3, 4], None),  # too few to say
        ([10.0], [], None),
        ([], [1.0, 2, 3, 4, 5], None),
    ],
    ids=["below", "above", "reaching in", "around", "stray", "too few", "no phantom", "no real"],
)
def test_off_means_that_ranges_do_not_overlap(real, phantoms, off):
    found = realism.collect(scans("r", real), scans("p", phantoms))["statistics"]
    assert found["scan/noise_hu"]["off"] == off


def test_collected_ranges_are_extremes_of_real_scans_and_percentiles_of_phantoms():
    found = realism.collect(scans("r", [3.0, 1.0]), scans("p", list(range(101))))
    assert found["statistics"]["scan/noise_hu"] == {
        "real": {"n": 2, "low": 1.0, "high": 3.0},
        "phantom": {"n": 101, "p5": 5.0, "p50": 50.0, "p95": 95.0},
        "off": "high",
    }
    assert found["real"] == {"r0": {"scan/noise_hu": 3.0}, "r1": {"scan/noise_hu": 1.0}}


def test_the_table_shows_ranges_and_marks_what_is_off():
    real = [
        Measured("r", {"volume_ml/L1": 38.0, "scan/noise_hu": 82.0, "body_distance_mm/C1-C2": 17.5})
    ]
    ours = [
        Measured(f"p{i}", {"volume_ml/L1": 30.0 + i, "scan/noise_hu": 90.0, "deep_hu/50": 70.0})
        for i in range(5)
    ]
    record = realism.collect(real, ours)
    lines = realism.table({"real_data": "DIR", "phantoms": {"seed": 4}, **record}).splitlines()
    found = {line.split("  ")[0]: line.split() for line in lines if line}
    assert lines[0] == "1 real scans of DIR | 5 phantoms of seed 4, 5 to 95 %"
    assert found["L1"][:5] == ["L1", "38.0", "|", "30.2..33.8", "<"]
    assert found["C1-C2"][:4] == ["C1-C2", "17.5", "|", "-"]
    assert found["noise hu"] == ["noise", "hu", "82", "90", ">", "90"]
    assert found["HU deep 50 %"] == ["HU", "deep", "50", "%", "-", "70", "70"]
    assert lines[-1] == "2 of 2 statistics are off"


# Real scans.


@pytest.fixture(scope="module")
def real(real_data):
    return {one.case: one.values for f in real_scans(real_data) if (one := measure_files(f))}


VOLUMES = {
    "C1": (15, 15), "C2": (19, 19), "C3": (13, 16), "C6": (13, 16), "C7": (19, 19),
    "T1": (24, 24), "T3": (24, 24), "T4": (28, 29), "T5": (28, 29), "T9": (28, 28),
    "T10": (32, 32), "T11": (36, 36), "T12": (41, 48),
    "L1": (38, 58), "L2": (49, 61), "L3": (55, 63), "L4": (59, 65), "L5": (58, 66),
}  # fmt: skip
BODIES = {
    "C1-C2": 17.5, "C2-C3": 23.6, "C7-T1": 20.5, "T9-T10": 22.5, "T10-T11": 25.4, "T11-T12": 29.2,
    "T12-L1": 25.7, "L1-L2": 27.7, "L3-L4": 33.3,
}  # fmt: skip


@pytest.mark.parametrize("level", VOLUMES)
def test_volumes_of_real_vertebrae_are_the_published_ones(real, level):
    found = [values[key] for values in real.values() if (key := f"volume_ml/{level}") in values]
    low, high = VOLUMES[level]
    assert found and low - 0.6 <= min(found) and max(found) <= high + 0.6


def test_extents_of_real_vertebrae_are_the_published_ones(real):
    gl003 = real["sub-gl003_dir-ax"]
    for level, sizes in {"C1": (82, 47, 29), "C2": (56, 52, 44), "C7": (69, 64, 34)}.items():
        found = [gl003[f"{extent}/{level}"] for extent in measures.EXTENTS]
        assert found == pytest.approx(sizes, abs=0.6)
    verse004 = real["sub-verse004"]
    found = [verse004[f"{extent}/T9"] for extent in measures.EXTENTS]
    assert found == pytest.approx((56, 67, 47), abs=0.6)
    # Of sub-verse014 the field of view ends at the transverse processes.
    assert not any(name.startswith("right_left_mm") for name in real["sub-verse014"])


@pytest.mark.parametrize("pair", BODIES)
def test_distances_of_real_bodies_are_the_published_ones(real, pair):
    key = f"body_distance_mm/{pair}"
    found = [values[key] for values in real.values() if key in values]
    assert found and found == pytest.approx([BODIES[pair]] * len(found), abs=0.15)


@pytest.mark.parametrize(
    ("case", "percentiles"),
    [
        ("sub-verse014", (1, 154, 322, 581, 1046)),
        ("example", (64, 114, 172, 272, 517)),
        ("sub-ct_label-22", (-60, 52, 166, 383, 896)),
    ],
)
def test_grey_values_inside_real_vertebrae_are_the_published_ones(real, case, percentiles):
    found = [real[case][f"inside_hu/{p}"] for p in measures.PERCENTILES]
    assert found == pytest.approx(percentiles, abs=1)


def test_layers_of_real_vertebrae_are_the_published_ones(real):
    cases = [values for values in real.values() if "deep_hu/50" in values]
    assert len(cases) == 3
    for layer, low, high in (("deep", 67, 201), ("shell", 246, 406)):
        medians = [values[f"{layer}_hu/50"] for values in cases]
        assert low <= min(medians) and max(medians) <= high
    assert [np.median([v[f"around_hu/{p}"] for v in cases]) for p in (5, 95)] == pytest.approx(
        [-168, 345], abs=50
    )


@pytest.mark.parametrize(
    ("case", "published"), [("sub-verse014", 93), ("sub-ct_label-22", 82), ("example", 17)]
)
def test_noise_of_real_scans_is_near_the_published_one(real, case, published):
    # That number is a plain standard deviation in soft tissue; ours leaves its structure out.
    assert 0.65 * published < real[case]["scan/noise_hu"] < published


def test_bright_voxels_of_real_scans_are_mostly_something_else(real):
    shares = [v["scan/bright_elsewhere"] for v in real.values() if "scan/bright_elsewhere" in v]
    assert len(shares) == 3
    assert 0.395 < min(shares) and max(shares) < 0.8


def test_of_two_masks_the_one_in_verse_numbers_is_taken(real_data):
    found = {files.id: files for files in real_scans(real_data)}
    assert found["example"].labels.name == "example_vertebrae_verse-ids.nii.gz"
    assert len([case for case in found if case.startswith("example")]) == 1
    assert found["sub-verse004"].image is None
    assert found["LIDC-IDRI-0003"].labels is None


# The command.


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms") / "data"
    dataset.write_dataset(root, 5, 3, **SMALL)
    return root


def test_phantoms_are_like_themselves(phantoms, tmp_path, capsys):
    words = [f"--compare={phantoms}", "--cases=5", "--seed=3", *FLAGS]
    assert main(["phantom", *words, f"--out={tmp_path / 'a'}"]) == 0
    record = json.loads((tmp_path / "a" / "realism.json").read_text())
    for case, values in record["phantom"].items():
        # On disk centroids are rounded, and grey values to what the file's type holds.
        assert record["real"][case] == pytest.approx(values, rel=0.01, abs=1.0)
    assert not any(row["off"] for row in record["statistics"].values())
    printed = capsys.readouterr().out
    assert "\n0 of " in printed and "HU inside 50 %" in printed and "mask distance mm" in printed
    with Image.open(tmp_path / "a" / "realism.png") as picture:
        assert picture.size[0] > 1500 and picture.size[1] > 1500
    assert main(["phantom", *words, f"--out={tmp_path / 'b'}"]) == 0
    for name in ("realism.json", "realism.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "realism.json",
        "realism.png",
        LIST,
    }


def test_masks_without_ct_still_give_shapes(phantoms, tmp_path, capsys):
    data = tmp_path / "data"
    for path in phantoms.rglob("*msk.nii.gz"):
        (data / path.name).parent.mkdir(exist_ok=True)
        (data / path.name).write_bytes(path.read_bytes())
    assert main(["phantom", f"--compare={data}", "--cases=1", *FLAGS, f"--out={tmp_path}/o"]) == 0
    record = json.loads((tmp_path / "o" / "realism.json").read_text())
    names = {name.partition("/")[0] for values in record["real"].values() for name in values}
    assert "volume_ml" in names and "inside_hu" not in names


def test_a_loose_mask_is_found_and_a_damaged_scan_is_left_out(tmp_path, caplog):
    mask = two_boxes()
    for name, array in {
        "a": muscle(20)[:12, :12, :20].astype(np.int16),
        "a_vertebrae": mask,
        "a_other": mask * 10,
        "b_seg": mask,
        "b_old": mask,  # not a CT of its own
    }.items():
        nib.save(nib.Nifti1Image(array, LPS), tmp_path / f"{name}.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"no image")
    found = {files.id: files for files in real_scans(tmp_path)}
    assert found.keys() == {"a", "b"}
    assert found["a"].labels.name == "a_vertebrae.nii.gz"
    assert measure_files(found["a"]).values["volume_ml/L1"] == pytest.approx(0.12)
    assert measure_files(found["b"]) is None
    assert "b: left out" in caplog.text


@pytest.mark.parametrize(
    "problem", ["missing", "empty", "unreadable", "no cases", "spacing", "out"]
)
def test_bad_input_is_one_line(problem, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    nib.save(nib.Nifti1Image(two_boxes(), LPS), data / "x_seg.nii.gz")
    more, words = [], []
    if problem == "missing":
        data, words = tmp_path / "none", ["none", "no such folder"]
    elif problem == "empty":
        (data / "x_seg.nii.gz").unlink()
        words = [str(data), "no "]
    elif problem == "unreadable":
        (data / "x_seg.nii.gz").write_bytes(b"x")
        words = [str(data), "none of its scans"]
    elif problem == "no cases":
        more, words = ["--cases=0"], ["cases=0"]
    elif problem == "spacing":
        more, words = ["--min_spacing_mm=9"], ["voxel sizes"]
    else:
        out.write_text("")
        words = [str(out), "is a file"]
    fails(capsys, ["phantom", f"--compare={data}", f"--out={out}", *more], *words)
    assert not out.is_dir()


def test_an_empty_name_of_the_folder_is_refused(tmp_path, capsys):
    fails(capsys, ["phantom", "--compare=", f"--out={tmp_path / 'o'}"], "--compare is empty")
