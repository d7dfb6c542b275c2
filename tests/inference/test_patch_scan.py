"""Every pixel by the patch around it: without cutting patches, with, and what lies outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from spinejax import schema
from spinejax.data import preprocess
from spinejax.errors import InputError
from spinejax.inference import patch_scan
from spinejax.io import scanfile
from spinejax.models.opconvnet import OPConvNet

NO_STATS = np.zeros(4, np.float32)
NARROW = dict(widths=(8, 12, 20), fc_widths=(24, 16))  # table 1 but for the widths

# name: side of the patch, fields of the network
MEMBERS = {
    "table 1": (32, {}),
    "24 pixels, one hidden layer, one logit": (
        24,
        dict(pools=(3, 2, 2), fc_widths=(16,), out_channels=1),
    ),
    "33 pixels, no ReLU between the last layers": (33, dict(fc_relu=False)),
    "no strides": (20, dict(strides=(1, 1, 1), pools=(2, 2, 2), pool_strides=(2, 1, 1))),
    "kernels of 5": (32, dict(kernels=(5, 3, 5))),
    "even kernels": (32, dict(kernels=(4, 2, 4), pools=(2, 3, 2))),
    "padded from the second stage on": (24, dict(paddings=("valid", "same", "same"))),
    "padded second stage, with stride": (
        32,
        dict(paddings=("valid", "same", "valid"), strides=(1, 2, 1), pools=(2, 2, 1)),
    ),
    "kernel wider than what it is given": (32, dict(kernels=(3, 3, 7))),
    "no padding": (32, dict(paddings=("valid", "valid", "valid"), pools=(3, 2, 2))),
    "padding that adds nothing": (32, dict(paddings=("valid", "same", "same"), kernels=(3, 1, 1))),
    "two stages": (
        24,
        dict(
            widths=(8, 20),
            kernels=(5, 5),
            strides=(1, 2),
            paddings=("valid", "same"),
            pools=(3, 3),
            pool_strides=(2, 1),
        ),
    ),
    "one stage": (
        20,
        dict(
            widths=(8,),
            kernels=(5,),
            strides=(2,),
            paddings=("valid",),
            pools=(3,),
            pool_strides=(2,),
        ),
    ),
}


def to_input(image_hu, stats):
    return image_hu.astype(jnp.float32) / 1500


def member(patch, **fields):
    """A network with random weights and biases, drawn by NumPy: nothing to compile."""
    model = OPConvNet(**{**NARROW, **fields})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, patch, patch, 1)))
    rng = np.random.default_rng(patch)

    def draw(array):
        inputs = max(1, np.prod(array.shape[:-1]))
        return (rng.normal(size=array.shape) * np.sqrt(2 / inputs)).astype(np.float32) / 2

    return model, jax.tree.map(draw, shapes)


def sparse_slice(height, width, seed=0):
    """Zeros but for a block of bone at the border, one inside, and a single bright pixel."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.int16)
    image[: height // 4, width // 3 : width // 2] = 400
    image[height // 2 : height // 2 + 9, : width // 5] = 900
    image = np.where(image > 0, image + rng.integers(-300, 300, image.shape), 0).astype(np.int16)
    image[-2, -3] = 1500
    return image


def scanner(model, variables, patch, **options):
    options = dict(fill_hu=0, padding="zero", batch_size=200, tile=24) | options
    return patch_scan.make_slice_logits(model, variables, patch=patch, to_input=to_input, **options)


def by_hand(model, variables, image, patch, pad):
    """Logits (h, w, classes): cut, row by row, from a slice that `pad` widens."""
    before = patch // 2
    padded = pad(image, (before, patch - 1 - before))
    apply = jax.jit(lambda x: model.apply(variables, x[..., None], train=False)[0])
    rows = []
    for y in range(image.shape[0]):
        cut = [padded[y : y + patch, x : x + patch] for x in range(image.shape[1])]
        assert all(c[before, before] == image[y, x] for x, c in enumerate(cut))
        rows.append(np.asarray(apply(np.stack(cut).astype(np.float32) / 1500)))
    return np.stack(rows)


def assert_same(logits, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * scale)
    if expected.shape[-1] == 2:
        # No label differs where the logits do by more than their rounding.
        margin = np.abs(expected[..., 1] - expected[..., 0])
        clear = margin > 1e-5 * scale
        assert clear.mean() > 0.99
        label, wanted = (a[..., 1] > a[..., 0] for a in (logits, expected))
        np.testing.assert_array_equal(label[clear], wanted[clear])


@pytest.mark.parametrize("name", MEMBERS)
def test_logits_are_those_of_patches_cut_one_by_one(name):
    patch, fields = MEMBERS[name]
    model, variables = member(patch, **fields)
    assert patch_scan.split_network(model, patch) is not None
    image = sparse_slice(41, 53)
    expected = by_hand(model, variables, image, patch, np.pad)
    assert np.ptp(expected) > 1e-2 * np.abs(expected).max()
    assert_same(scanner(model, variables, patch)(image, NO_STATS), expected)


def test_nothing_changes_if_empty_patches_are_not_skipped():
    model, variables = member(32)
    image = sparse_slice(41, 53)
    skipped = scanner(model, variables, 32)(image, NO_STATS)
    assert_same(scanner(model, variables, 32, skip_empty=False)(image, NO_STATS), skipped)


def test_in_bfloat16_it_is_as_near_to_float32_as_patches_are():
    image = sparse_slice(30, 40)
    model, variables = member(32)
    half, _ = member(32, dtype=jnp.bfloat16)
    exact = scanner(model, variables, 32)(image, NO_STATS)
    errors = [
        np.abs(scanner(half, variables, 32, without_patches=way)(image, NO_STATS) - exact)
        for way in (True, False)
    ]
    assert errors[0].max() < 0.05 * np.abs(exact).max()
    assert errors[0].mean() < 1.2 * errors[1].mean()


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_any_member_of_the_family(data):
    stages = data.draw(st.integers(1, 3))

    def per_stage(values):
        return tuple(data.draw(st.lists(values, min_size=stages, max_size=stages)))

    fields = dict(
        widths=per_stage(st.integers(1, 18)),
        kernels=per_stage(st.integers(1, 5)),
        strides=per_stage(st.integers(1, 2)),
        paddings=("valid", *per_stage(st.sampled_from(["valid", "same"]))[1:]),
        pools=per_stage(st.integers(1, 3)),
        pool_strides=per_stage(st.integers(1, 2)),
    )
    patch = data.draw(st.integers(8, 33))
    try:
        OPConvNet(**fields).activation_sizes(patch)
    except InputError:
        return
    model, variables = member(patch, **fields)
    image = np.random.default_rng(patch).integers(0, 1500, (7, 30)).astype(np.int16)
    patches = scanner(model, variables, patch, without_patches=False)
    assert_same(
        scanner(model, variables, patch, tile=16)(image, NO_STATS), patches(image, NO_STATS)
    )


@pytest.mark.parametrize("shape", [(5, 70), (1, 3), (33, 18)])
@pytest.mark.parametrize("padding", schema.choices("predict.padding"))
def test_slices_smaller_than_a_patch(shape, padding):
    model, variables = member(32)
    image = np.random.default_rng(0).integers(0, 1500, shape).astype(np.int16)

    def pad(image, around):
        if padding == "zero":
            return np.pad(image, around)
        for axis, length in enumerate(image.shape):  # by index: back and forth, ends once
            period = max(1, 2 * length - 2)
            at = np.arange(-around[0], length + around[1]) % period
            image = image.take(np.minimum(at, period - at), axis)
        return image

    expected = by_hand(model, variables, image, 32, pad)
    assert_same(scanner(model, variables, 32, padding=padding)(image, NO_STATS), expected)


def test_an_unknown_padding_is_refused():
    model, variables = member(32)
    with pytest.raises(InputError, match="predict.padding = 'reflekt'.*did you mean 'reflect'"):
        scanner(model, variables, 32, padding="reflekt")


def test_a_patch_too_small_for_the_layers_is_refused():
    model, variables = member(32)
    with pytest.raises(InputError, match="data.patches.size"):
        scanner(model, variables, 8)


class Twice:
    """Stands for networks of another kind; its logit 1 is the patch's centre."""

    def __init__(self):
        self.shapes = []

    def apply(self, variables, x, train):
        self.shapes.append(x.shape)
        half = x.shape[1] // 2
        centre = x[:, half, half, 0] * variables["scale"]
        return jnp.stack([jnp.zeros_like(centre), centre], -1), {}


@pytest.mark.parametrize("patch", [1, 5, 6])
def test_other_networks_get_patches_whose_centre_is_the_pixel(patch):
    image = np.random.default_rng(0).integers(-100, 100, (9, 14)).astype(np.int16)
    image[2:8, 3:12] = -7
    logits = scanner(Twice(), {"scale": 3.0}, patch, fill_hu=-7, batch_size=16)(image, NO_STATS)
    np.testing.assert_allclose(logits[..., 1], image * np.float32(3 / 1500), rtol=1e-6)


def test_padding_in_the_first_layer_falls_back_to_patches():
    model, variables = member(16, paddings=("same", "valid", "same"), pools=(2, 2, 1))
    assert patch_scan.split_network(model, 16) is None
    image = sparse_slice(20, 30)
    expected = by_hand(model, variables, image, 16, np.pad)
    assert_same(scanner(model, variables, 16)(image, NO_STATS), expected)


def test_patches_with_content_are_found():
    rng = np.random.default_rng(0)
    for patch in (1, 4, 7):
        padded = np.full((30, 40), -5, np.int16)
        padded[tuple(rng.integers(0, 30, (2, 4)))] = rng.integers(-100, 100, 4)
        found = patch_scan.patches_with_content(padded, patch, -5)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (patch, patch))
        np.testing.assert_array_equal(found, (windows != -5).any((2, 3)))


def test_tiles_cover_each_wanted_pixel_once():
    rng = np.random.default_rng(0)
    for share in (0.001, 0.02, 1.0):
        wanted = rng.random((70, 90)) < share
        count = np.zeros((100, 120), int)
        for top, left in patch_scan._tiles(wanted, 16):
            assert wanted[top : top + 16, left : left + 16].any()
            count[top : top + 16, left : left + 16] += 1
        assert count.max() <= 1
        assert count[:70, :90][wanted].all()


def test_an_empty_slice_costs_one_patch():
    model = Twice()
    logits = scanner(model, {"scale": 1.0}, 8, fill_hu=3)(np.full((40, 50), 3, np.int16), NO_STATS)
    assert model.shapes == [(1, 8, 8, 1)]
    np.testing.assert_allclose(logits[..., 1], 3 / 1500, rtol=1e-6)


@pytest.mark.parametrize("without_patches", [True, False])
def test_everything_is_compiled_once_for_slices_of_all_sizes(without_patches):
    model, variables = member(32)
    traced = []

    def counted(image_hu, stats):
        traced.append((image_hu.shape, stats.shape))
        return to_input(image_hu, stats)

    scan = patch_scan.make_slice_logits(
        model,
        variables,
        patch=32,
        to_input=counted,
        fill_hu=0,
        padding="zero",
        batch_size=64,
        tile=16,
        without_patches=without_patches,
    )
    for shape in ((20, 30), (50, 17), (9, 9)):
        scan(sparse_slice(*shape), NO_STATS)
    rows = -(-64 // len(jax.local_devices())) * len(jax.local_devices())
    many = ((47, 47), (4,)) if without_patches else ((rows, 32, 32), (rows, 4))
    assert traced == [((1, 32, 32), (1, 4)), many]


def test_statistics_of_the_scan_reach_the_input():
    model, variables = member(32)
    image = sparse_slice(12, 40)

    def shifted(image_hu, stats):
        return (image_hu - stats[..., 0, None, None]) / stats[..., 1, None, None]

    logits = [
        patch_scan.make_slice_logits(
            model,
            variables,
            patch=32,
            to_input=function,
            fill_hu=0,
            padding="zero",
            batch_size=64,
            without_patches=without_patches,
        )(image, np.array([0, 1500, 0, 0], np.float32))
        for function, without_patches in ((to_input, True), (shifted, True), (shifted, False))
    ]
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits[2], logits[0], rtol=1e-5, atol=1e-5)


def test_a_stack_gives_probabilities_and_tells_of_its_progress():
    model, variables = member(32)
    stack = np.stack([sparse_slice(20, 30, seed) for seed in range(3)])
    predict = patch_scan.make_stack_predictor(
        model, variables, patch=32, to_input=to_input, fill_hu=0, padding="zero", batch_size=64
    )
    done = []
    probability = predict(stack, NO_STATS, done.append)
    assert done == [1, 1, 1]
    assert probability.dtype == np.float32
    logits = np.stack([scanner(model, variables, 32)(image, NO_STATS) for image in stack])
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(probability, softmax[..., 1], rtol=1e-4)


def test_probability_of_one_or_two_logits():
    one = patch_scan.foreground_probability(np.array([[-2000.0], [0.0], [1.0]], np.float32))
    np.testing.assert_allclose(one, [0, 0.5, 1 / (1 + np.exp(-1))], rtol=1e-6)
    with pytest.raises(ValueError, match="one class or an even number"):
        patch_scan.foreground_probability(np.zeros((4, 3)))


def test_of_four_classes_the_probabilities_of_the_last_two_add_up():
    logits = np.random.default_rng(0).normal(0, 9, (7, 5, 4)).astype(np.float32)
    logits[0, 0] = (-2000, 0, 2000, 2000)
    found = patch_scan.foreground_probability(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, special.softmax(logits, -1)[..., 2:].sum(-1), atol=1e-6)


def test_every_label_of_a_real_slice_with_the_network_of_table_1(real_data):
    volume = scanfile.read_volume(
        real_data / "verse" / "rawdata" / "sub-verse014" / "sub-verse014_ct.nii.gz"
    )
    how = preprocess.SlicePreprocess(
        plane="axial", intensity="op_window", clamp_hu=(100.0, 1500.0), mode="native"
    )
    _, images, _ = next(preprocess.preprocess_slabs(volume, how))
    image = images[len(images) // 2]
    model, variables = member(32, widths=(64, 128, 256), fc_widths=(1024, 256))

    def scan(**options):
        return scanner(model, variables, 32, tile=patch_scan.TILE, **options)(image, NO_STATS)

    # Half of the pixels of either class: the last bias moves to the widest gap near the median.
    difference = np.sort((np.diff(scan(skip_empty=False))).ravel())
    middle = difference[len(difference) * 2 // 5 : len(difference) * 3 // 5]
    gap = np.argmax(np.diff(middle))
    variables["params"]["fc_3"]["bias"][0] += (middle[gap] + middle[gap + 1]) / 2

    patches, logits = scan(without_patches=False), scan()
    label, wanted = (a[..., 1] > a[..., 0] for a in (logits, patches))
    assert 0.3 < wanted.mean() < 0.7
    np.testing.assert_array_equal(label, wanted)
    np.testing.assert_allclose(logits, patches, rtol=0, atol=1e-5 * np.abs(patches).max())
