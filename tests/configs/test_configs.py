"""Configs: every field is read, arguments are typed, each experiment can be built."""

import ast
import inspect
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from spinejax import losses, models, schema, tasks
from spinejax.augment import augment
from spinejax.configs import (
    cascade,
    chasppraunet,
    common,
    demo,
    dtvnet,
    finetune,
    mlpnn,
    mrunet,
    multiresunet,
    opconvnet,
    opconvnet_demo,
    pcnn,
    phantom_outlines,
    phantom_to_real,
    phantom_vertebrae,
    redundant_labels,
    release,
    saunet,
    spineparsenet,
    unet,
    unet3d,
    vnet,
)
from spinejax.data import preprocess
from spinejax.data.patch_feed import PatchFeed
from spinejax.tasks import build_task
from spinejax.training import model_file
from spinejax.training.run_folder import read_config
from spinejax.volume import Volume

PACKAGE = Path(__file__).parents[2] / "spinejax"
EXPERIMENTS = {
    "cascade": cascade,
    "chasppraunet": chasppraunet,
    "demo": demo,
    "dtvnet": dtvnet,
    "finetune": finetune,
    "mlpnn": mlpnn,
    "mrunet": mrunet,
    "multiresunet": multiresunet,
    "opconvnet": opconvnet,
    "opconvnet_demo": opconvnet_demo,
    "pcnn": pcnn,
    "phantom_outlines": phantom_outlines,
    "phantom_to_real": phantom_to_real,
    "phantom_vertebrae": phantom_vertebrae,
    "redundant_labels": redundant_labels,
    "release": release,
    "saunet": saunet,
    "spineparsenet": spineparsenet,
    "unet": unet,
    "unet3d": unet3d,
    "vnet": vnet,
}


