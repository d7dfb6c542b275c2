"""What a task refuses, and what it reads around a patch."""

import itertools
import math

import numpy as np
import pytest

from spinejax import augment, schema, tasks
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


@pytest.mark.parametrize(
    ("experiment", "network", "instead"),
    [
        (opconvnet, unet, "densenet, mobilenet, opconvnet, resnet, vgg"),
        (unet, opconvnet, "apcnn, chasppraunet, mlpnn, pcnn, unet"),
        (mrunet, unet, "mrunet, unet3d, vnet"),
        (unet, mrunet, "apcnn, chasppraunet, mlpnn, pcnn, unet"),
    ],
)
def test_a_network_of_another_task_is_refused(experiment, network, instead):
    config = experiment.get_config()
    config.model = network.get_config().model
    with pytest.raises(InputError, match=f"{config.model.name}.*{config.task}.*{instead}"):
        tasks.build_task(config)


def test_a_share_of_masks_with_the_sacrum_is_one():
    config = mrunet.get_config()
    config.data.cube.prior_sacrum = 0.8
    with pytest.raises(InputError, match=r"data\.cube\.prior_sacrum=0\.8 must be .* at most 0\.75"):
        schema.check(config)
