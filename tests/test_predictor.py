"""Two runs as one pipeline, from the command line: what it writes, and which runs do not fit."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from spinejax import commands, predictor
from spinejax.cli import main
from spinejax.configs import cascade, unet3d
from spinejax.errors import InputError
from spinejax.io.centroids import read_centroids
from spinejax.io.scanfile import read_volume
from spinejax.train.loop import train
from tests.support.cli_runs import fails
from tests.support.tiny_run import tiny_config

IDS = (19, 20, 21)
AFFINE = np.diag([-2.0, -2.0, 2.0, 1.0])


def write_scans(root, cases=5):
    """Write scans of three blocks whose HU tell their names."""
    for number in range(cases):
        rng = np.random.default_rng(number)
        mask = np.zeros((24, 32, 48), np.uint8)
        y = int(rng.integers(6, 12))
        for place, label in enumerate(IDS):
            mask[4:20, y : y + 14, 33 - 15 * place : 45 - 15 * place] = label
        image = np.where(mask > 0, 300 + 150 * (mask - 19.0), -50) + rng.normal(0, 8, mask.shape)
        for folder, array in (("images", image.astype(np.int16)), ("labels", mask)):
            path = root / folder / f"case{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), path)
    return root


def second_config(root, prior):
    config = unet3d.get_config("debug")
    config.model.widths = (8, 16)
    config.model.norm = "none"  # names are told by HU, which a norm of few voxels takes away
    config.data.preprocess.clamp_hu = (-200.0, 800.0)
    config.data.root = str(root)
    config.data.split = "ratio"
    config.data.cube.size = (16, 16, 32)
    config.data.cube.spine_prior = prior
    config.data.normalise = "sym"
    config.augment.enabled = False
    config.train.steps = 240
    config.train.batch_size = 2
    config.train.eval_every_epochs = 1000.0
    config.train.pictures = 0
    config.optim.learning_rate = 5e-3
    config.predict.min_component_ml = 0.0
    return config


def pipeline_config(root, prior="channel"):
    first = tiny_config(root, **{"data.preprocess.spacing_mm": 2.0, "train.steps": 60})
    first.data.preprocess.clamp_hu = (-200.0, 800.0)
    first.data.normalise = "sym"
    first.model.norm = "none"
    first.model.dropout = 0.0
    first.augment.enabled = False
    first.optim.learning_rate = 0.01
    first.optim.ema_decay = 0.0
    first.train.eval_every_epochs = 1000.0
    return cascade.join(first, second_config(root, prior))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    """A pipeline trained as `spinejax train` does, in one folder."""
    from spinejax import commands

    workdir = tmp_path_factory.mktemp("pipeline")
    interrupted = commands.train(
        pipeline_config(scans), workdir, coordinator="", num_processes=1, process_id=0,
        under_slurm=False,
    )  # fmt: skip
    assert not interrupted
    return workdir


@pytest.fixture(scope="module")
def alone(scans, tmp_path_factory):
    """A run that names vertebrae without any mask."""
    workdir = tmp_path_factory.mktemp("alone")
    train(second_config(scans, "crop"), workdir, progress=False)
    return workdir


def case_of(run):
    return json.loads((run / "run.json").read_text())["cases"]["test"][0]


def test_predict_writes_labels_centroids_and_a_picture(scans, run, tmp_path, capsys):
    case = case_of(run)
    ct = scans / "images" / f"{case}.nii.gz"
    truth = np.asarray(nib.load(scans / "labels" / f"{case}.nii.gz").dataobj)
    assert main(["predict", f"--workdir={run}", f"--input={ct}", f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "T12-L2, 3 vertebrae" in printed and " s, " in printed and " GB" in printed
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
    assert (tmp_path / f"{case}_quicklook.png").stat().st_size > 10_000


def test_evaluate_and_report_say_who_is_named_right(run, capsys):
    assert main(["evaluate", f"--workdir={run}", "--checkpoint=latest"]) == 0
    assert "id.rate" in capsys.readouterr().out
    scores = json.loads((run / "evaluation" / "test" / "scores.json").read_text())
    assert scores["summary"]["vertebrae"]["id_rate"] == 1.0
    assert scores["summary"]["vertebrae"]["dice_mean"] > 0.9
    assert main(["report", f"--workdir={run}"]) == 0
    html = (run / "report.html").read_text()
    assert "Names of the vertebrae" in html and "Vertebrae named right" in html
    by_scan = html.split("By scan")[1].split("</table>")[0]
    assert all(f'<th scope="row">{case}</th>' in by_scan for case in scores["cases"])
    assert "Second network" in html and "Training of the second network" in html


def test_an_interrupted_evaluation_goes_on_with_the_next_scan(
    scans, run, tmp_path, capsys, monkeypatch
):
    words = ["evaluate", f"--workdir={run}", f"--data={scans}", "--checkpoint=latest"]
    folder = run / "evaluation" / scans.name
    assert main(words) == 0
    names = ("scores.json", "slices.json", "cases.json")
    undisturbed = [(folder / name).read_bytes() for name in names]
    load, segmented = predictor.load, []

    def at_most(count):
        def loaded(*args, **options):
            scanner = load(*args, **options)

            def segment(volume, path, title):
                if len(segmented) == count:
                    raise KeyboardInterrupt
                segmented.append(path.name)
                return scanner.segment(volume, path, title)

            return replace(scanner, segment=segment)

        monkeypatch.setattr(predictor, "load", loaded)
        segmented.clear()

    at_most(2)
    with pytest.raises(KeyboardInterrupt):
        commands.evaluate(run, split="test", which="latest", data=scans)
    at_most(9)
    capsys.readouterr()
    assert main(words) == 0
    assert len(segmented) == 3
    out = capsys.readouterr().out
    assert out.count("predicted before the interruption") == 2
    assert [(folder / name).read_bytes() for name in names] == undisturbed
    at_most(2)
    with pytest.raises(KeyboardInterrupt):
        commands.evaluate(run, split="test", which="latest", data=scans)
    image = sorted((scans / "images").iterdir())[0]
    image.touch()  # another scan may have taken its place
    at_most(9)
    assert main(words) == 0
    assert len(segmented) == 4 and image.name in segmented
    at_most(9)
    assert main(words) == 0
    assert len(segmented) == 5  # nothing is left of an interruption


def test_a_pipeline_goes_on_with_moved_data_and_other_ways_to_predict(scans, run, tmp_path, capsys):
    moved = shutil.copytree(scans, tmp_path / "moved")
    again = shutil.copytree(run, tmp_path / "run")
    config = pipeline_config(moved)
    config.vertebrae.predict.overlap = 0.25

    def train_again():
        return commands.train(
            config, again, coordinator="", num_processes=1, process_id=0, under_slurm=False
        )

    assert not train_again()
    assert capsys.readouterr().out.count("nothing to do") == 2
    config.vertebrae.optim.learning_rate = 0.5
    with pytest.raises(InputError, match="vertebrae.optim.learning_rate"):
        train_again()


def test_both_data_sets_of_a_pipeline_are_prepared(scans, tmp_path, capsys):
    from spinejax import commands

    commands.prepare(pipeline_config(scans), tmp_path / "run")
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
    assert "T12-L2, 3 vertebrae" in capsys.readouterr().out


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
    assert "T12-L2, 3 vertebrae" in capsys.readouterr().out


def test_a_scan_without_spine_gives_empty_labels_and_a_clear_line(run, tmp_path, capsys):
    path = tmp_path / "air_ct.nii.gz"
    nib.save(nib.Nifti1Image(np.full((20, 30, 40), -1000, np.int16), AFFINE), path)
    out = tmp_path / "out"
    assert main(["predict", f"--workdir={run}", f"--input={path}", f"--output={out}"]) == 0
    assert "no vertebra found, labels are empty" in capsys.readouterr().out
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


def test_mirrored_and_upside_down_headers_are_followed(scans, run, tmp_path):
    """The same body, stored with other axes, gives the same labels of the same places."""
    case = case_of(run)
    ct = nib.load(scans / "images" / f"{case}.nii.gz")
    array = np.asarray(ct.dataobj)
    flipped = AFFINE.copy()
    flipped[2, 2] *= -1
    flipped[2, 3] = AFFINE[2, 2] * (array.shape[2] - 1)
    nib.save(nib.Nifti1Image(array[:, :, ::-1], flipped), tmp_path / "turned_ct.nii.gz")
    scanner = predictor.load(run, "latest")
    plain = read_volume(scans / "images" / f"{case}.nii.gz")
    turned = read_volume(tmp_path / "turned_ct.nii.gz")
    one = scanner.segment(plain, tmp_path, "a").labels
    other = scanner.segment(turned, tmp_path, "b").labels
    assert (one == other[:, :, ::-1]).mean() > 0.999


def test_exchanged_and_unfit_runs_are_refused(scans, run, alone, tmp_path, capsys):
    out = tmp_path / "out"
    ct = scans / "images" / "case0.nii.gz"
    rest = [f"--input={ct}", f"--output={out}"]
    words = ("exchange", "--vertebrae")
    fails(capsys, ["predict", f"--workdir={alone}", f"--vertebrae={run}", *rest], *words)
    words = ("slice_segmentation", "names no vertebrae")
    fails(capsys, ["predict", f"--workdir={run}", f"--vertebrae={run}", *rest], *words)
    second = run / "vertebrae"
    words = ("needs the mask of an earlier one", f"--vertebrae={second}")
    fails(capsys, ["predict", f"--workdir={second}", *rest], *words)
    fails(capsys, ["evaluate", f"--workdir={run}", f"--vertebrae={tmp_path / 'no'}"], "no")
    assert not out.exists()


def test_a_pipeline_that_cannot_work_is_refused_before_it_trains(scans, tmp_path):
    from spinejax import commands

    def refused(config, word):
        with pytest.raises(InputError, match=word):
            commands.train(
                config, tmp_path / "run", coordinator="", num_processes=1, process_id=0,
                under_slurm=False,
            )  # fmt: skip
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
