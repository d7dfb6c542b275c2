import errno
import os
import time
from pathlib import Path

import pytest

from spinejax.datasets import verse
from spinejax.errors import InputError
from spinejax.io import file_names


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def subject_based(folder: str, subject: str, entities: str = "", body: str = "subreg") -> list[str]:
    stem = f"{subject}{entities}"
    return [
        f"{folder}/rawdata/{subject}/{stem}_ct.nii.gz",
        f"{folder}/derivatives/{subject}/{stem}_seg-vert_msk.nii.gz",
        f"{folder}/derivatives/{subject}/{stem}_seg-{body}_ctd.json",
        # Some previews lack "sub-"; none is a scan.
        f"{folder}/derivatives/{subject}/{stem.removeprefix('sub-')}_seg-vert_snp.png",
    ]


def files(case: verse.Case) -> list[str]:
    return [path.name if path else "-" for path in (case.image, case.labels, case.centroids)]


def by_id(root: Path, **kwargs) -> dict[str, verse.Case]:
    cases = verse.index_dataset(root, **kwargs)
    assert len({case.id for case in cases}) == len(cases)
    return {case.id: case for case in cases}


@pytest.mark.parametrize(
    ("folder", "subset", "edition"),
    [
        ("dataset-verse19training", "train", "verse19"),
        ("dataset-verse19validation", "val", "verse19"),
        ("dataset-verse19test", "test", "verse19"),
        ("dataset-verse20training", "train", "verse20"),
        ("dataset-01training", "train", "verse20"),
        ("dataset-02validation", "val", "verse20"),
        ("dataset-03test", "test", "verse20"),
        ("VerSe20/01_training", "train", "verse20"),
        ("VerSe2020/03_test", "test", "verse20"),
        ("verse2019/train", "train", "verse19"),
        ("verse2019/val", "val", "verse19"),
        ("verse2019/TrainingData", "train", "verse19"),
        ("VerSe19/test_public", "val", "verse19"),
        ("VerSe19/test_hidden", "test", "verse19"),
        ("somewhere", None, "verse20"),
    ],
)
def test_subject_based_folders_give_subset_and_edition(tmp_path, folder, subset, edition):
    make(tmp_path, *subject_based(folder, "sub-verse521", "_dir-ax"))
    (case,) = verse.index_dataset(tmp_path)
    assert case.id == "sub-verse521_dir-ax"
    assert (case.subset, case.edition, case.subject) == (subset, edition, "verse521")
    assert files(case) == [
        "sub-verse521_dir-ax_ct.nii.gz",
        "sub-verse521_dir-ax_seg-vert_msk.nii.gz",
        "sub-verse521_dir-ax_seg-subreg_ctd.json",
    ]
    assert case.problems == ()
    assert verse.usable([case]) == [case]


def test_subset_is_known_when_the_root_is_one_part_of_the_download(tmp_path):
    root = make(tmp_path / "dataset-02validation", *subject_based(".", "sub-gl017"))
    (case,) = verse.index_dataset(root)
    assert (case.subset, case.edition) == ("val", "verse20")
    # but not when the folder merely happens to have such a name
    root = make(tmp_path / "test_run", *subject_based(".", "sub-gl017"))
    assert verse.index_dataset(root)[0].subset is None


def test_series_of_one_patient_share_the_subject(tmp_path):
    make(
        tmp_path,
        *subject_based("dataset-verse19training", "sub-verse401", "_split-verse253"),
        *subject_based("dataset-verse19training", "sub-verse401", "_split-verse201"),
        *subject_based("dataset-verse19training", "sub-verse004"),
    )
    cases = by_id(tmp_path)
    assert {i: case.subject for i, case in cases.items()} == {
        "sub-verse401_split-verse253": "verse401",
        "sub-verse401_split-verse201": "verse401",
        "sub-verse004": "verse004",
    }
    assert all(not case.problems for case in cases.values())


def test_miccai19_flat_names(tmp_path):
    make(
        tmp_path,
        *(f"training/verse{n}{s}" for n in ("004", "201", "253") for s in (
            ".nii.gz", "_seg.nii.gz", "_ctd.json", "_snapshot.png")),
    )  # fmt: skip
    cases = by_id(tmp_path)
    assert list(cases) == ["verse004", "verse201", "verse253"]
    assert {case.edition for case in cases.values()} == {"verse19"}
    assert {case.subset for case in cases.values()} == {"train"}
    assert not any(case.problems for case in cases.values())
    # These names do not carry the patient; 201 and 253 are series of verse401.
    assert [case.subject for case in cases.values()] == ["verse004", "verse401", "verse401"]