@pytest.mark.parametrize("task", schema.TASKS)
def test_every_field_is_read_somewhere(task):
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    nodes = [n for tree in trees for n in ast.walk(tree)]
    read = {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    subscripts = [n.slice for n in nodes if isinstance(n, ast.Subscript)]
    read |= {n.value for n in subscripts if isinstance(n, ast.Constant)}
    read.add("name")  # the report reads it from JSON
    # These blocks go to functions as a whole.
    whole = (
        "augment.",
        "data.patches.",
        "data.phantom.rates.",
        "data.redundant.",
        "data.preprocess.",
        "loss.",
        "name",
    )
    unread = [
        k for k in schema.fields(task) if not k.startswith(whole) and k.split(".")[-1] not in read
    ]
    assert not unread


def test_blocks_passed_whole_have_the_fields_of_their_functions():
    blocks = schema.defaults(schema.PATCHES)
    known = inspect.signature(augment).parameters
    fields = set(blocks["augment"]) - {"geometry", "intensity"}
    assert fields == set(known) - {"keys", "image", "label", "plane", "fill_hu"}
    for field in fields:
        assert blocks["augment"][field] == known[field].default, field
    assert set(blocks["data"]["patches"]) <= set(inspect.signature(PatchFeed).parameters)
    preprocessing = set(inspect.signature(preprocess.SlicePreprocess).parameters)
    assert set(blocks["data"]["preprocess"]) == preprocessing - {"plane", "size"}
    parameters = [inspect.signature(loss).parameters for loss in losses.LOSSES.values()]
    read = {"name"}.union(*parameters)
    assert set(blocks["loss"]) == read - {"logits", "labels", "weight", "axis_name", "smooth"}
    slices, cubes = (set(schema.defaults(t)["loss"]) for t in (schema.SLICES, schema.CUBES))
    assert slices == {*blocks["loss"], losses.AUXILIARY_WEIGHT}
    assert cubes == slices | {losses.OFFSET_WEIGHT}


@pytest.mark.parametrize("argument", [None, "debug"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_can_be_built(name, argument):
    config = EXPERIMENTS[name].get_config(argument)
    tasks.check(config)
    if config.task in (schema.SLICES, schema.PATCHES):
        assert build_task(config).least_side <= min(config.data.size)
    assert "vertebrae" not in config or config.vertebrae.task == schema.CUBES


@pytest.mark.parametrize("net", opconvnet.NETS)
def test_each_classifier_of_paper_b_can_be_built_and_has_its_defaults(net):
    config = opconvnet.get_config(f"net={net}")
    schema.check(config)
    assert dict(config.model) == {name: f.default for name, f in models.fields(net).items()}
    assert build_task(opconvnet.get_config(f"net={net},debug")).sample == "patches"


def test_paper_b_is_trained_as_it_says():
    config = opconvnet.get_config()
    optim, patches = config.optim, config.data.patches
    assert (optim.name, optim.learning_rate, optim.momentum) == ("sgd", 0.01, 0.9)
    assert (optim.weight_decay, optim.schedule, optim.decay_every_epochs) == (1e-4, "step", 10)
    assert (optim.decay_factor, optim.clip_norm) == (0.1, 0)
    assert (config.train.epochs, config.train.batch_size, config.train.best) == (30, 128, "loss")
    assert (patches.size, patches.stride, patches.label_rule) == (32, 12, "majority")
    assert config.data.preprocess.clamp_hu == (100.0, 1500.0)
    assert config.loss.name == "ce" and config.model.dropout == 0.5
    assert config.predict.opening_mm > 0 and config.predict.fill_holes


def test_paper_a_is_trained_as_it_says():
    config = chasppraunet.get_config()
    assert (config.train.epochs, config.train.steps) == (150, 0)
    assert (config.optim.name, config.optim.learning_rate) == ("adam", 1e-3)
    assert config.data.size == (256, 256)
    assert config.data.preprocess.clamp_hu == (-1000.0, 800.0)


def test_preprocessing_of_the_blocks_is_that_of_its_class():
    config = common.base("any", {})
    assert preprocess.from_config(config.data) == preprocess.SlicePreprocess()
    cubes = preprocess.from_config(common.base("any", {}, schema.CUBES).data)
    assert cubes == preprocess.SlicePreprocess(mode="isotropic")


def test_arguments_are_read_in_the_type_of_their_defaults():
    defaults = {"debug": False, "fold": 0, "rate": 0.5, "net": "a"}
    args = common.parse_arg("debug,fold=3,rate=1,net=b", **defaults)
    assert dict(args) == {"debug": True, "fold": 3, "rate": 1.0, "net": "b"}
    assert isinstance(args.rate, float)
    assert dict(common.parse_arg(None, **defaults)) == defaults
    assert common.parse_arg("debug=false", debug=True).debug is False


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("dbug", "'dbug' is unknown; this config knows .'debug', 'fold'."),
        ("fold=two", "fold='two' must be of type int"),
        ("debug=perhaps", "debug='perhaps' must be true or false"),
    ],
)
def test_wrong_arguments_are_named(argument, words):
    with pytest.raises(ValueError, match=words):
        common.parse_arg(argument, debug=False, fold=0)


@pytest.mark.parametrize("experiment", [demo, opconvnet_demo])
@pytest.mark.parametrize("spacing_mm", [0.5, 1.0, 2.0])
def test_demos_see_any_scan_at_the_scale_of_their_phantoms(experiment, spacing_mm):
    data = experiment.get_config().data
    scan = Volume(np.zeros((8, 64, 64), np.int16), np.diag([-3.0, -spacing_mm, spacing_mm, 1.0]))
    grid = preprocess.slice_geometry(scan, preprocess.from_config(data))
    assert data.phantom.min_spacing_mm == data.phantom.max_spacing_mm
    assert grid.spacing_mm == (data.phantom.max_spacing_mm,) * 2


def test_runs_of_earlier_versions_predict_as_they_did(tmp_path):
    old = schema.plain(cascade.get_config("phantom"))
    assert old["vertebrae"]["predict"].pop("shifts") == 2
    del old["vertebrae"]["data"]["cube"]["prior_sacrum"], old["predict"]["drop_islands"]
    assert old["data"].pop("neighbours") == 0
    second = old["vertebrae"]["loss"].pop("offset_weight")
    assert second == 1
    (tmp_path / "config.json").write_text(json.dumps(old))
    found = read_config(tmp_path)
    schema.check(found)
    assert found.vertebrae.predict.shifts == 1 and found.predict.drop_islands is False
    assert found.vertebrae.loss.offset_weight == found.vertebrae.data.cube.prior_sacrum == 0
    assert "offset_weight" not in found.loss and "cube" not in found.data
    assert found.data.neighbours == 0 and "neighbours" not in found.vertebrae.data


def test_rare_variants_are_frequent_for_the_network_that_must_know_them():
    config = cascade.get_config("phantom")
    first, second = (c.data.phantom.rates for c in (config, config.vertebrae))
    assert second.t13 > 2 * first.t13 and second.fractures == first.fractures
    first.t13 = first.fractures = 0.5
    assert second.t13 < 0.5 and second.fractures == 0.5


@pytest.mark.parametrize("stage", release.STEPS)
def test_every_stage_of_the_packaged_model_can_be_built(stage):
    config = release.get_config(f"stage={stage}")
    schema.check(config)
    assert config.data.source == schema.STREAM and config.train.steps == release.STEPS[stage]
    assert build_task(config).stream is not None


@pytest.mark.parametrize("plane", phantom_to_real.SIZES)
def test_phantoms_are_sliced_in_every_plane(plane):
    config = phantom_to_real.get_config(f"plane={plane}")
    schema.check(config)
    assert config.data.plane == plane and build_task(config).stream is not None
    with pytest.raises(ValueError, match="plane='x' must be one of sagittal, coronal, axial"):
        phantom_to_real.get_config("plane=x")


@pytest.mark.parametrize("argument", ["", "debug"])
def test_fine_tuning_keeps_the_networks_and_what_they_see(argument):
    config = finetune.get_config(argument)
    for stage, one in {"sagittal": config, "vertebrae": config.vertebrae}.items():
        packaged = release.get_config(f"stage={stage}")
        for block in (one, packaged):
            assert (block.train.init_from == "phantom") == (block is one)
        shapes = jax.eval_shape(build_task(packaged).init, jax.random.key(0))
        assert model_file.misfit(build_task(one), shapes) == ""
        for name in ("preprocess", "normalise", "plane"):
            assert one.data[name] == packaged.data[name]
    config.train.init_from = "FILE.safetensors"
    assert config.vertebrae.train.init_from == "FILE.safetensors"
    assert "vertebrae" not in finetune.get_config("spine")


def test_an_unknown_stage_names_the_stages():
    with pytest.raises(ValueError, match="stage='x' must be one of sagittal, longer, "):
        release.get_config("stage=x")


@pytest.mark.parametrize("argument", ["phantom,protocol=paper", "phantom,table=4"])
def test_a_pipeline_on_phantoms_has_no_stage_of_the_paper(argument):
    with pytest.raises(ValueError, match="leave out protocol and table"):
        cascade.get_config(argument)
