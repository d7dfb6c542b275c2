"""`spinejax calibrate`, and the commands that use its numbers."""

import json
import shutil

import numpy as np
import pytest

import spinejax
from spinejax import calibration
from spinejax.cli import main
from spinejax.training import model_file
from tests.support.cli_runs import fails
from tests.support.pipeline_run import write_scans


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("many"), 11)


@pytest.fixture(scope="module")
def calibrated(block_pipeline, scans, tmp_path_factory):
    """Output folder of a calibration, one scan of which cannot be read."""
    data = shutil.copytree(scans, tmp_path_factory.mktemp("data") / "scans")
    (data / "images" / "case3.nii.gz").write_bytes(b"no scan")
    out = tmp_path_factory.mktemp("calibrated") / "out"
    words = ["calibrate", f"--workdir={block_pipeline}", f"--data={data}", "-o", str(out)]
    return out, main(words)


def test_it_writes_numbers_and_diagram_of_the_scans_that_can_be_read(calibrated):
    out, status = calibrated
    found = json.loads((out / "calibration.json").read_text())
    assert status == 1 and list(found["failed"]) == ["case3"]
    assert found["scans"] == 11 and found["fitted"] == 10
    assert 0 < found["name_weight"] <= 1 and 0 < found["level_error"] < 0.2
    for when in ("before", "after"):
        every = found[when]["views"]["all"]
        assert every["scans"] == 10 and every["names"] == 30 and every["right"] > 0.9
        assert found[when]["views"]["thoracic and lumbar"] == every
    assert (out / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_it_prints_scores_before_and_after(calibrated, block_pipeline, scans, tmp_path, capsys):
    words = ["calibrate", f"--workdir={block_pipeline}", f"--data={scans}"]
    assert main([*words, f"--output={tmp_path}/out"]) == 0
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert f"name_weight {found['name_weight']:.3g}" in text
    assert "before: scans that show" in text and "after: scans that show" in text
    assert f"--calibration={tmp_path}/out/calibration.json" in text
    assert "failed" not in found and found["judged_by"].startswith(
        "the same scans: each of 5 parts"
    )


def test_predict_and_export_use_the_numbers(calibrated, block_pipeline, scans, tmp_path, caplog):
    numbers = calibrated[0] / "calibration.json"
    ct, run = str(scans / "images" / "case0.nii.gz"), f"--workdir={block_pipeline}"
    flag, file = f"--calibration={numbers}", tmp_path / "model.safetensors"
    assert main(["export", run, flag, f"--output={file}"]) == 0
    assert main(["predict", ct, "-o", f"{tmp_path}/run", run, flag]) == 0
    assert main(["predict", ct, "-o", f"{tmp_path}/file", f"--model={file}"]) == 0
    assert main(["predict", ct, "-o", f"{tmp_path}/before", run]) == 0
    records = {
        name: json.loads((tmp_path / name / "case0.json").read_text())
        for name in ("run", "file", "before")
    }
    assert records["run"]["calibrated"] and not records["before"]["calibrated"]
    assert records["run"]["vertebrae"] == records["file"]["vertebrae"]
    assert records["run"]["vertebrae"] != records["before"]["vertebrae"]
    tables = json.loads(numbers.read_text())
    del tables["failed"]  # names files of this machine
    assert model_file.read(file).card == {"calibration": tables}
    assert "made with another model" not in caplog.text
    spinejax.load(file, calibration=numbers)
    assert "made with another model" in caplog.text


def test_bad_input_is_named(calibrated, block_pipeline, block_scans, scans, tmp_path, capsys):
    run, out = f"--workdir={block_pipeline}", f"--output={tmp_path}/out"
    words = ["calibrate", run, out]
    fails(capsys, [*words, f"--data={block_scans}"], "5 scans", "at least 10")
    fails(capsys, [*words, f"--data={scans}", f"--test={scans}"], "in --data and in --test")
    fails(capsys, [*words, "--data=nowhere"], "nowhere: no such folder")
    only_spine = shutil.copytree(block_pipeline, tmp_path / "spine")
    shutil.rmtree(only_spine / "vertebrae")
    fails(capsys, ["calibrate", f"--workdir={only_spine}", f"--data={scans}", out],
          "names no vertebrae", "--vertebrae")  # fmt: skip
    ct = str(scans / "images" / "case0.nii.gz")
    numbers = calibrated[0] / "calibration.json"
    fails(capsys, ["predict", ct, out, f"--workdir={only_spine}", f"--calibration={numbers}"],
          "names no vertebrae", "leave --calibration out")  # fmt: skip
    for content, text in (("{}", "it has no name_weight"), ('{"name_weight": 2.0, "level_error": '
                          '0.1, "model": ""}', "name_weight=2.0 must be")):  # fmt: skip
        bad = tmp_path / "bad.json"
        bad.write_text(content)
        fails(capsys, ["predict", ct, out, run, f"--calibration={bad}"], text)
    assert not (tmp_path / "out").exists()


def test_found_vertebrae_belong_to_those_they_share_most_with():
    reference, mask = np.zeros((2, 20, 20, 20), np.uint8)
    reference[:, :, :8], reference[:, :, 10:14] = 20, 21
    mask[:, :, 1:12], mask[:, :, 12:14], mask[:, :, 15:] = 21, 22, 23
    assert calibration.right_names(mask, reference) == {21: 20, 22: 21, 23: 0}
    assert calibration.right_names(reference * 0, reference) == {}


def test_a_cut_vertebra_without_reference_is_not_judged(block_pipeline, scans):
    """And one that is not cut is wrong."""
    found = spinejax.load(block_pipeline).segment(scans / "images" / "case0.nii.gz")
    reference = found.mask.copy()
    assert calibration.judge(found, reference).right == (19, 20, 21)
    reference[reference == 20] = 0
    assert calibration.judge(found, reference).right == (19, 0, 21)
    judged = calibration.judge(found, np.where(found.mask == 21, 22, 0).astype(np.uint8))
    assert judged.right == (0, 0, 22) and judged.reference == {22}
