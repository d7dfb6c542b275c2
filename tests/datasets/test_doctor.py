import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from spinejax.datasets.doctor import CENTROID_TOLERANCE_MM, EXPECTED, EXPECTED_BOTH, doctor
from spinejax.errors import InputError
from spinejax.io import centroid_json, nifti
from spinejax.volume import LabelVolume, Volume
from tests.support.nifti_files import tissue

SHAPE = (24, 30, 40)
LPS = np.diag([-1.0, -1.0, 2.0, 1.0])


def boxes(*labels: int) -> np.ndarray:
    """One box of 8 x 8 x 6 voxels per label, from the top down."""
    array = np.zeros(SHAPE, np.uint8)
    for i, label in enumerate(labels):
        array[8:16, 10:18, 32 - 8 * i : 38 - 8 * i] = label
    return array


def centre(i: int) -> np.ndarray:
    return np.array([11.5, 13.5, 34.5 - 8 * i])


def write_case(folder: Path, stem: str, labels=(20, 21, 22), points=None, affine=LPS) -> None:
    subject = stem.split("_")[0]
    raw, derived = folder / "rawdata" / subject, folder / "derivatives" / subject
    image = Volume(tissue(SHAPE, zlib.crc32(stem.encode())), LPS)
    mask = LabelVolume(boxes(*labels), affine)
    nifti.write_volume(raw / f"{stem}_ct.nii.gz", image)
    nifti.write_labels(derived / f"{stem}_seg-vert_msk.nii.gz", mask.native, mask)
    if points is None:
        points = {label: centre(i) for i, label in enumerate(labels)}
    centroid_json.write_centroids(derived / f"{stem}_seg-subreg_ctd.json", points, image)


def text_of(report) -> str:
    return "\n".join(report.lines)


def row(report, title: str, nth: int = 0) -> list[str]:
    rows = [line for line in report.lines if line.strip().startswith(title)]
    return rows[nth].replace(" / ", "/").split()[len(title.split()) :]


def test_expected_counts_agree_with_each_other():
    nineteen, twenty, new = (EXPECTED[k] for k in ("verse19", "verse20", "verse20 new"))
    for download in EXPECTED.values():
        assert sum(download.scans.values()) == download.total_scans
    assert sum(nineteen.vertebrae.values()) == nineteen.total_vertebrae
    scans, patients, vertebrae = EXPECTED_BOTH
    assert twenty.total_scans - new.total_scans == 105
    assert nineteen.total_scans + new.total_scans == scans
    assert nineteen.total_patients + new.total_patients == patients
    assert nineteen.total_vertebrae + new.total_vertebrae == vertebrae


def test_inventory_counts_scans_patients_and_vertebrae(tmp_path):
    write_case(tmp_path / "dataset-verse19training", "sub-verse004")
    write_case(tmp_path / "dataset-verse19training", "sub-verse401_split-verse201", (8, 9))
    write_case(tmp_path / "dataset-verse19test", "sub-verse401_split-verse253", (24, 25))
    write_case(tmp_path / "dataset-01training", "sub-verse500_dir-ax", (18, 20, 21))
    report = doctor(tmp_path)
    assert report.problems == []
    assert "4 listed, of 3 patients; 4 usable" in text_of(report)
    assert row(report, "training") == ["2/80", "2", "5/862"]
    assert row(report, "test") == ["1/40", "1", "2/429"]
    assert row(report, "all") == ["3/160", "2/141", "7/1,725"]
    # Only scans that '19 lacks are here, so the subject-based download is what is expected.
    assert row(report, "training", 1) == ["1/61", "1", "3"]
    assert row(report, "both editions, copies once") == ["4/374", "3/355", "10/4,505"]
    assert "1 patients are in several official subsets" in text_of(report)
    assert "T1 1  T2 1  T3 0" in text_of(report)
    assert "L1 2  L2 2  L3 1  L4 0  L5 1  L6 1" in text_of(report)


def test_copies_count_in_their_edition_and_once_in_the_union(tmp_path):
    write_case(tmp_path / "verse19" / "training", "sub-verse004")
    write_case(tmp_path / "verse20" / "test", "sub-verse004")
    report = doctor(tmp_path)
    assert "copies    1 of scans that lie in several folders" in text_of(report)
    assert row(report, "all") == ["1/160", "1/141", "3/1,725"]
    assert row(report, "all", 1) == ["1/319", "1/300", "3/4,142"]
    assert row(report, "both editions, copies once") == ["1/374", "1/355", "3/4,505"]
    assert len(report.problems) == 1
    assert "copy of sub-verse004_verse20_test" in report.problems[0]


