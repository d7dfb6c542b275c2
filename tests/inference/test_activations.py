"""Filters and activations against scipy; the choice of the patch against brute force."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage, signal

from spinejax.errors import InputError
from spinejax.inference import activations
from spinejax.models.opconvnet import OPConvNet

LABELS = hnp.array_shapes(min_dims=3, max_dims=3, min_side=3, max_side=9).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 20]))
)


@settings(max_examples=150, deadline=None)
@given(LABELS, st.integers(1, 3))
def test_the_patch_has_the_most_foreground_of_the_fullest_slice(label, size):
    chosen, row, column = activations.choose_patch(label, size)
    areas = [(one > 0).sum() for one in label]
    assert chosen == areas.index(max(areas))
    amounts = {
        (i, j): (label[chosen, i : i + size, j : j + size] > 0).sum()
        for i in range(label.shape[1] - size + 1)
        for j in range(label.shape[2] - size + 1)
    }
    assert amounts[row, column] == max(amounts.values())


def test_of_equal_patches_the_middle_one_is_taken():
    label = np.zeros((3, 40, 50), bool)
    label[1, 10:31, 20:41] = True  # 15 x 15 places for a patch of 7
    assert activations.choose_patch(label, 7) == (1, 17, 27)
    assert activations.choose_patch(label, 40) == (1, 0, 5)  # as wide as the slice allows


def test_a_patch_larger_than_the_slice_is_refused():
    with pytest.raises(InputError, match="data.patches.size = 8 is larger .* 9 x 7"):
        activations.choose_patch(np.zeros((2, 9, 7), np.uint8), 8)


def filled(model, patch):
    """Variables of a network, drawn by numpy: nothing to compile."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *patch.shape, 1)))
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


def by_scipy(x, kernel, bias, *, stride, same, pool, pool_stride):
    """Convolution, ReLU and max pooling of (h, w, c) by scipy, one pair of channels at a time."""
    mode = "same" if same else "valid"
    maps = [
        sum(signal.correlate2d(x[..., i], kernel[:, :, i, o], mode) for i in range(x.shape[-1]))
        for o in range(kernel.shape[-1])
    ]
    maps = np.maximum(np.stack(maps, -1) + bias, 0)[::stride, ::stride]
    first = pool // 2
    maximum = ndimage.maximum_filter(maps, (pool, pool, 1))
    last = maps.shape[0] - (pool - 1 - first)
    return maximum[first:last:pool_stride, first:last:pool_stride]


def test_opconvnet_filters_and_pools():
    model = OPConvNet(widths=(3, 4, 5), fc_widths=(6,))
    patch = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    variables = filled(model, patch)
    arrays = activations.network_arrays(model, variables, patch)
    names = {f"{kind}_{i}" for kind in ("conv", "maxpool") for i in (1, 2, 3)}
    assert set(arrays) == names | {"patch"}
    assert all(type(a) is np.ndarray and a.dtype == np.float32 for a in arrays.values())
    np.testing.assert_array_equal(arrays["patch"], patch)
    x = patch[..., None].astype(float)
    for index, (stride, same, pool, pool_stride) in enumerate(
        [(2, False, 3, 2), (1, False, 3, 1), (1, True, 2, 1)], 1
    ):
        layer = variables["params"][f"conv_{index}"]
        np.testing.assert_array_equal(arrays[f"conv_{index}"], layer["kernel"])
        x = by_scipy(
            x,
            np.asarray(layer["kernel"], float),
            np.asarray(layer["bias"], float),
            stride=stride,
            same=same,
            pool=pool,
            pool_stride=pool_stride,
        )
        np.testing.assert_allclose(arrays[f"maxpool_{index}"], x, atol=1e-4)
    assert [arrays[f"maxpool_{i}"].shape for i in (1, 2, 3)] == [(7, 7, 3), (3, 3, 4), (2, 2, 5)]


def test_a_network_in_bfloat16_gives_float32():
    model = OPConvNet(
        widths=(2, 2),
        kernels=(3, 3),
        strides=(1, 1),
        paddings=("same", "valid"),
        pools=(2, 2),
        pool_strides=(2, 2),
        fc_widths=(),
        dtype=jnp.bfloat16,
    )
    patch = np.ones((16, 16), np.float32)
    arrays = activations.network_arrays(model, filled(model, patch), patch)
    assert set(arrays) == {"conv_1", "conv_2", "maxpool_1", "maxpool_2", "patch"}
    assert all(array.dtype == np.float32 for array in arrays.values())


class Other(nn.Module):
    """Another classifier: batch statistics, nested layers of other names."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (5, 5), name="a_later_name")(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        features = nn.Conv(4, (1, 1), name="A")(x)
        return features.mean((1, 2)), {"features": features}


def test_any_other_network_shows_its_first_filters_and_its_own_intermediates():
    model, patch = Other(), np.ones((8, 8), np.float32)
    variables = filled(model, patch)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    arrays = activations.network_arrays(model, variables, patch)
    assert set(arrays) == {"conv_1", "features", "patch"}
    assert np.isfinite(arrays["features"]).all()
    np.testing.assert_array_equal(arrays["conv_1"], variables["params"]["a_later_name"]["kernel"])
    assert arrays["features"].shape == (8, 8, 4)
