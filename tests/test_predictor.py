"""Two runs as one pipeline, from the command line: what it writes, and which runs do not fit."""

import csv
import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import spinejax
from spinejax import geometry, labels, morphometry, predictor
from spinejax.cli import main
from spinejax.configs import cascade
from spinejax.data import preprocess
from spinejax.data.preprocess import preprocess_slabs
from spinejax.errors import InputError
from spinejax.evaluation import results_folder
from spinejax.inference.instances import Instance, Instances
from spinejax.inference.pieces import VOLUME_ML
from spinejax.inference.sequence import Calibration, Naming, Record, label_instances
from spinejax.io.centroid_json import read_centroids
from spinejax.io.scanfile import read_labels, read_volume
from spinejax.predictor import Segmentation, as_volume
from spinejax.reports.run import read_run
from spinejax.tasks import build_task
from spinejax.volume import Volume
from tests.support import pipeline_run
from tests.support.cli_runs import fails
from tests.support.networks import quick_jit
from tests.support.nifti_files import tissue
from tests.support.pipeline_run import AFFINE, IDS, pipeline_config, second_config
from tests.support.tiny_run import tiny_config, write_scans


@pytest.fixture(scope="module")
def scans(block_scans, tmp_path_factory):
    return shutil.copytree(block_scans, tmp_path_factory.mktemp("data") / "scans")


@pytest.fixture(scope="module")
def run(block_pipeline, tmp_path_factory):
    """A pipeline, trained in one folder."""
    return shutil.copytree(block_pipeline, tmp_path_factory.mktemp("runs") / "pipeline")


@pytest.fixture(scope="module")
def alone(scans, tmp_path_factory):
    """A run that names vertebrae without any mask."""
    workdir = tmp_path_factory.mktemp("alone")
    spinejax.train(second_config(scans, "crop"), workdir)
    return workdir


def naming(names, probability):
    return Naming(tuple(labels.id_of(name) for name in names.split()), probability)


def record(names, **changes):
    ids = tuple(labels.id_of(name) for name in names.split())
    fields = dict(
        labels=ids, cost=1.0, margin=5.0, margins=(5.0,) * len(ids), others=(0,) * len(ids),
        probabilities=(0.99,) * len(ids), namings=(Naming(ids, 0.99),),
        variants={"T13": 0.8, "L6": 0.01}, calibration=Calibration(0.5, 0.01), anomalies=(),
        skipped=(), cut=(), dropped=(), unnamed=0, reversed=False,
    )  # fmt: skip
    return Record(**fields | changes)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (None, "no vertebra found, the labels are empty"),
        (record("L1 L2 L3 L4 L5"), "L1-L5 written"),
        (record("T9"), "T9 written"),
        (
            record("T11 T12 L1 L2", cut=(18, 19), dropped=(18, 19)),
            "L1-L2 written; T11, T12 cut by the scan's edge and left out",
        ),
        (record("L1", cut=(20,), dropped=(20,)), "nothing written; L1 cut by the scan's edge and "
         "left out"),
        (record("T12 L1 L2", cut=(19,)), "T12-L2 written; T12 cut by the scan's edge"),
        (record("T12 L2", skipped=(20,)), "T12-L2 written; L1 not found"),
        (
            record("T12 T13 L1", anomalies=("T13",), unnamed=2),
            "T12-L1 written; variant of the spine: T13 (0.80); 2 pieces left out, which are no "
            "vertebrae",
        ),
        (
            record(
                "L1 L2 L3", probabilities=(0.99, 0.58, 0.57),
                namings=(naming("L1 L2 L3", 0.551), naming("L2 L3 L4", 0.4),
                         naming("T12 L1 L2", 0.03)),
            ),
            "L1-L3 written; numbering uncertain: L1-L3 (0.55) or L2-L4 (0.40)",
        ),
        (
            record(
                "T11 T12 L1", probabilities=(0.97, 0.97, 0.97),
                namings=(naming("T11 T12 L1", 0.6), naming("T11 T12 T13", 0.2),
                         naming("T10 T11 L1", 0.1), naming("T9 T10 T12", 0.06)),
            ),
            "T11-L1 written; numbering uncertain: T11-L1 (0.60) or T11-T12, T13 (0.20) or "
            "T10-T11, L1 (0.10)",
        ),
        (
            record(
                "L1 L2", probabilities=(0.96, 0.96),
                namings=(naming("L1 L2", 0.958), naming("T12 L1", 0.034)),
            ),
            "L1-L2 written; numbering uncertain: L1-L2 (0.96) or T12-L1 (0.03)",
        ),
        (record("T12 L1", unnamed=1), "T12-L1 written; 1 piece left out, which is no vertebra"),
    ],
)  # fmt: skip
def test_one_line_says_what_was_written(found, text):
    volume = Volume(np.zeros((4, 5, 6), np.int16), AFFINE)
    mask = np.zeros(volume.shape, np.uint8)
    assert Segmentation(mask, volume, "case", True, {}, found).summary() == text