def test_every_kind_of_damage_is_a_problem_with_its_file(tmp_path):
    write_case(tmp_path, "sub-verse001")
    (tmp_path / "rawdata/sub-verse002").mkdir()
    (tmp_path / "rawdata/sub-verse002/sub-verse002_ct.nii.gz").write_text("text")
    write_case(tmp_path, "sub-verse003")
    mask = tmp_path / "derivatives/sub-verse003/sub-verse003_seg-vert_msk.nii.gz"
    mask.write_bytes(mask.read_bytes()[:60])
    write_case(tmp_path, "sub-verse004")
    points = tmp_path / "derivatives/sub-verse004/sub-verse004_seg-subreg_ctd.json"
    points.write_text("[{")
    write_case(tmp_path, "sub-verse005", ())
    write_case(tmp_path, "sub-verse006", (20, 23))
    write_case(tmp_path, "sub-verse007", (25, 26), {25: centre(0)})
    problems = doctor(tmp_path).problems
    found = {}
    for problem in problems:
        case, _, text = problem.partition(": ")
        found.setdefault(case, []).append(text)
        assert "\n" not in problem
    assert set(found) == {f"sub-verse00{i}" for i in range(2, 8)}
    assert [text for text in found["sub-verse002"] if "not a NIfTI" in text]
    assert str(mask) in found["sub-verse003"][0]
    assert found["sub-verse004"] == [f"{points}: is not JSON; copy or download it again"]
    assert found["sub-verse005"][0].endswith("sub-verse005_seg-vert_msk.nii.gz is empty")
    assert found["sub-verse006"][0].endswith("sub-verse006_seg-vert_msk.nii.gz goes from L1 to L4")
    assert (
        "has label 26 (sacrum), which is no vertebra and counts as background"
        in found["sub-verse007"][0]
    )


def test_centroids_are_checked_against_their_masks(tmp_path):
    write_case(
        tmp_path,
        "sub-verse001",
        (20, 21, 22),
        {
            # z spacing is 2 mm, boxes end at index 37 of L1: 2 voxels above are 4 mm, 4 are 8 mm.
            20: np.array([11.5, 13.5, 41.0]),
            21: np.array([11.5, 13.5, 26.0]),
            24: np.array([1.0, 1.0, 1.0]),
        },
    )
    name = "derivatives/sub-verse001/sub-verse001_seg-subreg_ctd.json"
    assert CENTROID_TOLERANCE_MM == 5
    assert doctor(tmp_path).problems == [
        f"sub-verse001: {name}: the centroid of L1 lies 8.0 mm outside its mask",
        f"sub-verse001: {name} has a centroid of L5, which is not in the mask",
        f"sub-verse001: {name} lacks a centroid of L3",
    ]


def test_near_misses_are_fine_and_far_ones_are_bounded(tmp_path):
    write_case(tmp_path, "sub-verse001", (20,), {20: np.array([11.5, 13.5, 39.0])})
    assert doctor(tmp_path).problems == []
    write_case(tmp_path, "sub-verse001", (20,), {20: np.array([11.5, 13.5, 1.0])})
    (problem,) = doctor(tmp_path).problems
    assert "the centroid of L1 lies more than 5 mm outside its mask" in problem


def test_direction_that_differs_from_the_scan_is_noted_and_followed(tmp_path):
    write_case(tmp_path, "sub-verse001", (20,))
    path = tmp_path / "derivatives/sub-verse001/sub-verse001_seg-subreg_ctd.json"
    # (x, y, z) of LPS is (y, 39 - z, 23 - x) in PIR.
    x, y, z = centre(0)
    path.write_text(
        json.dumps(
            [{"direction": ["P", "I", "R"]}, {"label": 20, "X": y, "Y": 39 - z, "Z": 23 - x}]
        )
    )
    (problem,) = doctor(tmp_path).problems
    assert problem.endswith("has direction PIR, the scan LPS (points are turned)")


@pytest.mark.parametrize(
    ("shift_mm", "text"),
    [
        (0.3, None),
        (5.0, "lies up to 5 mm off its CT rawdata/sub-verse001/sub-verse001_ct.nii.gz (it will"),
        (500.0, "does not overlap"),
    ],
)
def test_masks_off_their_scan_are_named(tmp_path, shift_mm, text):
    affine = LPS.copy()
    affine[0, 3] = shift_mm
    write_case(tmp_path, "sub-verse001", (20,), affine=affine)
    problems = [p for p in doctor(tmp_path).problems if "seg-vert_msk" in p]
    assert len(problems) == (text is not None)
    assert all(text in p for p in problems)


def test_paired_folders_have_no_published_counts(tmp_path):
    image = Volume(tissue(SHAPE), LPS)
    nifti.write_volume(tmp_path / "images/a.nii.gz", image)
    nifti.write_labels(tmp_path / "labels/a.nii.gz", boxes(20), image)
    report = doctor(tmp_path)
    assert report.problems == []
    assert "/" not in text_of(report).replace(str(tmp_path), "")
    assert "1 usable" in text_of(report)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        doctor(tmp_path / "none")


def test_real_folder_has_only_its_known_gaps(real_data):
    report = doctor(real_data / "verse")
    # The two scans whose CT was never there; every centroid fits its mask.
    assert [p.split(":")[0] for p in report.problems] == ["sub-gl003_dir-ax", "sub-verse004"]
    assert all("no CT for" in p for p in report.problems)
    assert row(report, "both editions, copies once") == ["3/374", "3/355", "26/4,505"]