@pytest.mark.parametrize(
    ("image", "mask", "centroids"),
    [
        ("verse500", "verse500_seg", "verse500_iso-ctd"),
        ("verse506_CT-iso", "verse506_CT-iso_seg", "verse506_CT-iso-iso-ctd"),
        ("verse506_CT-iso", "verse506_CT-iso_seg", "verse506_CT-iso-ctd"),
        ("verse506_CT-iso", "verse506_CT-iso_seg", "verse506_CT-iso_ctd-iso"),
        ("verse561_CT-sag", "verse561_CT-sag_seg", "verse561_CT-sag_iso-ctd"),
        ("verse811_CT-ax", "verse811_CT-ax_seg", "verse811_CT-ax-ctd-iso"),
        ("verse402_verse251_CT-sag", "verse402_verse251_CT-sag_seg",
         "verse402_verse251_CT-sag-iso-ctd"),
        ("GL003", "GL003_seg", "GL003_iso-ctd"),
        ("GL090_CT-ax", "GL090_CT-ax_seg", "GL090_CT-ax-iso-ctd"),
        ("GL124_CT-ax", "GL124_CT-ax_seg", "GL124_CT_ax-iso-ctd"),
        ("GL240_CT-ax", "GL240_CT-ax_seg", "GL240_CT_ax-iso-ctd"),
        ("GL240_CT-ax", "gl240_ct-ax_seg", "GL240_iso-ctd"),
        ("verse096", "verse096_seg", "verse096_iso-ctd"),
        ("verse510_CT-iso", "verse510_seg", "verse510_iso-ctd"),
    ],
)  # fmt: skip
def test_miccai20_names_and_slips(tmp_path, image, mask, centroids):
    names = [f"{image}.nii.gz", f"{mask}.nii.gz", f"{centroids}.json"]
    make(tmp_path, *names, "verse999_CT-iso.nii.gz", "verse999_CT-iso_seg.nii.gz")
    case = by_id(tmp_path)[image]
    assert files(case) == names
    assert case.edition == "verse20"
    assert case.problems == ()


def test_scan_in_both_editions_is_used_once_and_is_one_patient(tmp_path):
    make(
        tmp_path,
        *subject_based("dataset-verse19training", "sub-verse401", "_split-verse253"),
        "VerSe20/test/verse401_verse253_CT-iso.nii.gz",
        "VerSe20/test/verse401_verse253_CT-iso_seg.nii.gz",
        "VerSe19/validation/verse253.nii.gz",
        "VerSe19/validation/verse253_seg.nii.gz",
    )
    cases = verse.index_dataset(tmp_path)
    assert len(cases) == 3
    assert {case.subject for case in cases} == {"verse401"}
    (kept,) = verse.usable(cases)
    assert kept.id == "sub-verse401_split-verse253"  # the restructured release is preferred
    assert (kept.subset, kept.copy_subsets) == ("train", ("val", "test"))
    for case in cases:
        if case is not kept:
            assert case.duplicate_of == kept.id
            assert any("copy of sub-verse401_split-verse253" in text for text in case.problems)


def test_complete_copy_is_preferred_over_an_incomplete_one(tmp_path):
    make(
        tmp_path,
        "dataset-verse19test/derivatives/sub-verse012/sub-verse012_seg-vert_msk.nii.gz",
        "MICCAI2020/verse012_CT-iso.nii.gz",
        "MICCAI2020/verse012_CT-iso_seg.nii.gz",
    )
    (kept,) = verse.usable(verse.index_dataset(tmp_path))
    assert kept.id == "verse012_CT-iso"
    assert kept.copy_subsets == ("test",)


def test_same_file_names_in_two_folders_get_different_ids(tmp_path):
    make(tmp_path, *subject_based("verse19/train", "sub-verse004"))
    make(tmp_path, *subject_based("verse20/test", "sub-verse004"))
    assert list(by_id(tmp_path)) == ["sub-verse004_verse19_train", "sub-verse004_verse20_test"]


