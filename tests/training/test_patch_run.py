"""Paper B's system by the command line: a run from start to end, and its own kinds of bad input."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from spinejax.cli import main
from spinejax.errors import InputError
from spinejax.training import checkpoint, loop, pipeline, run_folder, signals
from tests.support.cli_runs import ROOT, fails, snapshot

TINY = (
    "--config.model.widths=(4, 8, 8)",
    "--config.model.fc_widths=(16, 8)",
    "--config.data.patches.stride=4",
    "--config.data.patches.label_rule=centre",
    "--config.train.steps=30",
    "--config.train.batch_size=16",
    "--config.train.eval_every_epochs=0.3",
    "--config.predict.opening_mm=0",
    "--config.predict.min_component_ml=0",
    "--config.data.split=ratio",
    "--config.data.val_fraction=0.3",
)


def write_scan(root: Path, name: str, labels: np.ndarray, seed: int = 0) -> None:
    """A scan of noise in which what is labelled is as bright as bone."""
    hu = np.random.default_rng(seed).normal(0, 20, labels.shape).astype(np.int16)
    hu[labels > 0] += 400
    for folder, array in (("images", hu), ("labels", labels)):
        path = root / folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])).to_filename(path)


def box(seed: int = 0) -> np.ndarray:
    """Labels (44, 48, 6) with a box in all slices but the last."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((44, 48, 6), np.uint8)
    x, y = rng.integers(8, 16, 2)
    labels[x : x + 20, y : y + 20, :5] = 20
    return labels


@pytest.fixture(scope="session")
def boxes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("boxes")
    for number in range(4):
        write_scan(root, f"case{number}", box(number), number)
    return root


def arguments(data: Path, workdir: Path, *more: str, net: str = "") -> list[str]:
    config = f"{ROOT / 'configs/opconvnet.py'}{net}"
    start = ["train", f"--config={config}", f"--config.data.root={data}", f"--workdir={workdir}"]
    return [*start, *TINY, *more]