def test_scans_that_are_no_ct_in_hu_are_named(tmp_path):
    image = Volume(tissue(SHAPE), LPS)
    for name, array in {"a": image.array + 1024, "b": boxes(20).astype(np.int16)}.items():
        nifti.write_volume(tmp_path / f"images/{name}.nii.gz", Volume(array, LPS))
        nifti.write_labels(tmp_path / f"labels/{name}.nii.gz", boxes(20), image)
    first, second = doctor(tmp_path).problems
    assert first.startswith("a: images/a.nii.gz: looks like HU + 1024")
    assert second.startswith("b: images/b.nii.gz: holds only the numbers 0, 20")


def test_a_problem_is_one_line_that_names_its_case_once(tmp_path):
    for name, array in {"a": tissue(SHAPE) + 1024, "b\nc": tissue(SHAPE)}.items():
        nifti.write_volume(tmp_path / f"{name}.nii.gz", Volume(array, LPS))
    without, shifted, newline = doctor(tmp_path).problems
    assert without == "a: no mask for a.nii.gz"
    assert shifted.startswith("a.nii.gz: looks like HU + 1024")
    assert newline == "b%0Ac: no mask for b c.nii.gz"


def test_scans_under_several_names_are_named(tmp_path):
    for name, seed in {"a": 1, "b": 2, "c": 1}.items():
        nifti.write_volume(tmp_path / f"images/{name}.nii.gz", Volume(tissue(SHAPE, seed), LPS))
        nifti.write_labels(tmp_path / f"labels/{name}.nii.gz", boxes(20), Volume(boxes(20), LPS))
    (problem,) = doctor(tmp_path).problems
    assert problem.startswith("a, c: one scan under several names")


def test_masks_in_the_numbers_of_another_program(tmp_path):
    """The scheme is guessed and said in one line; given, the same masks have no problem."""
    for name, numbers in (("a", (32, 31, 30)), ("b", (31, 30, 29)), ("c", (20, 21))):
        (tmp_path / "images").mkdir(exist_ok=True)
        image = Volume(tissue(SHAPE, ord(name)), LPS)
        nifti.write_volume(tmp_path / "images" / f"{name}.nii.gz", image)
        mask = LabelVolume(boxes(*numbers), LPS)
        nifti.write_labels(tmp_path / "labels" / f"{name}.nii.gz", mask.native, mask)
    report = doctor(tmp_path)
    (line,) = [line for line in report.lines if line.startswith("masks")]
    assert "2 have numbers that look like those of totalsegmentator" in line
    assert "add --labels=totalsegmentator, and train with" in line
    (tmp_path / "labels" / "c.nii.gz").unlink()
    report = doctor(tmp_path, scheme="totalsegmentator")
    assert [problem for problem in report.problems if "no mask for" not in problem] == []
    assert "T12 1" in text_of(report) and "L1 2  L2 2  L3 1" in text_of(report)
    assert not any(line.startswith("masks") for line in report.lines)
    report = doctor(tmp_path, scheme="binary")
    assert not any(line.startswith("masks") for line in report.lines)


def test_a_label_map_is_no_ct(tmp_path):
    image = Volume(tissue(SHAPE, 0), LPS)
    mask = LabelVolume(boxes(20, 21, 22), LPS)
    nifti.write_volume(tmp_path / "p1.nii.gz", image)
    for name in ("p1_vertebrae", "lone"):
        nifti.write_labels(tmp_path / f"{name}.nii.gz", mask.native, mask)
    body = Volume((boxes(20, 21, 22) > 0).astype(np.float32), LPS)  # zeros and ones as HU
    nifti.write_volume(tmp_path / "p2_ct.nii.gz", body, "float32")
    nifti.write_labels(tmp_path / "p2_seg.nii.gz", mask.native, mask)
    report = doctor(tmp_path)
    assert "scans     1 listed, of 1 patients; 0 usable (CT and mask)" in report.lines
    assert "others    3 are label maps, but named like CTs (first: lone.nii.gz); see below" in (
        report.lines
    )
    what = "holds only the numbers 0, 20, 21, 22 in flat regions, so it is a label map"
    assert report.problems == [
        f"lone.nii.gz: {what}; end its name with _seg and begin it like that of its CT",
        "p1: no mask for p1.nii.gz",
        f"p1_vertebrae.nii.gz: {what}; name it p1_seg.nii.gz if it is the mask of p1",
        "p2: p2_ct.nii.gz: holds only the numbers 0, 1 in flat regions, so it is a label map; put "
        "the CT in its place",
    ]
    (tmp_path / "p1_vertebrae.nii.gz").rename(tmp_path / "p1_seg.nii.gz")
    assert any("1 usable" in line for line in doctor(tmp_path).lines)


def test_probabilities_are_no_ct_and_no_mask(tmp_path):
    shares = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    for name in ("a_ct", "a_seg"):
        nifti.write_volume(tmp_path / f"{name}.nii.gz", Volume(shares, LPS), "float32")
    ct, mask = doctor(tmp_path).problems
    assert "probabilities" in ct and "a_ct.nii.gz" in ct
    assert "labels are whole numbers" in mask and "a_seg.nii.gz" in mask