def test_missing_files_are_listed_and_not_fatal(tmp_path):
    make(
        tmp_path,
        "rawdata/sub-verse004/sub-verse004_ct.nii.gz",
        "derivatives/sub-verse005/sub-verse005_seg-vert_msk.nii.gz",
        "derivatives/sub-verse006/sub-verse006_seg-subreg_ctd.json",
        "rawdata/sub-verse007/sub-verse007_ct.nii.gz",
        "derivatives/sub-verse007/sub-verse007_seg-vert_msk.nii.gz",
    )
    cases = by_id(tmp_path)
    problems = {i: " | ".join(case.problems) for i, case in cases.items()}
    ct = "rawdata/sub-verse004/sub-verse004_ct.nii.gz"
    mask = "derivatives/sub-verse005/sub-verse005_seg-vert_msk.nii.gz"
    points = "derivatives/sub-verse006/sub-verse006_seg-subreg_ctd.json"
    assert problems["sub-verse004"] == f"no mask for {ct} | no centroids for {ct}"
    assert problems["sub-verse005"] == f"no CT for {mask} | no centroids for {mask}"
    assert problems["sub-verse006"] == f"no CT for {points} | no mask for {points}"
    assert problems["sub-verse007"].startswith("no centroids for")
    assert [case.id for case in verse.usable(cases.values())] == ["sub-verse007"]


def test_hidden_temporary_and_foreign_files_are_skipped(tmp_path):
    make(
        tmp_path,
        *subject_based(".", "sub-verse004", body="vb"),
        "rawdata/sub-verse004/._sub-verse004_ct.nii.gz",
        "rawdata/sub-verse004/.tmp-x-sub-verse004_ct.nii.gz",
        "rawdata/sub-verse004/sub-verse004_ct.nii.gz.part",
        ".cache/sub-verse009_ct.nii.gz",
        "__MACOSX/rawdata/sub-verse004/sub-verse004_ct.nii.gz",
        "derivatives/sub-verse004/sub-verse004_seg-subreg_msk.nii.gz",
        "derivatives/sub-verse004/sub-verse004_prediction.nii.gz",
        "dataset.json",
    )
    (case,) = verse.index_dataset(tmp_path)
    assert files(case)[1:] == ["sub-verse004_seg-vert_msk.nii.gz", "sub-verse004_seg-vb_ctd.json"]
    assert case.problems == ()


def test_uncompressed_files_are_found_and_the_second_of_two_is_reported(tmp_path):
    make(tmp_path, "verse005.nii", "verse005_seg.nii", "verse005.nii.gz", "verse005_ctd.json")
    (case,) = verse.index_dataset(tmp_path)
    assert files(case)[:2] == ["verse005.nii.gz", "verse005_seg.nii"]
    assert case.problems == ("ignored verse005.nii, a second file",)


def test_an_edition_alone_has_the_scans_that_it_shares_with_the_other(tmp_path):
    subject = "rawdata/sub-verse{0}/sub-verse{0}_ct.nii.gz"
    mask = "derivatives/sub-verse{0}/sub-verse{0}_seg-vert_msk.nii.gz"
    for edition, ids in (("19", ("004", "005")), ("20", ("004", "506"))):
        for number in ids:
            names = (name.format(number) for name in (subject, mask))
            make(tmp_path / f"dataset-verse{edition}training", *names)
    cases = verse.index_dataset(tmp_path)
    assert len(verse.usable(cases)) == 3
    for edition, ids in (("verse19", ["004", "005"]), ("verse20", ["004", "506"])):
        own = verse.usable(verse.of_edition(cases, edition))
        assert [case.image.name[9:12] for case in own] == ids
        assert {case.edition for case in own} == {edition}
    # Two copies of one scan in one edition are one scan.
    make(tmp_path / "again" / "dataset-verse19training", subject.format("004"), mask.format("004"))
    cases = verse.index_dataset(tmp_path)
    assert len(verse.usable(verse.of_edition(cases, "verse19"))) == 2


