"""Recognition of vertebrae: what is refused, what counts as right, and a run from files to DONE."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest

from spinejax import labels, schema
from spinejax.configs import unet3d
from spinejax.errors import InputError
from spinejax.losses import offset_error
from spinejax.tasks import build_task, vertebra_recognition
from spinejax.training.loop import train
from tests.support.networks import quick_jit, quick_key

SHAPE = (20, 24, 32)


def small():
    config = unet3d.get_config("debug")
    config.model.widths = (4, 8)
    config.data.cube.size = (16, 16, 16)
    config.train.steps = 3
    config.train.batch_size = 2
    return config


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("data.cube.size", (16, 16, 15), "multiples of 2"),
        ("data.preprocess.mode", "resample", "isotropic"),
        ("data.plane", "axial", "sagittal"),
        ("data.preprocess.intensity", "op_window", "clamp"),
        ("data.labels", "binary", "choose one of .*'totalsegmentator'.*'verse'"),
        ("data.normalise", "percent", "percent"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(field, value, named):
    config = small()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=named) as error:
        schema.check(config)
        build_task(config)
    assert "\n" not in str(error.value)


def test_another_vertebras_name_is_a_false_positive_and_a_false_negative():
    truth = jnp.array([[[[0, 0, 5, 5, 6, 6]]], [[[0, 0, 0, 0, 0, 7]]]])
    found = jnp.array([[[[0, 5, 5, 6, 6, 0]]], [[[0, 0, 0, 0, 0, 7]]]])
    sums = vertebra_recognition._counts(found, truth, jnp.array([1.0, 0.5]))
    np.testing.assert_array_equal(sums, [[2, 2, 2, 1], [0.5, 0, 0, 2.5]])


def test_verse_ids_become_the_classes_of_labels():
    """The loss of a network that is certain of the right classes is nearly 0, T13 and all."""
    config = small()
    config.loss.name = "ce"
    task = build_task(config)
    ids = np.array([0, *labels.VERSE_IDS])
    label = np.resize(ids, (2, 16, 16, 16)).astype(np.uint8)
    batch = {
        "image": jnp.zeros(label.shape, jnp.int16),
        "label": jnp.asarray(label),
        "stats": jnp.zeros((2, 4)),
        "weight": jnp.ones(2),
    }
    variables = quick_jit(task.init)(quick_key(0))
    _, aux = quick_jit(lambda params: task.loss(params, {}, batch, None))(variables["params"])
    tp, fp, fn, tn = np.asarray(aux.sums).sum(0)
    foreground = int((label > 0).sum())
    assert tp + fn == foreground and tp + fp == int(np.asarray(aux.mask).sum())
    assert tn <= label.size - foreground


def test_offsets_are_three_more_outputs_which_the_loss_teaches():
    config = small()
    without = build_task(config)
    config.loss.offset_weight = 0.5
    task = build_task(config)
    label = np.zeros((1, 16, 16, 16), np.uint8)
    label[:, 4:12, 4:12, :8], label[:, 4:12, 4:12, 8:] = 21, 20
    batch = {
        "image": jnp.zeros(label.shape, jnp.int16),
        "label": jnp.asarray(label),
        "stats": jnp.zeros((1, 4)),
        "weight": jnp.ones(1),
    }
    variables = quick_jit(task.init)(quick_key(0))
    head = variables["params"]["logits"]["conv"]
    assert head["bias"].shape == (labels.NUM_CLASSES + 3,)
    found = quick_jit(task.class_probability)(
        variables, batch["image"], jnp.zeros(label.shape, jnp.uint8), batch["stats"]
    )
    np.testing.assert_allclose(found[..., : labels.NUM_CLASSES].sum(-1), 1.0, rtol=1e-5)

    def value(task, head):
        params = {**variables["params"], "logits": {"conv": head}}
        return task.loss(params, {}, batch, None)[0]

    # Without the offsets the network is the same, and so is the rest of the loss.
    fewer = jax.tree.map(lambda x: x[..., : labels.NUM_CLASSES], head)
    error = offset_error(
        found[..., labels.NUM_CLASSES :],
        labels.to_contiguous(label).astype(int),
        spacing_mm=config.data.preprocess.spacing_mm,
    )
    taught, gradient = quick_jit(jax.value_and_grad(partial(value, task)))(head)
    untaught = quick_jit(partial(value, without))(fewer)
    assert float(taught - untaught) == pytest.approx(0.5 * float(error), rel=1e-4)
    assert (jnp.abs(gradient["bias"][labels.NUM_CLASSES :]) > 0).any()


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        image = rng.integers(-200, 300, SHAPE).astype(np.int16)
        mask = np.zeros(SHAPE, np.uint8)
        for row, label in enumerate((21, 20, 19)):
            mask[5:15, 6:18, 2 + 10 * row : 10 + 10 * row] = label
        image[mask > 0] += 400
        affine = np.diag([-2.0, -2.0, 2.0, 1.0])
        for folder, array in (("images", image), ("labels", mask)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            path = tmp_path / "data" / folder / f"case{i}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return tmp_path / "data"


def test_a_run_trains_validates_and_ends(data, tmp_path):
    config = small()
    config.data.root = str(data)
    config.data.val_fraction = 0.3
    config.train.eval_every_epochs = 0.5
    result = train(config, tmp_path / "run")
    assert result.step == 3 and not result.interrupted
    assert (tmp_path / "run" / "DONE").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    scores = [json.loads(line) for line in lines]
    assert any("val" in json.dumps(line) for line in scores)
    assert result.best is not None and 0 <= result.best.score <= 1
