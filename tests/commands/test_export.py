"""`spinejax export`, and the commands that use its file."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from safetensors import safe_open

import spinejax
from spinejax.cli import main
from spinejax.files import LIST
from spinejax.training import model_file
from tests.support.cli_runs import fails

ENDINGS = (".stablehlo", ".mlirbc", ".json")


@pytest.fixture(scope="module")
def packaged(block_pipeline, tmp_path_factory):
    """A folder of packaged models whose model "phantom" is the small pipeline."""
    folder = tmp_path_factory.mktemp("packaged")
    card = folder / "card.json"
    card.write_text('{"what": "blocks"}')
    words = [f"--workdir={block_pipeline}", f"--card={card}", f"-o={folder}/phantom.safetensors"]
    assert main(["export", *words]) == 0
    return folder


@pytest.fixture
def phantom(packaged, monkeypatch):
    monkeypatch.setattr(model_file, "FOLDER", packaged)
    return packaged / "phantom.safetensors"


def labels_of(folder):
    return np.asarray(nib.load(folder / "case0_seg.nii.gz").dataobj)


def test_the_file_predicts_what_the_run_predicts(
    phantom, block_pipeline, block_scans, tmp_path, capsys
):
    ct = str(block_scans / "images" / "case0.nii.gz")
    for name, words in {
        "run": [f"--workdir={block_pipeline}"],
        "default": [],
        "name": ["--model=phantom"],
        "file": [f"--model={phantom}"],
        "second": [f"--model={block_pipeline}", "--vertebrae=phantom"],
    }.items():
        assert main(["predict", ct, "-o", str(tmp_path / name), *words]) == 0
        np.testing.assert_array_equal(labels_of(tmp_path / name), labels_of(tmp_path / "run"))
    assert "T12-L2 written" in capsys.readouterr().out
    assert spinejax.load().digest == spinejax.load(str(phantom)).digest
    assert model_file.read(phantom).card == {"what": "blocks"}


def test_a_packaged_model_is_evaluated_on_a_folder(phantom, block_scans, tmp_path, capsys):
    out, data = tmp_path / "out", tmp_path / "data"
    for kind in ("images", "labels"):
        (data / kind).mkdir(parents=True)
        shutil.copy(block_scans / kind / "case0.nii.gz", data / kind)
    words = ["evaluate", "--model=phantom", f"--data={data}"]
    fails(capsys, words, "add --output=OUT")
    fails(capsys, ["evaluate", "--model=phantom", f"--output={out}"], "add --data=DIR")
    assert main([*words, f"--output={out}"]) == 0
    assert str(out / "scores.json") in capsys.readouterr().out
    cases = json.loads((out / "cases.json").read_text())
    assert all((out / case["prediction"]).exists() for case in cases.values())
    scores = spinejax.evaluate("phantom", data=data, output=out)
    assert scores == json.loads((out / "scores.json").read_text())


def test_two_ways_to_name_a_model_are_one_too_many(block_pipeline, tmp_path, capsys):
    words = ["predict", "ct.nii.gz", f"-o={tmp_path}/out", f"--workdir={block_pipeline}"]
    fails(capsys, [*words, "--model=phantom"], "--model and --workdir")
    fails(capsys, ["evaluate"], "--workdir is required", "--model")


def test_a_run_in_a_folder_called_phantom(phantom, block_pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(spinejax.errors.InputError, match="--model=phantom is the packaged model"):
        spinejax.load("./phantom")
    shutil.copytree(block_pipeline, tmp_path / "phantom")
    (tmp_path / "phantom" / "config.json").write_text("{}")
    with pytest.raises(spinejax.errors.InputError, match=r"^phantom/config\.json is damaged"):
        spinejax.load("./phantom")
    assert spinejax.load("phantom").named


def test_the_packaged_model_is_exported_by_its_name(phantom, tmp_path):
    path = tmp_path / "copy.spinejax"
    assert main(["export", "--workdir=phantom", f"--output={path}"]) == 0
    assert spinejax.load(path).digest == spinejax.load(phantom).digest


def test_half_the_bytes(phantom, block_pipeline, tmp_path):
    path = tmp_path / "half.safetensors"
    words = ["export", f"--workdir={block_pipeline}", f"--output={path}"]
    assert main([*words, "--half=spine", "--half=vertebrae"]) == 0
    assert path.stat().st_size < 0.75 * phantom.stat().st_size
    assert spinejax.load(path).named
    assert main(words) == 0  # its own file
    assert path.stat().st_size > 0.9 * phantom.stat().st_size
    assert {one.name for one in tmp_path.iterdir()} == {path.name, LIST}


def test_several_pipelines_in_one_file_are_used_like_the_runs(
    block_pipeline, block_scans, tmp_path, capsys
):
    other, file = tmp_path / "other", tmp_path / "both.spinejax"
    shutil.copytree(block_pipeline, other)
    runs = [f"--workdir={block_pipeline}", f"--workdir={other}"]
    assert main(["export", *runs, f"--output={file}"]) == 0
    assert f"spinejax predict --model={file} uses it" in capsys.readouterr().out
    with safe_open(file, framework="numpy") as opened:  # one of safetensors
        members = {name.rpartition("/params")[0] for name in opened.keys()}  # noqa: SIM118
    assert members >= {"spine/0", "spine/1", "vertebrae/0", "vertebrae/1"}
    again = tmp_path / "again.safetensors"
    assert main(["export", f"--workdir={file}", f"--output={again}"]) == 0
    assert spinejax.load(again).digest == spinejax.load(file).digest
    data, out = tmp_path / "data", tmp_path / "out"
    for kind in ("images", "labels"):
        (data / kind).mkdir(parents=True)
        shutil.copy(block_scans / kind / "case0.nii.gz", data / kind)
    ct = str(data / "images" / "case0.nii.gz")
    assert main(["predict", ct, "-o", str(tmp_path / "a"), f"--workdir={file}", "--nopage"]) == 0
    assert main(["predict", ct, "-o", str(tmp_path / "b"), *runs, "--nopage"]) == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "a"), labels_of(tmp_path / "b"))
    assert main(["evaluate", f"--model={file}", f"--data={data}", f"--output={out}"]) == 0
    assert json.loads((out / "scores.json").read_text())


def test_what_cannot_be_exported_leaves_nothing(block_pipeline, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    words = ["export", f"--workdir={block_pipeline}"]
    fails(capsys, [*words, f"--output={tmp_path}/model.bin"], "ends in .spinejax or .safetensors")
    fails(capsys, ["export", "--workdir=nowhere", f"--output={path}"], "nowhere is not the folder")
    second = f"--workdir={block_pipeline}/vertebrae"
    fails(capsys, ["export", second, f"--output={path}"], "needs the mask of an earlier one")
    fails(capsys, [*words, f"--output={path}", "--card=no.json"], "no.json: no such file")
    assert not any(tmp_path.iterdir())
    path.write_bytes(b"somebody's")
    fails(capsys, [*words, f"--output={path}"], "did not write this file", "--overwrite")
    assert path.read_bytes() == b"somebody's"


def test_a_pipeline_becomes_a_program_a_network(block_pipeline, tmp_path, capsys):
    out = tmp_path / "programs"
    words = ["export", f"--workdir={block_pipeline}", f"--output={out}/", "--format=stablehlo"]
    fails(capsys, [*words, "--half=spine"], "--half changes nothing in programs; leave it out")
    fails(capsys, [*words, f"--output={tmp_path}/m.spinejax"], "give the name of a folder")
    assert not out.exists()
    out.mkdir()
    foreign = out / "vertebrae.json"
    foreign.write_text("{}")
    fails(capsys, words, "vertebrae.json: spinejax did not write this file", "--overwrite")
    assert [path.name for path in out.iterdir()] == [foreign.name]
    foreign.unlink()
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"{out}/spine.stablehlo: " in printed and "vertebrae.json describes it" in printed
    files = {f"{name}{end}" for name in ("spine", "vertebrae") for end in ENDINGS}
    assert {path.name for path in out.iterdir()} == {*files, LIST}
    about = json.loads((out / "vertebrae.json").read_text())
    assert [one["name"] for one in about["inputs"]] == ["image", "spine"]
    assert main(words) == 0  # its own files