@pytest.fixture(scope="session")
def run(boxes, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "w"
    assert main(arguments(boxes, workdir)) == 0
    return workdir


def test_training_keeps_the_lowest_validation_loss(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "val"}
    assert len(losses) >= 3
    (best,) = (int(p.name) for p in (run / "checkpoints/best").iterdir() if p.name.isdecimal())
    assert losses[best] == min(losses.values())


def test_classes_are_counted_before_and_after_under_sampling(boxes, run):
    counts = json.loads((run / "patches.json").read_text())
    cases = json.loads((run / "run.json").read_text())["cases"]
    before = np.zeros(2, int)
    for name in cases["train"]:
        labels = np.asarray(nib.load(boxes / "labels" / f"{name}.nii.gz").dataobj)
        for row in range(0, 44 - 31, 4):
            for column in range(0, 48 - 31, 4):
                centres = labels[row + 16, column + 16] > 0
                before += [(~centres).sum(), centres.sum()]
    assert counts["before"] == {"background": before[0], "vertebra": before[1]}
    fewer = int(before.min())
    assert counts["after"]["vertebra"] == before[1]
    assert counts["after"]["background"] == min(fewer, before[1])


def test_evaluate_predict_and_report(boxes, run, tmp_path, capsys):
    assert main(["evaluate", f"--workdir={run}", "--split=test"]) == 0
    printed = capsys.readouterr().out
    folder = run / "evaluation/test"
    pixels = json.loads((folder / "scores.json").read_text())["summary"]["binary"]
    assert {"bf_score", "f1_pre_sen", "recall", "iou", "dice"} <= set(pixels)
    patches = json.loads((folder / "patches.json").read_text())
    (case,) = patches["cases"]
    assert {"precision", "specificity", "accuracy", "f_score"} <= set(patches["summary"])
    assert "f_score" in printed and "dice" in printed
    # Patches at every fourth pixel, in all six slices.
    counts = patches["cases"][case]
    assert sum(counts[cell] for cell in ("tp", "fp", "fn", "tn")) == 6 * 4 * 5
    # By the centre rule the patch level is the pixel level on a grid, before post-processing.
    found = np.asarray(nib.load(folder / "predictions" / f"{case}_seg.nii.gz").dataobj) > 0
    truth = np.asarray(nib.load(boxes / "labels" / f"{case}.nii.gz").dataobj) > 0
    at = np.ix_(range(16, 16 + 16, 4), range(16, 16 + 20, 4), range(6))
    expected = {
        "tp": found[at] & truth[at],
        "fp": found[at] & ~truth[at],
        "fn": ~found[at] & truth[at],
        "tn": ~found[at] & ~truth[at],
    }
    assert {cell: counts[cell] for cell in expected} == {k: v.sum() for k, v in expected.items()}
    balanced = patches["balanced_training"]
    recorded = json.loads((run / "patches.json").read_text())
    assert balanced["of"] == balanced["used"] == recorded["balanced_total"]
    assert balanced["tp"] + balanced["fn"] == recorded["after"]["vertebra"]
    slices = json.loads((folder / "slices.json").read_text())
    assert slices["plane"] == "axial" and slices["best"] and slices["best"][0]["case"] == case
    arrays = np.load(folder / "network.npz")
    assert arrays["conv_1"].shape == (3, 3, 1, 4) and arrays["maxpool_3"].shape == (2, 2, 8)

    source = boxes / "images/case0.nii.gz"
    assert main(["predict", f"--workdir={run}", f"--input={source}", f"--output={tmp_path}"]) == 0
    assert nib.load(tmp_path / "case0_seg.nii.gz").shape == (44, 48, 6)
    assert main(["report", f"--workdir={run}"]) == 0
    page = (run / "report.html").read_text()
    assert "89.9" in page and case in page


def test_the_same_command_resumes(boxes, run, tmp_path):
    """Interrupted at step 12 of 30: the same network in the end, to the bit."""

    class StopAt12(signals.Stop):
        def agreed(self, step):
            return step == 12

    config = run_folder.read_config(run)
    workdir = tmp_path / "w"
    assert loop.train(config, workdir, stop=StopAt12()).step == 12
    assert main(arguments(boxes, workdir)) == 0
    ours = checkpoint.load_for_inference(workdir, "latest")[1]["params"]
    theirs = checkpoint.load_for_inference(run, "latest")[1]["params"]
    np.testing.assert_array_equal(ours["fc_3"]["kernel"], theirs["fc_3"]["kernel"])


def test_a_split_of_patches_and_a_network_with_batch_norm(boxes, tmp_path):
    """The paper's leaking split, odd patches, and a network whose patches have to be cut."""
    workdir = tmp_path / "w"
    words = [word for word in arguments(boxes, workdir, net=":net=resnet") if "model." not in word]
    more = ("model.depths=(1,)", "model.widths=(4,)", "data.patches.size=13")
    more += ("data.patches.split_unit=patch", "data.patches.rus=epoch", "train.steps=4")
    more += ("train.parallel=shard_map", "predict.padding=reflect")
    assert main([*words, *(f"--config.{field}" for field in more)]) == 0
    cases = json.loads((workdir / "run.json").read_text())["cases"]
    counts = json.loads((workdir / "patches.json").read_text())
    both = [sum(counts[name].values()) for name in ("after", "validation")]
    assert both[1] == round(0.3 * sum(both))
    assert sum(counts["before"].values()) == 6 * 8 * 9 * len(cases["train"] + cases["val"])
    assert main(["evaluate", f"--workdir={workdir}", "--split=val"]) == 0
    # A validation scan is scored whole, although only some of its patches validated.
    folder = workdir / "evaluation/val"
    (name,) = cases["val"]
    scored = json.loads((folder / "patches.json").read_text())["cases"][name]
    found = np.asarray(nib.load(folder / "predictions" / f"{name}_seg.nii.gz").dataobj) > 0
    truth = np.asarray(nib.load(boxes / "labels" / f"{name}.nii.gz").dataobj) > 0
    at = np.ix_(range(6, 6 + 32, 4), range(6, 6 + 36, 4), range(6))
    expected = {"tp": found & truth, "fp": found & ~truth, "fn": ~found & truth}
    assert {k: scored[k] for k in expected} == {k: v[at].sum() for k, v in expected.items()}
    assert main(["report", f"--workdir={workdir}"]) == 0
    assert f"{name} was also trained on" in (workdir / "report.html").read_text()


def test_of_pooled_scans_those_that_validate_may_hold_all_vertebra_patches(run, tmp_path):
    data, workdir = tmp_path / "data", tmp_path / "w"
    cases = json.loads((run / "run.json").read_text())["cases"]
    small = np.zeros((44, 48, 6), np.uint8)
    small[10:14, 10:14, :5] = 20
    for split, names in cases.items():
        for name in names:
            write_scan(data, name, small if split == "train" else box())
    fields = ("label_rule=majority", "size=28", "stride=1", "split_unit=patch")
    more = [f"--config.data.patches.{field}" for field in fields]
    assert main(arguments(data, workdir, *more, "--config.train.steps=2")) == 0
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    assert (workdir / "evaluation/test/patches.json").exists()


def test_words_of_a_field_are_separated_by_commas(capsys):
    start = ["summarize", f"--config={ROOT / 'configs/opconvnet.py'}"]
    printed = []
    for value in ("same,valid, same", "('same', 'valid', 'same')"):
        assert main([*start, f"--config.model.paddings={value}"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "activations: 16-7-5-3-3-2" in printed[0]


@pytest.mark.parametrize("field", ["rus=always", "split_unit=slice", "label_rule=middle"])
def test_names_of_patch_fields_are_checked_before_scans_are_prepared(
    field, boxes, tmp_path, capsys
):
    workdir = tmp_path / "w"
    fails(capsys, arguments(boxes, workdir, f"--config.data.patches.{field}"), *field.split("="))
    assert not (workdir / "cache").exists()


@pytest.mark.parametrize(
    ("scale", "warned"), [(1.0, False), (1.4, False), (1.6, True), (0.6, True)]
)
def test_scans_of_another_scale_are_warned_of(scale, warned, boxes, run, tmp_path, caplog):
    image = nib.load(boxes / "images/case0.nii.gz")
    affine = image.affine @ np.diag([scale, 1, 1, 1])
    nib.Nifti1Image(np.asarray(image.dataobj), affine).to_filename(tmp_path / "ct.nii.gz")
    words = ["predict", f"--workdir={run}", f"--input={tmp_path / 'ct.nii.gz'}"]
    assert main([*words, f"--output={tmp_path / 'out'}"]) == 0
    assert ("trained on pixels of 1.00 to 1.00 mm" in caplog.text) == warned


def without_model(words: list[str]) -> list[str]:
    return [word for word in words if not word.startswith("--config.model.")]


def validations(workdir: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if line["kind"] == "val"]


def best_constant(workdir: Path) -> float:
    """The F-score of a classifier that calls every validation patch vertebra."""
    counts = json.loads((workdir / "patches.json").read_text())["validation"]
    return 2 * counts["vertebra"] / (2 * counts["vertebra"] + counts["background"])


# PaDBN.


class StopAfter(signals.Stop):
    """Asks to stop at the nth step of all runs together."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def agreed(self, step):
        self.left -= 1
        return self.left < 0


def padbn_words(data: Path, workdir: Path, *more: str) -> list[str]:
    words = without_model(arguments(data, workdir, net=":net=padbn"))
    fields = ("model.widths=(12, 6)", "model.init_std=0.1", "optim.learning_rate=0.03")
    fields += ("train.eval_every_epochs=1.5", *more)
    return [*words, *(f"--config.{field}" for field in fields)]


@pytest.fixture(scope="session")
def padbn_run(boxes, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("padbn") / "w"
    assert main(padbn_words(boxes, workdir, "model.rbm_share=0.99", "train.steps=150")) == 0
    return workdir


def best(workdir: Path) -> dict:
    return checkpoint.load_for_inference(workdir, "best")[1]["params"]


def test_layers_are_pretrained_one_after_the_other_and_reconstruct_better(padbn_run):
    first, second = padbn_run / "rbm_1", padbn_run / "rbm_2"
    for folder in (first, second):
        errors = validations(folder, "loss")
        assert min(errors) < 0.8 * errors[0]
    one, two = best(first), best(second)
    np.testing.assert_array_equal(one["fc_1"]["kernel"], two["fc_1"]["kernel"])
    assert np.abs(one["fc_2"]["kernel"] - two["fc_2"]["kernel"]).max() > 1e-3
    assert run_folder.recorded_training(second)["initial"]["steps"] == 149
    assert not (first / "cache").exists() and (padbn_run / "cache").exists()


def test_the_classifier_begins_with_the_pretrained_weights_bit_for_bit(padbn_run, tmp_path):
    pretrained = best(padbn_run / "rbm_2")
    assert {name for name in pretrained if name.startswith("visible")} == {"visible_1", "visible_2"}
    config = run_folder.read_config(padbn_run)
    config.train.update(init_from=str(padbn_run / "rbm_2"), steps=1)
    # An update by less than the smallest float32.
    config.optim.update(learning_rate=1e-12, clip_norm=1e-36, weight_decay=0.0)
    loop.train(config, tmp_path / "w")
    begun = checkpoint.load_for_inference(tmp_path / "w", "latest")[1]["params"]
    assert set(begun) == {"fc_1", "fc_2", "fc_3"}
    for name, layer in begun.items():
        for part in layer:
            np.testing.assert_array_equal(layer[part], pretrained[name][part])


def test_the_pretrained_classifier_learns_segments_and_has_a_page(padbn_run):
    assert max(validations(padbn_run, "dice")) > 0.5 + 0.5 * best_constant(padbn_run)
    assert run_folder.recorded_training(padbn_run)["initial"]["steps"] == 149
    assert main(["evaluate", f"--workdir={padbn_run}"]) == 0
    arrays = np.load(padbn_run / "evaluation/test/network.npz")
    assert arrays["conv_1"].shape == (32, 32, 1, 12) and arrays["hidden_2"].shape == (6,)
    kernel = best(padbn_run)["fc_1"]["kernel"]
    np.testing.assert_array_equal(arrays["conv_1"][3, 5, 0], kernel[3 * 32 + 5])
    assert main(["report", f"--workdir={padbn_run}"]) == 0


def test_an_interrupted_pretraining_resumes_to_the_same_classifier(boxes, tmp_path):
    """Stopped within the second layer."""
    more = ("train.steps=12", "model.rbm_share=0.5")
    assert main(padbn_words(boxes, tmp_path / "whole", *more)) == 0
    config = run_folder.read_config(tmp_path / "whole")
    stopped = pipeline.train(config, tmp_path / "parts", stop=StopAfter(10))
    assert stopped.interrupted and (tmp_path / "parts/rbm_2").exists()
    assert not (tmp_path / "parts/checkpoints").exists()
    assert main(padbn_words(boxes, tmp_path / "parts", *more)) == 0
    whole, parts = best(tmp_path / "whole"), best(tmp_path / "parts")
    np.testing.assert_array_equal(whole["fc_3"]["kernel"], parts["fc_3"]["kernel"])
    np.testing.assert_array_equal(whole["fc_1"]["kernel"], parts["fc_1"]["kernel"])


def test_a_pretraining_of_another_network_and_a_scan_for_one_are_refused(
    boxes, padbn_run, tmp_path, capsys
):
    init = f"train.init_from={padbn_run / 'rbm_2'}"
    words = padbn_words(boxes, tmp_path / "w", init)
    words = ["--config.model.widths=(12, 7)" if "model.widths" in w else w for w in words]
    fails(
        capsys,
        words,
        "train.init_from=",
        "another network",
        "params/fc_2/bias has shape (6,) in the model",
    )
    assert not (tmp_path / "w").exists()
    fails(
        capsys, ["evaluate", f"--workdir={padbn_run / 'rbm_1'}"], "pretrained layer 1", "no labels"
    )


# Redundant labels.


def test_redundant_labels_are_trained_evaluated_and_reported_as_two_classes(boxes, tmp_path):
    workdir = tmp_path / "w"
    words = [word for word in arguments(boxes, workdir) if not word.startswith("--config=")]
    fields = ("data.plane=axial", "data.patches.label_rule=redundant")
    fields += ("train.steps=80", "train.eval_every_epochs=2", "model.dropout=0")
    fields += ("optim.name=adam", "optim.learning_rate=0.005")
    config = f"--config={ROOT / 'configs/redundant_labels.py'}"
    assert main([*words, config, *(f"--config.{field}" for field in fields)]) == 0
    assert max(validations(workdir, "dice")) > 0.5 + 0.5 * best_constant(workdir)
    assert best(workdir)["fc_3"]["kernel"].shape == (8, 4)
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    patches = json.loads((workdir / "evaluation/test/patches.json").read_text())
    assert patches["label_rule"] == "redundant" and patches["rule_dice"] == 1
    (case,) = patches["cases"]
    found, truth = (
        np.asarray(nib.load(path).dataobj) > 0
        for path in (
            workdir / f"evaluation/test/predictions/{case}_seg.nii.gz",
            boxes / f"labels/{case}.nii.gz",
        )
    )
    at = np.ix_(range(16, 16 + 16, 4), range(16, 16 + 20, 4), range(6))
    counts = patches["cases"][case]
    assert counts["tp"] == (found & truth)[at].sum() and counts["fp"] == (found & ~truth)[at].sum()
    assert main(["report", f"--workdir={workdir}"]) == 0


@pytest.mark.parametrize("net", ["vgg", "resnet", "densenet", "padbn"])
def test_the_classifiers_of_table_2_are_summarized(net, capsys):
    assert main(["summarize", f"--config={ROOT / 'configs/opconvnet.py'}:net={net}"]) == 0
    assert "parameters: " in capsys.readouterr().out


def test_summarize_prints_table_1(capsys):
    assert main(["summarize", f"--config={ROOT / 'configs/opconvnet.py'}"]) == 0
    printed = capsys.readouterr().out
    assert "parameters: 1,682,178" in printed
    assert "activations: 15-7-5-3-3-2" in printed


def test_prepare_counts_patches_and_says_what_the_rule_allows(boxes, tmp_path, capsys):
    more = ("--config.data.patches.label_rule=majority", "--config.data.patches.size=28")
    assert main(["prepare", *arguments(boxes, tmp_path / "w", *more)[1:]]) == 0
    # Of 784 pixels 393 make a majority, which a square of 400 gives only if it lies wholly in the
    # patch: for 9 x 9 patches, all centred inside of it. Dice = 2 * 81 / (81 + 400).
    assert "0.337 (training scans)" in capsys.readouterr().out


# Bad input.


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.patches.size=64", ["data.patches.size", "64", "case", "44 x 48"]),
        ("data.patches.size=8", ["data.patches.size", "8 x 8", "too small"]),
        ("data.patches.size=0", ["data.patches.size=0"]),
        ("data.patches.stride=0", ["data.patches.stride=0", "from 1"]),
        ("data.patches.label_rule=middle", ["label_rule", "middle", "majority", "centre"]),
        ("data.patches.rus=always", ["data.patches.rus", "always", "once"]),
        ("data.patches.rus_ratio=0", ["data.patches.rus_ratio=0"]),
        ("data.patches.split_unit=slice", ["split_unit", "slice", "scan"]),
        ("data.patches.label_rule=majority", ["none of the", "majority", "label_rule=centre"]),
        ("data.preprocess.intensity=bone", ["data.preprocess.intensity", "op_window"]),
        ("train.best=lowest", ["train.best", "lowest", "loss"]),
        ("predict.padding=same", ["predict.padding", "same", "reflect"]),
        ("model.paddings=('valid', 'valid', 'full')", ["model.paddings", "full"]),
        ("model.widths=(4, 8)", ["model."]),
        ("augment.translation_px=-1", ["augment.translation_px=-1"]),
    ],
)
def test_bad_values(override, words, boxes, tmp_path, capsys):
    workdir = tmp_path / "w"
    fails(capsys, arguments(boxes, workdir, f"--config.{override}"), *words)
    assert not (workdir / "checkpoints").exists() or not any(snapshot(workdir / "checkpoints/best"))
    assert not (workdir / "patches.json").exists()


def test_an_unknown_net_is_named(boxes, tmp_path, capsys):
    fails(capsys, arguments(boxes, tmp_path / "w", net=":net=alexnet"), "alexnet", "densenet")


def test_scans_without_foreground(tmp_path, capsys):
    for number in range(3):
        write_scan(tmp_path / "data", f"case{number}", np.zeros((44, 48, 6), np.uint8), number)
    words = fails(capsys, arguments(tmp_path / "data", tmp_path / "w"), "case")
    assert "foreground" in words or "vertebra" in words


def test_one_scan_without_foreground_is_named_and_the_others_train(boxes, tmp_path, capsys, caplog):
    shutil.copytree(boxes, tmp_path / "data")
    for number in range(4, 8):
        write_scan(tmp_path / "data", f"case{number}", np.zeros((44, 48, 6), np.uint8), number)
    words = arguments(tmp_path / "data", tmp_path / "w", "--config.train.steps=1")
    status = main(words)
    said = capsys.readouterr().err + caplog.text
    assert status in (0, 1) and any(f"case{number}" in said for number in range(4, 8)), said


def test_patches_of_one_class(tmp_path, capsys):
    for number in range(3):
        write_scan(tmp_path / "data", f"case{number}", np.full((44, 48, 6), 20, np.uint8), number)
    fails(capsys, arguments(tmp_path / "data", tmp_path / "w"), "background")


def test_a_search_whose_config_has_none(tmp_path, capsys):
    words = ["search", f"--config={ROOT / 'configs/unet.py'}", f"--workdir={tmp_path / 'w'}"]
    fails(capsys, words, "sweep_", "--config=opconvnet")


def test_an_unknown_sweep_is_refused_with_the_known_ones(tmp_path, capsys):
    config = f"--config={ROOT / 'configs/opconvnet.py'}"
    words = ["search", config, f"--workdir={tmp_path / 'w'}", "--sweep=grid"]
    fails(capsys, words, "grid", "random_search")


def test_a_run_with_other_held_out_patches_does_not_go_on(tmp_path, monkeypatch):
    """Earlier versions drew the held-out patches by the seed, and their record has no other one."""
    monkeypatch.setattr(loop, "begun", lambda workdir: True)
    file = tmp_path / "patches.json"
    loop._check_same_samples(file, {"split_seed": 0}, 3)  # it has no record yet
    now = {"after": {"vertebra": 2}, "split_seed": 0}
    file.write_text(json.dumps({"after": {"vertebra": 2}}))
    loop._check_same_samples(file, now, 0)
    with pytest.raises(InputError, match=r"differ in split_seed \(3 before, 0 now\)"):
        loop._check_same_samples(file, now, 3)
    with pytest.raises(InputError, match="differ in after"):
        loop._check_same_samples(file, {"after": {"vertebra": 3}}, 0)
    monkeypatch.setattr(loop, "begun", lambda workdir: False)
    loop._check_same_samples(file, now, 3)
