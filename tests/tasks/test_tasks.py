"""What a task refuses, and what it reads around a patch."""

import itertools
import math

import jax
import numpy as np
import pytest

from spinejax import augment, models, schema, tasks
from spinejax.configs import mrunet, opconvnet, unet
from spinejax.errors import InputError
from spinejax.tasks import patch_classification

N = 9


@pytest.mark.parametrize(
    "ranges",
    [
        dict(scale=(1.0, 1.0), rotation_deg=15.0, translation_px=4.0),
        dict(scale=(1.0, 1.0), rotation_deg=45.0, translation_px=12.0),
        dict(scale=(0.8, 1.2), rotation_deg=100.0, translation_px=5.0),
        dict(scale=(1.0, 1.0), rotation_deg=0.0, translation_px=3.0),
        dict(scale=(1.1, 1.2), rotation_deg=0.0, translation_px=0.0),
    ],
    ids=["default", "far", "small and turned", "shifted", "magnified"],
)
def test_what_augmentation_brings_into_a_patch_lies_within_its_margin(ranges):
    """The extremes of all ranges read nothing from beyond, where other pixels are."""
    margin, more = patch_classification._margin(N, **ranges), 6
    side = N + 2 * (margin + more)
    wide = np.random.default_rng(0).uniform(-500, 500, (side, side)).astype(np.float32)
    label = np.arange(side * side).reshape(side, side)
    narrow = (slice(more, side - more),) * 2
    limit, shift = ranges["rotation_deg"], ranges["translation_px"]
    angles = {-limit, 0.0, min(limit, 45.0), limit}
    shifts = itertools.product((-shift, 0.0, shift), repeat=2)
    for scale, angle, shift_px in itertools.product(ranges["scale"], angles, shifts):
        how = dict(scale=scale, angle_rad=math.radians(angle), shift_px=shift_px, fill_hu=-1e6)
        ours = augment.resample(wide[narrow], label[narrow], **how)
        full = augment.resample(wide, label, **how)
        for a, b in zip(ours, full, strict=True):
            a = np.asarray(a)[margin : margin + N, margin : margin + N]
            b = np.asarray(b)[margin + more :, margin + more :][:N, :N]
            np.testing.assert_allclose(a, b, atol=0.1)


_OF_SLICES = "apcnn, chasppraunet, dtvnet, mlpnn, multiresunet, pcnn, resunet, saunet, unet"


@pytest.mark.parametrize(
    ("experiment", "network", "instead"),
    [
        (opconvnet, unet, "densenet, mobilenet, opconvnet, padbn, resnet, vgg"),
        (unet, opconvnet, _OF_SLICES),
        (mrunet, unet, "mrunet, spineparsenet, unet3d, vnet"),
        (unet, mrunet, _OF_SLICES),
    ],
)
def test_a_network_of_another_task_is_refused(experiment, network, instead):
    config = experiment.get_config()
    config.model = network.get_config().model
    with pytest.raises(InputError, match=f"{config.model.name}.*{config.task}.*{instead}"):
        tasks.build_task(config)


SLICE_NETWORKS = [
    name for name, network in models.MODELS.items() if network.SEES == "slices" and network.LEARNS
]


@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, "hu") for name in SLICE_NETWORKS), ("unet", "zscore"), ("unet", "minmax_to_hu")],
)
def test_every_network_of_slices_sees_neighbours(name, mode):
    config = unet.get_config()
    config.model = {"name": name}
    config.data.update(size=(32, 48), normalise=mode, neighbours=2)
    task = tasks.build_task(config)
    assert task.input_shape == (32, 48, 5) and task.sample_shape == (32, 48)
    batch = {
        "image": jax.ShapeDtypeStruct((2, 32, 48, 5), np.int16),
        "label": jax.ShapeDtypeStruct((2, 32, 48), np.uint8),
        "stats": jax.ShapeDtypeStruct((2, 4), np.float32),
        "weight": jax.ShapeDtypeStruct((2,), np.float32),
    }
    variables = jax.eval_shape(task.init, jax.random.key(0))
    loss, aux = jax.eval_shape(
        lambda held, batch: task.loss(held["params"], held.get("batch_stats", {}), batch, None),
        variables,
        batch,
    )
    assert loss.shape == () and aux.mask.shape == (2, 32, 48)


def test_neighbours_are_normalised_by_their_own_scan(monkeypatch):
    """Each channel as if it were a slice by itself."""
    config = unet.get_config("debug")
    config.data.update(size=(8, 8), normalise="zscore", neighbours=1)
    config.model.widths = (2, 2)
    seen = []

    def apply(self, variables, x, **_):
        seen.append(x)
        return x[..., :1], {}

    monkeypatch.setattr(models.UNet, "apply", apply)
    task = tasks.build_task(config)
    image = np.random.default_rng(0).integers(-900, 700, (2, 8, 8, 3)).astype(np.int16)
    stats = np.array([[0, 100, -900, 700], [50, 200, -900, 700]], np.float32)
    batch = {"image": image, "label": image[..., 0] > 0, "stats": stats, "weight": np.ones(2)}
    task.loss({}, {}, batch, None)
    expected = (image - stats[:, 0, None, None, None]) / stats[:, 1, None, None, None]
    np.testing.assert_allclose(seen[0], expected, rtol=1e-5)


@pytest.mark.parametrize("experiment", [opconvnet, mrunet])
def test_patches_and_cubes_have_no_neighbours(experiment):
    config = experiment.get_config()
    with config.unlocked():
        config.data.neighbours = 1
    with pytest.raises(InputError, match="the config has no field data.neighbours"):
        schema.check(config)


def test_a_share_of_masks_with_the_sacrum_is_one():
    config = mrunet.get_config()
    config.data.cube.prior_sacrum = 0.8
    with pytest.raises(InputError, match=r"data\.cube\.prior_sacrum=0\.8 must be .* at most 0\.75"):
        schema.check(config)