def test_without_a_landmark_the_numbering_is_uncertain(tmp_path):
    """Three bodies look like L1, L2, L3 as much as like L2, L3, L4; line and record say both."""
    low, high = ([labels.VERSE_IDS.index(i) for i in ids] for ids in ((20, 21, 22), (21, 22, 23)))
    items = []
    array = np.zeros((20, 20, 60), np.uint8)
    for number, (one, other) in enumerate(zip(low, high, strict=True)):
        z = 50 - 18 * number
        array[4:16, 4:16, z - 5 : z + 5] = number + 1
        counts = np.zeros(26)
        counts[[one, other]] = 500
        volume = float(VOLUME_ML[low].mean())
        items.append(Instance(np.array([20.0, 20.0, 2.0 * z]), volume, counts, False, False))
    spine = Instances(array, tuple(items), (2.0,) * 3, (0.0, 0.0))
    named = label_instances(spine, calibration=Calibration(0.7, 0.05))
    volume = Volume(np.zeros(array.shape, np.int16), AFFINE)
    centroids = {label: point / 2.0 for label, point in named.centroids_mm.items()}
    found = Segmentation(named.array, volume, "case", True, centroids, named.record)
    words = re.search(r"numbering uncertain: (L.-L.) \((.*?)\) or (L.-L.) \((.*?)\)", str(found))
    assert words and {words[1], words[3]} == {"L1-L3", "L2-L4"}
    assert float(words[2]) == pytest.approx(float(words[4]), abs=0.2)
    found.save(tmp_path, picture=False, page=False)
    written = json.loads((tmp_path / "case.json").read_text())
    assert not written["certain"] and written["calibrated"]
    names = [one["names"] for one in written["namings"][:2]]
    assert sorted(names) == [["L1", "L2", "L3"], ["L2", "L3", "L4"]]
    assert all(one["probability"] < 0.7 for one in written["vertebrae"])


def two_bodies(name="case", ids=(20, 21), **changes):
    """A segmentation of two boxes."""
    mask = np.zeros((20, 20, 60), np.uint8)
    mask[4:16, 4:16, 40:50], mask[4:16, 4:16, 12:22] = ids
    volume = Volume(np.full(mask.shape, 100, np.int16), AFFINE)
    points = {ids[0]: np.array([9.5, 9.5, 44.5]), ids[1]: np.array([9.5, 9.5, 16.5])}
    names = " ".join(labels.name(i) for i in ids)
    return Segmentation(volume.to_canonical(mask), volume, name, True, points,
                        record(names, **changes))  # fmt: skip


def test_the_table_has_a_row_for_each_vertebra_of_all_records(tmp_path):
    two_bodies("b", others=(21, 0)).save(tmp_path, picture=False)
    two_bodies('a, "x"').save(tmp_path, picture=False)
    two_bodies("changed").save(tmp_path, picture=False)
    (tmp_path / "changed.json").write_text("{}")
    (tmp_path / "other.json").write_text("not ours")
    path = predictor.write_table(tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["name"]) for row in rows] == [
        ('a, "x"', "L1"), ('a, "x"', "L2"), ("b", "L1"), ("b", "L2")
    ]  # fmt: skip
    assert [row["next_name"] for row in rows[2:]] == ["L2", ""]
    assert all(float(row["volume_ml"]) == pytest.approx(12 * 12 * 10 * 8e-3) for row in rows)
    two_bodies("c").save(tmp_path, picture=False)
    assert predictor.write_table(tmp_path).read_text().count("\n") == 1 + 6


def test_a_table_of_somebody_else_stays(tmp_path):
    two_bodies().save(tmp_path, picture=False)
    (tmp_path / predictor.TABLE).write_text("mine")
    with pytest.raises(InputError, match="did not write this file"):
        predictor.write_table(tmp_path)
    assert (tmp_path / predictor.TABLE).read_text() == "mine"
    predictor.write_table(tmp_path, overwrite=True)
    assert (tmp_path / predictor.TABLE).read_text().startswith("case,name,")


def test_a_vertebra_that_was_left_out_has_no_measures_in_the_record(tmp_path):
    found = two_bodies(cut=(20,), dropped=(20,))
    del found.centroids[20]
    found.mask[found.mask == 20] = 0
    found.save(tmp_path, picture=False)
    first, second = json.loads((tmp_path / "case.json").read_text())["vertebrae"]
    assert first["cut"] and not first["written"] and first["centre_mm"] is None
    assert first["volume_ml"] is None
    assert set(first["not_measured"].values()) == {"left out of the labels"}
    assert second["volume_ml"] is not None and "volume_ml" not in second["not_measured"]


