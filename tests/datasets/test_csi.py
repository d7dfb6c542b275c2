"""The CSI data of paper B as distributed: 15 MetaImage scans, masks in hundreds per vertebra.

File names as in code that reads the data: `case1.mhd`, `case1_label.mhd`, voxels in .raw beside.
"""

import numpy as np
import pytest
import SimpleITK as sitk

from spinejax import schema
from spinejax.cli import main
from spinejax.configs import common
from spinejax.data import cache
from spinejax.data.preprocess import SlicePreprocess
from spinejax.datasets import splits, verse
from spinejax.datasets.doctor import doctor
from spinejax.errors import InputError
from spinejax.io import nifti, scanfile
from spinejax.volume import Volume
from tests.support.nifti_files import tissue

AXIAL = SlicePreprocess(plane="axial", mode="resize", size=(16, 16))
SPACING = (0.5, 0.5, 1.0)  # exact in the float32 of NIfTI headers


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def files_of(case, part=""):
    """Names of a case's files as distributed."""
    return [f"{part}case{case}{kind}.{end}" for kind in ("", "_label") for end in ("mhd", "raw")]


def scan(seed):
    """HU and labels 100 and 200, (z, y, x): two bright boxes in noise."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(-100, 20, (12, 32, 32)).astype(np.int16)
    labels = np.zeros(hu.shape, np.uint16)
    top = int(rng.integers(6, 12))
    labels[2:6, top : top + 10, 8:24] = 100
    labels[7:11, top : top + 10, 8:24] = 200
    hu[labels > 0] += 500
    return hu, labels


def write(path, array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin((-8.0, 4.0, -300.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def csi(tmp_path_factory):
    """Four small cases, as distributed."""
    root = tmp_path_factory.mktemp("csi")
    for number in range(1, 5):
        hu, labels = scan(number)
        write(root / f"case{number}.mhd", hu)
        write(root / f"case{number}_label.mhd", labels)
    return root


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """The same four as NIfTI, in folders, with VerSe ids."""
    root = tmp_path_factory.mktemp("twins")
    for number in range(1, 5):
        hu, labels = scan(number)
        write(root / f"images/twin{number}.nii.gz", hu)
        write(root / f"labels/twin{number}.nii.gz", (labels // 100).astype(np.uint8))
    return root


LAYOUTS = {
    "one folder": lambda n: files_of(n),
    "a folder each": lambda n: files_of(n, f"case{n}/"),
    "two folders": lambda n: [f"images/case{n}.mhd", f"labels/case{n}_label.mhd"],
    "same names": lambda n: [f"images/case{n}.mha", f"labels/case{n}.mha"],
    "labeled": lambda n: [f"images/case{n}.mhd", f"labeled/case{n}-label.mhd"],
    "segmentations": lambda n: [f"case{n}.mhd", f"case{n}_seg.mha"],
    "masks": lambda n: [f"ct/case{n}.mhd", f"masks/case{n}_mask.mhd"],
    "converted": lambda n: [f"images/case{n}.nii.gz", f"labels/case{n}_label.nii.gz"],
    "half converted": lambda n: [f"case{n}.nii.gz", f"case{n}_label.mhd", f"case{n}_label.raw"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fifteen_cases_are_eight_two_and_five(tmp_path, layout):
    for number in range(1, 16):
        touch(tmp_path, *LAYOUTS[layout](number))
    cases = verse.index_dataset(tmp_path)
    assert sorted(case.id for case in cases) == sorted(f"case{n}" for n in range(1, 16))
    assert len({case.subject for case in cases}) == 15
    assert not any(case.problems for case in cases)
    assert {(case.subset, case.edition) for case in cases} == {(None, None)}
    for seed in range(5):
        split = splits.split_cases(
            verse.usable(cases), seed=seed, test_fraction=1 / 3, val_fraction=0.2
        )
        assert [len(split[name]) for name in ("train", "val", "test")] == [8, 2, 5]


@pytest.mark.parametrize(
    "folders",
    [("train", "test"), ("Training", "Testing"), ("CSI2014/training_set", "CSI2014/test_set")],
)
@pytest.mark.parametrize("restart", [False, True], ids=["numbered on", "numbered anew"])
def test_folders_named_train_and_test_are_the_official_split(tmp_path, folders, restart):
    train, test = folders
    for number in range(1, 11):
        touch(tmp_path, *files_of(number, f"{train}/"))
    for number in range(1, 6) if restart else range(11, 16):
        touch(tmp_path, f"{test}/images/case{number}.mhd", f"{test}/labels/case{number}.mhd")
    cases = verse.usable(verse.index_dataset(tmp_path))
    assert len(cases) == len({case.subject for case in cases}) == 15
    split = splits.split_cases(cases, test_fraction=0.9, val_fraction=0.2)
    assert [len(split[name]) for name in ("train", "val", "test")] == [8, 2, 5]
    assert all(test in str(case.image) for case in split["test"])


def test_scans_are_prepared_as_their_nifti_twins(csi, twins, tmp_path):
    for how in (AXIAL, SlicePreprocess(spacing_mm=0.75)):
        ours = cache.prepare(
            verse.usable(verse.index_dataset(csi)),
            how,
            tmp_path / "a",
            labels="binary",
        )
        others = cache.prepare(verse.usable(verse.index_dataset(twins)), how, tmp_path / "b")
        assert [case.id[-1] for case in ours] == [case.id[-1] for case in others] == list("1234")
        for one, other in zip(ours, others, strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(one.label, other.label > 0)
            assert set(np.unique(one.label)) == {0, 1} and set(np.unique(other.label)) == {0, 1, 2}
            assert one.foreground_counts.tolist() == other.foreground_counts.tolist()
            np.testing.assert_array_equal(one.stats, other.stats)
            assert one.spacing_mm == pytest.approx(other.spacing_mm)


def prepared(folder, root, **options):
    cases = verse.usable(verse.index_dataset(root))[:1]
    return cache.prepare(cases, AXIAL, folder, **options)[0]


def test_binary_labels_have_entries_of_their_own(twins, tmp_path):
    ids = prepared(tmp_path, twins)
    assert prepared(tmp_path, twins, labels="verse").path == ids.path
    binary = prepared(tmp_path, twins, labels="binary")
    assert binary.path != ids.path
    np.testing.assert_array_equal(binary.label, ids.label > 0)


def test_changed_voxels_are_noticed_although_the_header_stays(tmp_path):
    hu, labels = scan(0)
    write(tmp_path / "data/case1.mhd", hu)
    write(tmp_path / "data/case1_label.mhd", labels)
    before = prepared(tmp_path / "cache", tmp_path / "data", labels="binary")
    header = (tmp_path / "data/case1.mhd").read_bytes()
    hu[hu > 300] += 100
    write(tmp_path / "data/case1.mhd", hu)
    assert (tmp_path / "data/case1.mhd").read_bytes() == header
    after = prepared(tmp_path / "cache", tmp_path / "data", labels="binary")
    assert after.path != before.path and after.image.max() > before.image.max()


def test_numbers_that_are_no_ids_are_refused_with_the_remedy(csi, tmp_path):
    with pytest.raises(InputError, match=r"label 100, 200 is out of range.*=binary") as error:
        prepared(tmp_path, csi)
    assert "\n" not in str(error.value) and "case1_label.mhd" in str(error.value)
    with pytest.raises(InputError, match="data.labels = 'both' is unknown"):
        prepared(tmp_path, csi, labels="both")


def test_the_config_knows_what_labels_there_are():
    config = common.base("x", {"name": "unet"})
    assert config.data.labels == "verse"
    config.data.labels = "binry"
    with pytest.raises(InputError, match="did you mean 'binary'"):
        schema.check(config)


def test_doctor_sums_up_masks_of_other_numbers(csi):
    report = doctor(csi)
    assert report.problems == []
    text = "\n".join(report.lines)
    assert "4 listed, of 4 patients; 4 usable" in text
    assert "4 have numbers that are no VerSe ids (first: case1_label.mhd)" in text
    assert "data.labels=binary" in text
    assert "VerSe'" not in text and "scans with each vertebra" not in text


def test_doctor_takes_masks_of_ones_for_binary_and_names_the_bad_ones(tmp_path):
    volume = Volume(tissue((6, 7, 8)), np.diag([-1.0, -1.0, 1.0, 1.0]))
    for number, value in enumerate((1, 255, 0, 20)):
        array = np.zeros(volume.shape, np.uint8)
        array[2:4, 2:4, 2:4] = value
        scan = Volume(tissue(volume.shape, number + 1), volume.affine)
        nifti.write_volume(tmp_path / f"images/c{number}.nii.gz", scan)
        nifti.write_labels(tmp_path / f"labels/c{number}.nii.gz", array, volume)
    write(tmp_path / "images/c4.mhd", tissue((8, 7, 6)))
    write(tmp_path / "labels/c4.mhd", np.ones((8, 7, 6), np.uint8))
    (tmp_path / "labels/c4.raw").write_bytes(b"1")
    report = doctor(tmp_path)
    assert "2 have numbers that are no VerSe ids (first: c0.nii.gz)" in "\n".join(report.lines)
    assert "C1 0" in "\n".join(report.lines) and "L1 1" in "\n".join(report.lines)
    empty, damaged = report.problems
    assert empty == "c2: labels/c2.nii.gz is empty"
    assert damaged.startswith(f"c4: {tmp_path / 'labels/c4.raw'}: ")


def test_from_metaimage_to_scores_and_a_prediction(csi, twins, tmp_path, capsys):
    """Every command reads the CSI data, and predicts a scan as it does its NIfTI twin."""
    workdir = tmp_path / "run"
    tiny = (
        "--config.data.labels=binary",
        "--config.data.split=ratio",
        "--config.data.plane=axial",
        "--config.data.size=(32, 32)",
        "--config.data.preprocess.spacing_mm=0.5",
        "--config.model.widths=(4, 8)",
        "--config.train.steps=12",
        "--config.optim.learning_rate=0.05",
        "--config.train.batch_size=2",
        "--config.augment.geometry=false",
        "--config.augment.intensity=false",
        "--config.predict.min_component_ml=0.0",
    )
    config = f"--config={common.__file__.replace('common', 'unet')}"
    train = ["train", config, f"--config.data.root={csi}", f"--workdir={workdir}", *tiny]
    assert main(train) == 0
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    assert main(["report", f"--workdir={workdir}"]) == 0
    both, out = tmp_path / "both", tmp_path / "out"
    both.mkdir()
    (both / "csi").symlink_to(csi)
    (both / "twins").symlink_to(twins)
    predict = ["predict", f"--workdir={workdir}", f"--input={both}", f"--reference={csi}"]
    assert main([*predict, f"--output={out}"]) == 0
    for number in range(1, 5):
        ours, other = (
            scanfile.read_labels(out / f"{name}{number}_seg.nii.gz") for name in ("case", "twin")
        )
        np.testing.assert_array_equal(ours.array, other.array)
        assert 0 < ours.array.sum() < ours.array.size
        volume = scanfile.read_volume(csi / f"case{number}.mhd")
        np.testing.assert_allclose(ours.affine, volume.affine, atol=1e-4)
    output = tmp_path / "scores.json"
    score = ["score", f"--prediction={out}", f"--reference={csi}", f"--output={output}"]
    score.append("--labels=binary")
    assert main(score) == 0
    assert "No picture" not in (workdir / "report.html").read_text()
    assert "Traceback" not in capsys.readouterr().err