def test_gl_scans_can_be_left_out(tmp_path):
    make(tmp_path, "GL003.nii.gz", "GL003_seg.nii.gz", "verse004.nii.gz", "verse004_seg.nii.gz")
    assert list(by_id(tmp_path)) == ["GL003", "verse004"]
    assert list(by_id(tmp_path, exclude_gl=True)) == ["verse004"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["images/a1.nii.gz", "labels/a1.nii.gz"], {"a1": (None, "a1")}),
        (["images/a1_ct.nii.gz", "masks/a1_seg.nii"], {"a1": (None, "a1")}),
        (["images/x_0000.nii.gz", "labels/x.nii.gz"], {"x": (None, "x")}),
        (
            ["images/train/a.nii.gz", "labels/train/a.nii.gz",
             "images/test/b.nii.gz", "labels/test/b.nii.gz"],
            {"a": ("train", "a"), "b": ("test", "b")},
        ),
        (
            ["train/images/1.nii.gz", "train/labels/1.nii.gz",
             "test/images/1.nii.gz", "test/labels/1.nii.gz"],
            {"1_train": ("train", "train/1"), "1_test": ("test", "test/1")},
        ),
        (
            ["imagesTr/s_01_0000.nii.gz", "imagesTr/s_01_0001.nii.gz", "labelsTr/s_01.nii.gz",
             "imagesTs/s_02_0000.nii.gz", "labelsTs/s_02.nii.gz"],
            {"s_01": ("train", "s_01"), "s_02": ("test", "s_02")},
        ),
        (["s0011/ct.nii.gz", "s0011/mask.nii.gz"], {"s0011": (None, "s0011")}),
        (
            ["rawdata/sub-p7/ses-1/ct/sub-p7_ses-1_ct.nii.gz",
             "derivatives/sub-p7/ses-1/sub-p7_ses-1_seg-vert_msk.nii.gz",
             "rawdata/sub-p7/ses-2/ct/sub-p7_ses-2_ct.nii.gz",
             "derivatives/sub-p7/ses-2/sub-p7_ses-2_seg-vert_msk.nii.gz"],
            {"sub-p7_ses-1": (None, "sub-p7"), "sub-p7_ses-2": (None, "sub-p7")},
        ),
    ],
    ids=["plain", "suffixes", "channel", "inner subsets", "outer subsets", "nnunet", "per scan",
         "bids"],
)  # fmt: skip
def test_paired_folders_of_any_dataset(tmp_path, names, expected):
    make(tmp_path, *names)
    cases = by_id(tmp_path)
    assert {i: (case.subset, case.subject) for i, case in cases.items()} == expected
    assert len(verse.usable(cases.values())) == len(expected)
    assert not any(case.problems for case in cases.values())


def test_bad_roots_are_refused_in_one_line(tmp_path):
    make(tmp_path, "file.txt", "empty/readme.txt")
    for root, text in (
        ("none", "does not exist"),
        ("file.txt", "not a folder"),
        ("empty", "no DICOM, .nii"),
    ):
        with pytest.raises(InputError, match=text) as error:
            verse.index_dataset(tmp_path / root)
        assert "\n" not in str(error.value)


def test_links_are_followed_and_loops_end(tmp_path):
    make(tmp_path / "elsewhere", *subject_based(".", "sub-verse004"))
    root = tmp_path / "root"
    root.mkdir()
    (root / "verse19").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    (case,) = verse.index_dataset(root)
    assert case.edition == "verse19"


def test_thousands_of_files_are_indexed_quickly(tmp_path):
    make(tmp_path, *(f"images/c{i}.nii.gz" for i in range(2000)))
    make(tmp_path, *(f"labels/c{i}.nii.gz" for i in range(2000)))
    start = time.monotonic()
    assert len(verse.usable(verse.index_dataset(tmp_path))) == 2000
    assert (
        time.monotonic() - start < 10
    )  # 0.2 s on a free machine; quadratic matching takes minutes


def test_table_of_series_agrees_with_the_published_counts():
    # VerSe'19: 160 scans of 141 patients, hence 19 scans beyond the first. The second series of
    # verse412 is not in the table.
    extra = sum(len(series) - 1 for series in file_names.SERIES_OF_PATIENT.values())
    assert extra + 1 == 160 - 141
    series = [s for group in file_names.SERIES_OF_PATIENT.values() for s in group]
    assert len(set(series)) == len(series)


def test_real_folder_is_indexed(real_data):
    cases = by_id(real_data / "verse")
    assert [case.id for case in verse.usable(cases.values())] == ["sub-verse014"]
    assert cases["sub-verse014"].problems == ()
    assert cases["sub-verse014"].edition == "verse19"
    assert cases["sub-gl003_dir-ax"].edition == "verse20"
    assert cases["sub-verse004"].problems[0].startswith("no CT for derivatives")