def test_the_digest_of_the_input_is_that_of_voxels_and_grid():
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    digests = set()
    for code in ("LPS", "RAS", "PIR"):
        turned, affine = geometry.reorient(array, AFFINE, code)
        scan = Volume(np.ascontiguousarray(turned), affine)
        digests.add(Segmentation(np.zeros(scan.shape, np.uint8), scan, "x")._record()["input"])
    assert len(digests) == 1
    array[2, 3, 4] += 1
    moved = AFFINE.copy()
    moved[0, 3] += 1
    for scan in (Volume(array, AFFINE), Volume(array, moved)):
        digests.add(Segmentation(np.zeros(scan.shape, np.uint8), scan, "x")._record()["input"])
    assert len(digests) == 3


def test_the_digest_of_the_input_does_not_depend_on_the_number_type_of_the_file(tmp_path):
    array = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7))
    digests = set()
    for kind in (np.int16, np.int32, np.float32, np.float64):
        path = tmp_path / f"{np.dtype(kind)}.nii.gz"
        nib.save(nib.Nifti1Image(array.astype(kind), AFFINE, dtype=kind), path)
        scan = read_volume(path)
        digests.add(Segmentation(np.zeros(scan.shape, np.uint8), scan, "x")._record()["input"])
    assert len(digests) == 1


def test_the_line_of_a_mask_without_names_gives_its_volume():
    volume = Volume(np.zeros((50, 50, 50), np.int16), AFFINE)
    mask = np.zeros(volume.shape, np.uint8)
    assert Segmentation(mask, volume, "case").summary() == "no spine found, the labels are empty"
    mask[:25] = 1
    found = Segmentation(mask, volume, "case")
    assert found.summary() == "500 ml of spine written"
    assert repr(found) == "<Segmentation of case: 500 ml of spine written>"


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64, np.uint8])
def test_a_file_an_image_and_an_array_are_the_same_scan(dtype, tmp_path):
    affine = np.array([[0, -0.7, 0, 3], [0.1, 0, 2.5, -9], [0.6, 0, 0.2, 40], [0, 0, 0, 1]])
    array = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(dtype)
    if dtype == np.float32:
        array[0, 0, :3] = np.nan, np.inf, -3000.0
    path = tmp_path / "case_ct.nii.gz"
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = b"of the scanner"
    image.set_qform(affine, 1)
    nib.save(image, path)
    read = as_volume(path)
    for given in (nib.load(path), image, nib.Nifti2Image(array, affine)):
        volume = as_volume(given)
        np.testing.assert_array_equal(volume.native, read.native)
        assert volume.array.dtype == read.array.dtype
        np.testing.assert_allclose(volume.affine, read.affine, atol=1e-5)
    for given in (array, np.asfortranarray(array), array[::-1].copy()[::-1]):
        volume = as_volume(given, affine)
        np.testing.assert_array_equal(volume.native, read.native)
    labels_ = (array > 100).astype(np.uint8)
    for name, given in (("file", path), ("image", nib.load(path))):
        volume = as_volume(given)
        found = Segmentation(volume.to_canonical(labels_), volume, name)
        assert found.save(tmp_path / "out", picture=False, page=False) == (
            tmp_path / "out" / f"{name}_seg.nii.gz",
        )
        np.testing.assert_array_equal(found.labels, labels_)
    one, other = (nib.load(tmp_path / "out" / f"{n}_seg.nii.gz") for n in ("file", "image"))
    assert one.header.binaryblock == other.header.binaryblock
    np.testing.assert_array_equal(np.asarray(other.dataobj), labels_)


@pytest.mark.parametrize(
    ("scan", "affine", "words"),
    [
        (np.zeros((4, 5, 6)), None, "give affine="),
        (np.zeros((4, 5)), AFFINE, "float64 of shape"),
        (np.zeros((4, 5, 6), bool), AFFINE, "bool of shape"),
        (np.zeros((4, 5, 6)), np.zeros((4, 4)), "affine is unusable"),
        (np.full((4, 5, 6), np.nan), AFFINE, "no voxel is a finite number"),
        ("scan.nii.gz", AFFINE, "belongs to an array"),
        ("nowhere.nii.gz", None, "nowhere.nii.gz"),
        (7, None, "int is no scan"),
        (nib.Nifti1Image(np.zeros((3, 3, 3, 2), np.int16), AFFINE), None, "holds 2 volumes"),
    ],
)
def test_what_is_no_scan_is_refused_in_one_line(scan, affine, words):
    with pytest.raises(InputError, match=words) as caught:
        as_volume(scan, affine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((4, 5, 6), np.nan, np.float32), "NaN or infinite"),
        (np.where(np.arange(120).reshape(4, 5, 6) == 7, np.inf, 0), "NaN or infinite"),
        (np.zeros((0, 5, 6), np.int16), "is no scan"),
        (np.zeros((4, 5, 6, 2), np.int16), "is no scan"),
        (np.zeros((4, 5, 6), complex), "is no scan"),
    ],
)
def test_a_volume_without_finite_numbers_is_refused(array, words):
    with pytest.raises(InputError, match=words):
        as_volume(Volume(array, np.diag([-1.0, -1, 1, 1])))


