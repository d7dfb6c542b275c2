"""Labels of patches against scipy's distances, and what their four classes count as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, special

from spinejax.configs import opconvnet, redundant_labels
from spinejax.errors import InputError
from spinejax.tasks import Keys, build_task, patch_classification
from tests.support.networks import apply, quick_jit, quick_key

DEEP, NEAR, INTERIOR, EDGE = range(4)


@pytest.mark.parametrize(
    ("pixel_mm", "edge_mm", "near_mm"), [(1.0, 2.0, 5.0), (0.7, 1.4, 2.1), (1.3, 0.0, 4.0)]
)
def test_classes_are_those_of_distance_maps_of_the_whole_slice(pixel_mm, edge_mm, near_mm):
    n = 14
    noise = np.random.default_rng(0).normal(size=(60, 50))
    bone = ndimage.gaussian_filter(noise, 3) > 0.05
    inwards, outwards = (
        ndimage.distance_transform_edt(part, sampling=pixel_mm) for part in (bone, ~bone)
    )
    slack = 1e-9  # a multiple of the side of a pixel may be rounded up
    expected = np.where(
        bone,
        np.where(inwards <= edge_mm + slack, EDGE, INTERIOR),
        np.where(outwards <= near_mm + slack, NEAR, DEEP),
    )
    assert set(np.unique(expected)) >= {DEEP, NEAR, INTERIOR}
    patches = np.lib.stride_tricks.sliding_window_view(bone, (n, n))
    found = patch_classification._redundant(
        jnp.asarray(patches.reshape(-1, n, n)), pixel_mm=pixel_mm, edge_mm=edge_mm, near_mm=near_mm
    )
    centres = expected[n // 2 :, n // 2 :][: patches.shape[0], : patches.shape[1]]
    np.testing.assert_array_equal(found, centres.ravel())


def small(**fields):
    config = redundant_labels.get_config("debug")
    config.update_from_flattened_dict(
        {"augment.geometry": False, "augment.intensity": False, **fields}
    )
    return config


def test_loss_and_counts_are_those_of_four_classes_and_of_two():
    task = build_task(small())
    rng = np.random.default_rng(1)
    label = np.zeros((6, 32, 32), np.uint8)
    label[1, 15:18, 15:18] = 20  # edge
    label[2] = 20  # interior
    label[3, :, 20:] = 20  # near
    label[4, :, 2:] = 20  # interior
    batch = dict(
        image=rng.integers(0, 1500, label.shape).astype(np.int16),
        label=label,
        stats=np.zeros((6, 4), np.float32),
        weight=np.ones(6, np.float32),
    )
    truth = np.array([DEEP, EDGE, INTERIOR, NEAR, INTERIOR, DEEP])
    variables = quick_jit(task.init)(quick_key(0))
    # Large logits of all kinds, so that no pair is a tie.
    variables["params"]["fc_3"]["kernel"] = jnp.asarray(rng.normal(0, 90, (16, 4)), jnp.float32)
    loss = quick_jit(lambda params: task.loss(params, {}, batch, None))
    value, aux = loss(variables["params"])
    x = (batch["image"] / 1500).astype(np.float32)[..., None]
    logits = np.asarray(apply(task.model, variables, x)[0], np.float64)
    assert logits.shape == (6, 4)
    logs = special.log_softmax(logits, -1)
    np.testing.assert_allclose(value, -logs[np.arange(6), truth].mean(), rtol=1e-3)
    bone = special.softmax(logits, -1)[:, 2:].sum(-1) > 0.5
    np.testing.assert_array_equal(aux.mask, bone)
    right = np.stack(
        [bone & (truth > 1), bone & (truth < 2), ~bone & (truth > 1), ~bone & (truth < 2)], -1
    )
    np.testing.assert_array_equal(aux.sums, right)


def test_the_dense_scan_has_the_probability_of_both_classes_of_bone():
    task = build_task(small(**{"predict.batch_size": 16}))
    variables = quick_jit(task.init)(quick_key(0))
    image = np.random.default_rng(2).integers(0, 1500, (1, 40, 36)).astype(np.int16)
    found = task.stack_predictor(variables)(image, np.zeros(4, np.float32), lambda n: None)
    patch = image[:, 5:37, 3:35]  # of the pixel in row 21 and column 19
    logits = apply(task.model, variables, (patch / 1500).astype(np.float32)[..., None])[0]
    np.testing.assert_allclose(
        found[0, 21, 19], special.softmax(logits, -1)[0, 2:].sum(), atol=1e-4
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"data.preprocess.mode": "native"},
            r"=redundant with .*mode=native: .*resample",
        ),
        ({"data.redundant.near_mm": 15.5}, r"near_mm=15\.5 must be at most 15 mm.* 32 pixels of 1"),
        (
            {"data.redundant.edge_mm": 8.0, "data.patches.size": 15},
            r"edge_mm=8 must be at most 7",
        ),
    ],
)
def test_distances_that_a_patch_cannot_show_are_refused(fields, said):
    with pytest.raises(InputError, match=said) as error:
        build_task(small(**fields))
    assert "\n" not in str(error.value)


# Pretraining


def rbm_task(number=1, **fields):
    config = opconvnet.get_config("net=padbn,debug")
    config.update_from_flattened_dict(
        {"model.rbm": number, "augment.geometry": False, "augment.intensity": False, **fields}
    )
    return build_task(config)


@pytest.mark.parametrize("number", [1, 2])
def test_a_pretraining_moves_the_parameters_of_its_layer_alone(number):
    task = rbm_task(number)
    rng = np.random.default_rng(0)
    batch = dict(
        image=rng.integers(0, 1500, (4, 32, 32)).astype(np.int16),
        label=np.zeros((4, 32, 32), np.uint8),
        stats=np.zeros((4, 4), np.float32),
        weight=np.array([1, 1, 1, 0], np.float32),
    )
    variables = quick_jit(task.init)(quick_key(0))
    keys = Keys(jax.random.split(jax.random.key(1), 4), jax.random.key(2))
    step = quick_jit(jax.value_and_grad(task.loss, has_aux=True))
    (value, aux), gradient = step(variables["params"], {}, batch, keys)
    moved = {name for name, leaf in gradient.items() if any(map(np.any, jax.tree.leaves(leaf)))}
    assert moved == {f"fc_{number}", f"visible_{number}"}
    # The value is the error of the reconstruction, as in validation; the labels do not count.
    params = jax.tree.map(np.asarray, variables["params"])
    units = batch["image"].reshape(4, -1)[:3] / 1500
    for one in range(1, number):
        units = special.expit(units @ params[f"fc_{one}"]["kernel"] + params[f"fc_{one}"]["bias"])
    layer = params[f"fc_{number}"]
    hidden = special.expit(units @ layer["kernel"] + layer["bias"])
    again = special.expit(hidden @ layer["kernel"].T + params[f"visible_{number}"])
    np.testing.assert_allclose(value, ((again - units) ** 2).mean(), rtol=1e-4)
    in_validation, _ = quick_jit(lambda params: task.loss(params, {}, batch, None))(
        variables["params"]
    )
    np.testing.assert_allclose(in_validation, value, rtol=1e-5)
    batch["label"] = np.full((4, 32, 32), 20, np.uint8)
    (same, _), _ = step(variables["params"], {}, batch, keys)
    np.testing.assert_array_equal(same, value)
    np.testing.assert_allclose(np.asarray(aux.sums).sum(-1), units.shape[1] * batch["weight"])


def test_a_pretraining_needs_units_from_0_to_1_and_cannot_segment():
    with pytest.raises(InputError, match=r"^data\.normalise=sym with model\.rbm=1: .*=unit$"):
        rbm_task(**{"data.normalise": "sym"})
    with pytest.raises(InputError, match="pretrained layer 2 .* no labels; .*train.init_from=RUN"):
        rbm_task(2).stack_predictor({})