# The training scans of the VerSe'20 challenge as the set-up files of Payer et al. (2020) name them.
VERSE20_TRAINING = """
GL003 GL016 GL047 GL090_CT-ax GL124_CT-ax GL240_CT-ax GL247 GL295_CT-ax GL364_CT-ax GL453_CT-ax
verse004 verse005 verse008 verse015 verse031 verse033 verse034 verse056 verse075 verse082_CT-iso
verse088 verse091 verse096 verse097 verse104_CT-iso verse111 verse112_CT-iso verse113 verse122
verse127 verse135 verse139 verse141 verse145 verse151 verse254 verse257 verse401_verse201_CT-iso
verse401_verse253_CT-iso verse402_verse202_CT-sag verse402_verse251_CT-sag verse403_verse208_CT-sag
verse403_verse255_CT-sag verse405_verse212_CT-sag verse405_verse258_CT-sag verse405_verse259_CT-sag
verse406_verse214_CT-sag verse406_verse261_CT-sag verse407_verse215_CT-sag verse407_verse262_CT-sag
verse408_verse223_CT-iso verse408_verse265_CT-iso verse409_verse226_CT-iso verse409_verse266_CT-iso
verse410_verse227_CT-iso verse410_verse267_CT-iso verse411_verse232_CT-iso verse411_verse270_CT-iso
verse413_verse239_CT-iso verse413_verse272_CT-iso verse415_verse243_CT-sag verse415_verse275_CT-sag
verse500 verse503 verse504 verse506_CT-iso verse507 verse510_CT-iso verse514 verse518
verse519_CT-iso verse521 verse525 verse527 verse532 verse533 verse534 verse535 verse536 verse537
verse539_CT-iso verse541 verse542_CT-iso verse544 verse557 verse561_CT-sag verse564_CT-iso
verse565_CT-iso verse577_CT-iso verse581_CT-iso verse584 verse586_CT-iso verse588_CT-sag
verse593_CT-sag verse594 verse596_CT-iso verse605_CT-sag verse619_CT-iso verse629_CT-iso
verse631_CT-sag verse641_CT-iso verse642_CT-sag verse646_CT-iso verse807_CT-iso verse808_CT-iso
verse811_CT-ax verse818_CT-iso verse820_CT-iso verse823_CT-iso verse824_CT-iso verse825_CT-iso
verse833_CT-ax verse835_CT-iso
""".split()


def test_whole_challenge_training_set_has_the_published_number_of_patients(tmp_path):
    for stem in VERSE20_TRAINING:
        slip = stem.replace("_CT-", "_CT_") if stem in ("GL124_CT-ax", "GL240_CT-ax") else stem
        make(tmp_path, f"{stem}.nii.gz", f"{stem}_seg.nii.gz", f"{slip}-iso-ctd.json")
    cases = verse.index_dataset(tmp_path)
    assert not any(case.problems for case in cases)
    assert {case.edition for case in cases} == {"verse20"}
    # Liebl et al. 2021: 113 scans of 100 patients.
    assert len(verse.usable(cases)) == 113
    assert len({case.subject for case in cases}) == 100

    # The scans that '19 has too, under '19's own names: the same scans of the same patients.
    for stem in VERSE20_TRAINING:
        if stem.startswith("verse") and int(stem[5:8]) < 450:
            series = file_names.verse_ids(stem)[-1]
            make(tmp_path, f"VerSe19/train/{series}.nii.gz", f"VerSe19/train/{series}_seg.nii.gz")
    cases = verse.index_dataset(tmp_path)
    assert len(cases) == 113 + 52
    assert len(verse.usable(cases)) == 113
    assert len({case.subject for case in cases}) == 100
    assert len({case.subject for case in cases if case.edition == "verse19"}) == 39


def test_index_does_not_depend_on_creation_order(tmp_path):
    names = [name for i in (3, 1, 2) for name in subject_based("verse19/test", f"sub-verse00{i}")]
    first = verse.index_dataset(make(tmp_path / "a" / "root", *names))
    second = verse.index_dataset(make(tmp_path / "b" / "root", *reversed(names)))
    assert [case.id for case in first] == [case.id for case in second]
    assert [case.subset for case in first] == ["test"] * 3


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    make(tmp_path, *subject_based(".", "sub-verse521"))
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("derivatives"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="derivatives: cannot be listed .*; check the rights"):
        verse.index_dataset(tmp_path)