def test_labels_are_saved_for_slicer_too(tmp_path):
    volume = Volume(np.zeros((4, 5, 6), np.int16), np.diag([-1.0, -1, 1, 1]))
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1:3, 2, 4], mask[1, 2, 1] = 19, 20
    for named, names in ((True, ("T12", "L1")), (False, ("spine",))):
        found = Segmentation(mask if named else (mask > 0).view(np.uint8), volume, "a", named)
        paths = found.save(tmp_path / str(named), picture=False, page=False, formats=["seg.nrrd"])
        assert paths[-1].name == "a.seg.nrrd"
        header = paths[-1].read_bytes().partition(b"\n\n")[0].decode()
        assert tuple(re.findall(r"Segment\d_Name:=(.*)", header)) == names
        (extension,) = nib.load(paths[0]).header.extensions
        assert re.findall(rb">([^<>]+)</Label>", extension.get_content())[0].decode() == names[0]
    with pytest.raises(InputError, match="formats = 'nrrd' is unknown"):
        found.save(tmp_path, picture=False, formats=["nrrd"])


@pytest.mark.parametrize("name", ["", "/abs", "a/b", "../x", "a\0b", 3])
def test_a_name_does_not_lead_out_of_the_folder(name, tmp_path):
    volume = Volume(np.zeros((4, 5, 6), np.int16), np.diag([-1.0, -1, 1, 1]))
    found = Segmentation(np.zeros((4, 5, 6), np.uint8), volume, "scan")
    with pytest.raises(InputError, match="cannot name files"):
        found.save(tmp_path / "out", name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("runs", "more", "words"),
    [
        ([], {}, "is no run"),
        (None, {}, "None is no run"),
        ([None], {}, "None is no path"),
        ("nowhere", {"checkpoint": "newest"}, "checkpoint = 'newest' is unknown"),
        ("nowhere", {}, "nowhere is not the folder of a run"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(runs, more, words):
    with pytest.raises(InputError, match=words):
        predictor.load(runs, **more)


def case_of(run):
    return json.loads((run / "run.json").read_text())["cases"]["test"][0]


def test_predict_writes_labels_centroids_and_a_picture(scans, run, tmp_path, capsys):
    case = case_of(run)
    ct = scans / "images" / f"{case}.nii.gz"
    truth = np.asarray(nib.load(scans / "labels" / f"{case}.nii.gz").dataobj)
    assert main(["predict", f"--workdir={run}", f"--input={ct}", f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "T12-L2 written" in printed and " s, " in printed and " GB" in printed
    image = nib.load(tmp_path / f"{case}_seg.nii.gz")
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, AFFINE)
    labels = np.asarray(image.dataobj)
    assert (labels == truth)[truth > 0].mean() > 0.9
    points = read_centroids(tmp_path / f"{case}_ctd.json", read_volume(ct))
    assert tuple(points) == IDS
    for label, point in points.items():
        assert np.linalg.norm((point - np.argwhere(truth == label).mean(0)) * 2.0) < 4.0
    markups = json.loads((tmp_path / f"{case}_ctd.mrk.json").read_text())["markups"][0]
    assert [p["label"] for p in markups["controlPoints"]] == ["T12", "L1", "L2"]
    found = json.loads((tmp_path / f"{case}.json").read_text())
    assert found["case"] == case and found["spinejax"] == spinejax.__version__
    assert found["model"] == spinejax.load(run).digest and not found["calibrated"]
    assert [one["name"] for one in found["vertebrae"]] == ["T12", "L1", "L2"]
    assert all(0 <= one["probability"] <= 1 and one["written"] for one in found["vertebrae"])
    assert found["summary"].startswith("T12-L2 written") and found["warnings"] == []
    assert found["peak_gb"] > 0 and found["versions"]["numpy"] == np.__version__
    for one in found["vertebrae"]:
        point = points[one["id"]]
        np.testing.assert_allclose(one["centre_voxel"], point, atol=0.006)
        np.testing.assert_allclose(one["centre_mm"], (AFFINE @ [*point, 1])[:3], atol=0.02)
        absent = {name for name in morphometry.NUMBERS if one[name] is None}
        assert absent == set(one["not_measured"])
        if one["volume_ml"] is not None:
            assert one["volume_ml"] == pytest.approx((labels == one["id"]).sum() * 8e-3, abs=0.01)
    assert set(found["cobb_angles"]) == {"coronal", *morphometry.SAGITTAL_ANGLES}
    text = (Path(__file__).parents[1] / "docs" / "record.md").read_text("utf-8")
    sections = {part.split("\n")[0]: part for part in text.split("\n## ")}
    for title, one in (
        ("The scan", found),
        ("A vertebra", found["vertebrae"][0]),
        ("The Cobb angles", found["cobb_angles"]),
    ):
        cells = re.findall(r"^\| (`.+?) \|", sections[title], re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", " ".join(cells))) == set(one), title
    for one in found["cobb_angles"].values():
        assert set(one) == {"cobb_deg", "upper", "lower", "not_measured"}
    rows = list(csv.DictReader((tmp_path / "vertebrae.csv").open()))
    assert [(row["case"], row["name"]) for row in rows] == [(case, n) for n in ("T12", "L1", "L2")]
    assert float(rows[0]["probability"]) == found["vertebrae"][0]["probability"]
    assert printed.splitlines()[-1] == str(tmp_path / "vertebrae.csv")
    assert found["namings"][0]["names"] == ["T12", "L1", "L2"]
    assert set(found["variants"]) == {"T13", "L6", "no T12", "no L5"}
    assert (tmp_path / f"{case}_quicklook.png").stat().st_size > 10_000
    page = (tmp_path / f"{case}.html").read_text("utf-8")
    assert "T12 to L2, 3 vertebrae" in page and 'data-name="L1"' in page


def test_evaluate_and_report_say_who_is_named_right(run, capsys):
    assert main(["evaluate", f"--workdir={run}", "--checkpoint=latest"]) == 0
    assert "id.rate" in capsys.readouterr().out
    scores = json.loads((run / "evaluation" / "test" / "scores.json").read_text())
    assert scores["summary"]["vertebrae"]["id_rate"] == 1.0
    assert scores["summary"]["vertebrae"]["dice_mean"] > 0.9
    assert main(["report", f"--workdir={run}"]) == 0
    html = (run / "report.html").read_text()
    assert "Names of the vertebrae" in html and "every vertebra right in 1" in html
    by_scan = html.split("By scan")[1].split("</table>")[0]
    assert all(f'<th scope="row">{case}</th>' in by_scan for case in scores["cases"])
    assert "Second network" in html and "Training of the second network" in html


def test_references_in_the_numbers_of_another_program(scans, run, tmp_path):
    """They are read, scored and reported as VerSe ids; without the name the error gives it."""
    case = case_of(run)
    image = nib.load(scans / "labels" / f"{case}.nii.gz")
    verse = np.asarray(image.dataobj)
    total = np.zeros_like(verse)
    for label, number in zip(IDS, (32, 31, 30), strict=True):  # T12, L1, L2
        total[verse == label] = number
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    shutil.copy(scans / "images" / f"{case}.nii.gz", tmp_path / "images")
    nib.save(nib.Nifti1Image(total, image.affine), tmp_path / "labels" / f"{case}.nii.gz")
    options = {"data": tmp_path, "checkpoint": "latest"}
    with pytest.raises(InputError, match="--labels=totalsegmentator of score, evaluate"):
        spinejax.evaluate(run, **options)
    scores = spinejax.evaluate(run, labels="totalsegmentator", **options)
    assert scores["summary"]["vertebrae"]["id_rate"] == 1.0
    found = read_run(run).read_case(case, results_folder(run, data=tmp_path).name)[1]
    truth = read_labels(scans / "labels" / f"{case}.nii.gz").array
    np.testing.assert_array_equal(found["labels"], truth)
    assert set(np.unique(found["prediction"])) == {0, *IDS}


def test_an_interrupted_evaluation_continues_with_the_next_scan(run, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="spinejax")
    scans = pipeline_run.write_scans(tmp_path / "three", cases=3)
    folder = results_folder(run, data=scans)
    names = ("scores.json", "slices.json", "cases.json")
    load, segmented = predictor.load, []

    def evaluate():
        caplog.clear()
        return spinejax.evaluate(run, data=scans, checkpoint="latest")

    def at_most(count):
        def loaded(*args, **options):
            model = load(*args, **options)

            def segment(volume, name, progress):
                if len(segmented) == count:
                    raise KeyboardInterrupt
                segmented.append(volume.disk.path.name)
                return model._segment(volume, name, progress)

            return replace(model, _segment=segment)

        monkeypatch.setattr(predictor, "load", loaded)
        segmented.clear()

    evaluate()
    undisturbed = [(folder / name).read_bytes() for name in names]
    at_most(2)
    with pytest.raises(KeyboardInterrupt):
        evaluate()
    at_most(9)
    evaluate()
    assert len(segmented) == 1
    assert caplog.text.count("predicted earlier") == 2
    assert [(folder / name).read_bytes() for name in names] == undisturbed
    at_most(2)
    with pytest.raises(KeyboardInterrupt):
        evaluate()
    image = sorted((scans / "images").iterdir())[0]
    image.touch()  # another scan may have taken its place
    at_most(9)
    evaluate()
    assert len(segmented) == 2 and image.name in segmented
    at_most(9)
    evaluate()
    assert len(segmented) == 3  # nothing is left of an interruption


def test_a_pipeline_resumes_with_moved_data_and_other_ways_to_predict(scans, run, tmp_path):
    moved = shutil.copytree(scans, tmp_path / "moved")
    again = shutil.copytree(run, tmp_path / "run")
    config = pipeline_config(moved)
    config.vertebrae.predict.overlap = 0.25

    result = spinejax.train(config, again)
    assert result.state is None and not result.interrupted  # both were finished before
    config.vertebrae.optim.learning_rate = 0.5
    with pytest.raises(InputError, match="vertebrae.optim.learning_rate"):
        spinejax.train(config, again)


def test_both_data_sets_of_a_pipeline_are_prepared(scans, tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text(
        "from pathlib import Path\n\nfrom tests.support.pipeline_run import pipeline_config\n\n\n"
        f"def get_config(arg=None):\n    return pipeline_config(Path({str(scans)!r}))\n"
    )
    assert main(["prepare", f"--config={file}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert capsys.readouterr().out.count("train ") == 2
    assert (tmp_path / "run" / "vertebrae" / "cache").is_dir()


def test_two_runs_that_were_trained_apart_are_joined(scans, run, alone, tmp_path, capsys):
    """The second is that of --vertebrae, not the folder's own."""
    first = tmp_path / "first"
    shutil.copytree(run, first, ignore=shutil.ignore_patterns("vertebrae", "evaluation"))
    ct = scans / "images" / "case0.nii.gz"
    arguments = ["predict", f"--workdir={first}", f"--input={ct}", f"--output={tmp_path / 'out'}"]
    assert main(arguments) == 0
    assert "ml of spine" in capsys.readouterr().out
    assert main([*arguments, f"--vertebrae={alone}"]) == 0
    assert "T12-L2 written" in capsys.readouterr().out


def test_second_networks_are_averaged_if_they_see_the_same(scans, run, tmp_path, capsys):
    """How masks were worn in training may differ; the size of the cubes may not."""
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    names = tmp_path / "run" / "vertebrae"

    def changed(name, **fields):
        shutil.copytree(names, tmp_path / name)
        config = json.loads((names / "config.json").read_text())
        config["data"]["cube"] |= fields
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return tmp_path / name

    def scores(*seconds):
        words = [f"--vertebrae={second}" for second in seconds]
        assert main(["evaluate", f"--workdir={tmp_path / 'run'}", *words]) == 0
        return (tmp_path / "run" / "evaluation" / "test" / "scores.json").read_text()

    assert scores(names) == scores(names, changed("other", prior_sacrum=0.1))
    capsys.readouterr()
    words = [f"--vertebrae={second}" for second in (names, changed("large", size=[32, 32, 32]))]
    fails(capsys, ["evaluate", f"--workdir={tmp_path / 'run'}", *words], "data.cube.size is [")


def test_a_run_of_cubes_works_alone(scans, alone, tmp_path, capsys):
    ct = scans / "images" / "case0.nii.gz"
    arguments = ["predict", f"--workdir={alone}", f"--input={ct}", f"--output={tmp_path}"]
    assert main(arguments) == 0
    assert "T12-L2 written" in capsys.readouterr().out


def test_a_scan_without_spine_gives_empty_labels_and_a_clear_line(run, tmp_path, capsys):
    path = tmp_path / "air_ct.nii.gz"
    air = np.random.default_rng(0).normal(-1000, 20, (20, 30, 40)).astype(np.int16)
    nib.save(nib.Nifti1Image(air, AFFINE), path)
    out = tmp_path / "out"
    assert main(["predict", f"--workdir={run}", f"--input={path}", f"--output={out}"]) == 0
    said = capsys.readouterr()
    assert "no vertebra found, the labels are empty" in said.out
    assert said.err.count("it shows nothing but air") == 1
    (labels,) = out.glob("*_seg.nii.gz")
    assert not np.asarray(nib.load(labels).dataobj).any()
    (points,) = out.glob("*_ctd.json")
    assert json.loads(points.read_text()) == [{"direction": ["L", "P", "S"]}]


@pytest.mark.parametrize("shape", [(1, 40, 48), (24, 1, 48), (24, 40, 1)])
def test_scans_one_slice_thick(shape, run, tmp_path, capsys):
    path = tmp_path / "thin_ct.nii.gz"
    rng = np.random.default_rng(0)
    array = rng.integers(-100, 600, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    status = main(["predict", f"--workdir={run}", f"--input={path}", f"--output={tmp_path / 'o'}"])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    if status:  # smaller than the network's stride: said in one line
        assert "give a larger scan" in printed.err
    else:
        (labels,) = (tmp_path / "o").glob("*_seg.nii.gz")
        assert nib.load(labels).shape == shape


def test_a_run_that_sees_neighbours_predicts_slice_by_slice(tmp_path, capsys):
    """Against the network on one slice after another; a single slice has no neighbours."""
    scans = write_scans(tmp_path / "scans")
    runs = [tmp_path / "wide", tmp_path / "plain"]
    for neighbours, workdir in zip((1, 0), runs, strict=True):
        changes = {"data.neighbours": neighbours, "predict.min_component_ml": 0}
        spinejax.train(tiny_config(scans, **changes), workdir)
    model = spinejax.load(runs[0], checkpoint="latest")
    path = scans / "images" / "case0.nii.gz"
    volume = read_volume(path)
    ((_, slices, _),) = preprocess_slabs(volume, preprocess.from_config(model.config.data))
    padded = np.pad(slices, ((1, 1), (0, 0), (0, 0)), "edge")
    apply = quick_jit(build_task(model.config).model.apply)
    expected = []
    for i in range(len(slices)):  # hu: thousands of HU
        x = np.moveaxis(padded[i : i + 3], 0, -1)[None] / np.float32(1000)
        logits, _ = apply(dict(model.variables), x)
        expected.append(np.asarray(logits[0, ..., 0]) >= 0)
    found = model.segment(path).labels > 0
    assert 0.01 < found.mean() < 0.99
    assert (found == np.stack(expected)).mean() > 0.9999  # but for rounding at the threshold
    with pytest.raises(InputError, match="cannot be averaged .* data.neighbours is 0 there and 1"):
        spinejax.load(runs)
    thin = tmp_path / "thin_ct.nii.gz"
    array = np.random.default_rng(0).integers(-100, 600, (1, 32, 32)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, volume.affine), thin)
    words = (str(thin), "single sagittal slice", "data.neighbours")
    predict = ["predict", f"--input={thin}", f"--output={tmp_path / 'out'}"]
    fails(capsys, [*predict, f"--workdir={runs[0]}"], *words)
    assert main([*predict, f"--workdir={runs[1]}"]) == 0


def test_mirrored_and_upside_down_headers_are_followed(scans, run, tmp_path):
    """The same body, stored with other axes, gives the same labels of the same places."""
    case = case_of(run)
    ct = nib.load(scans / "images" / f"{case}.nii.gz")
    array = np.asarray(ct.dataobj)
    flipped = AFFINE.copy()
    flipped[2, 2] *= -1
    flipped[2, 3] = AFFINE[2, 2] * (array.shape[2] - 1)
    nib.save(nib.Nifti1Image(array[:, :, ::-1], flipped), tmp_path / "turned_ct.nii.gz")
    model = spinejax.load(run, checkpoint="latest")
    one = model.segment(scans / "images" / f"{case}.nii.gz")
    other = model.segment(tmp_path / "turned_ct.nii.gz")
    assert (one.labels == other.labels[:, :, ::-1]).mean() > 0.999
    for here, there in zip(one.vertebrae, other.vertebrae, strict=True):
        assert here.name == there.name
        np.testing.assert_allclose(here.centroid_mm, there.centroid_mm, atol=0.5)
        np.testing.assert_allclose(
            here.centroid, there.centroid * (1, 1, -1) + (0, 0, array.shape[2] - 1), atol=0.5
        )


def test_exchanged_and_unfit_runs_are_refused(scans, run, alone, tmp_path, capsys):
    out = tmp_path / "out"
    ct = scans / "images" / "case0.nii.gz"
    rest = [f"--input={ct}", f"--output={out}"]
    words = ("exchange", "--vertebrae")
    fails(capsys, ["predict", f"--workdir={alone}", f"--vertebrae={run}", *rest], *words)
    words = ("slice_segmentation", "give one that names vertebrae")
    fails(capsys, ["predict", f"--workdir={run}", f"--vertebrae={run}", *rest], *words)
    second = run / "vertebrae"
    words = ("needs the mask of an earlier one", f"--vertebrae={second}")
    fails(capsys, ["predict", f"--workdir={second}", *rest], *words)
    fails(capsys, ["evaluate", f"--workdir={run}", f"--vertebrae={tmp_path / 'no'}"], "no")
    assert not out.exists()


def test_a_pipeline_that_cannot_work_is_refused_before_it_trains(scans, tmp_path):
    def refused(config, word):
        with pytest.raises(InputError, match=word):
            spinejax.train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    swapped = second_config(scans, "crop")
    swapped.vertebrae = tiny_config(scans)
    refused(swapped, "segments the spine first")
    odd = pipeline_config(scans)
    odd.vertebrae.data.cube.size = (16, 16, 15)
    refused(odd, "multiples of")
    wrong = pipeline_config(scans)
    wrong.vertebrae.predict.anomalies = ("L7",)
    refused(wrong, "L7")


def test_both_networks_read_the_same_scans():
    config = cascade.get_config()
    config.data.root = "somewhere"
    config.data.fold = 3
    config.seed = 5
    second = config.vertebrae
    assert (second.data.root, second.data.fold, second.seed) == ("somewhere", 3, 5)
    assert second.data.cube.spine_prior == "channel"
    assert cascade.get_config("phantom").vertebrae.data.source == "phantom_stream"


def test_a_scan_with_gantry_tilt_is_segmented_on_a_straight_grid():
    """The network sees right angles; mask, volume and centroid are on the scan's own grid."""
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[:3, 1] = (0, -np.cos(0.35), np.sin(0.35))
    world = geometry.voxel_to_world(affine, np.stack(np.indices((30, 30, 20)), -1))
    middle = world[15, 14, 10]
    ball = np.linalg.norm(world - middle, axis=-1) < 8
    seen = []

    def segment(volume, title, progress):
        seen.append(volume)
        mask = (volume.array > 200).astype(np.uint8) * 20
        point = np.argwhere(mask).mean(axis=0)
        return Segmentation(mask, volume, title, True, {20: point}, record("L1"))

    model = predictor.Model(None, {}, "", True, segment, lambda volume: volume.array.size)
    scan = Volume(np.where(ball, 400, tissue(ball.shape)), affine)
    found = model.segment(scan, name="tilted")
    assert geometry.straight_grid(seen[0].shape, seen[0].affine) is None
    assert found.scan is scan
    assert 2 * (found.mask[ball] == 20).sum() / ((found.mask == 20).sum() + ball.sum()) > 0.93
    (vertebra,) = found.vertebrae
    assert np.linalg.norm(vertebra.centroid_mm - middle) < 1
    np.testing.assert_allclose(vertebra.volume_ml, 4 / 3 * np.pi * 8**3 / 1000, rtol=0.06)
    assert model.estimate_bytes(scan) >= seen[0].array.size
    straight = Volume(scan.array, np.diag([-1.0, -1, 2, 1]))
    model.segment(straight)
    assert seen[1] is straight


@pytest.fixture
def model():
    """A model that finds everything above 200 HU."""

    def segment(volume, title, progress):
        return Segmentation((volume.array > 200).astype(np.uint8), volume, title)

    return predictor.Model(None, {}, "", False, segment, lambda volume: volume.array.size)


def test_doubts_are_said_once(model, caplog):
    scan = tissue((20, 20, 20))
    scan[5:15, 5:15, 5:15] += 400
    affine = np.diag([-2.0, -2, 2, 1])
    assert model.segment(scan, affine=affine).mask.any()
    assert not caplog.records
    model.segment(scan + np.int16(1024), affine=affine)
    (record,) = caplog.records
    assert "scan: looks like HU + 1024" in record.message
    found = model.segment(tissue((20, 20, 20)).clip(None, 190), affine=affine)
    assert "no spine found" in found.summary()
    with pytest.raises(InputError, match="label map"):
        model.segment((scan > 200).astype(np.uint8), affine=affine)
    with pytest.raises(InputError, match="micrometres"):
        model.segment(scan, affine=np.diag([-350.0, -350, 350, 1]))


def test_a_speck_is_not_called_zero_ml(model):
    scan = tissue((20, 20, 20)).clip(None, 190)
    scan[4, 4, 4] = 900
    found = model.segment(scan, affine=np.diag([-1.0, -1, 1, 1]))
    assert found.summary() == "only 0.001 ml of spine written"
