"""SpineParseNet's GCSN: published counts, its parts against other libraries, loss, config."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage, special

from spinejax import labels, schema
from spinejax.cli import main
from spinejax.configs import spineparsenet, unet3d
from spinejax.data import normalise, preprocess
from spinejax.errors import InputError
from spinejax.losses import offset_error
from spinejax.models import build_model
from spinejax.models.layer_table import count_parameters, flops
from spinejax.models.layers import NORMS
from spinejax.models.resunet import ResUNet
from spinejax.models.spineparsenet import GraphReasoning, adjacency, depthwise, interpolate
from spinejax.tasks import build_task
from tests.support.cubes import shapes
from tests.support.networks import apply, normal, quick_jit

SMALL = dict(
    name="spineparsenet",
    widths=(4, 8, 8, 8, 12),
    exit_widths=(8, 8),
    skip_widths=(4, 8),
    decoder_widths=(24, 8),
)

# One block less, as few as the decoders allow: what is derived is traced and compiled faster.
FEWEST = {**SMALL, "widths": (4, 8, 8, 8)}


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(("classes", "published"), [(20, 4_231_044), (2, 4_224_114)])
def test_network_has_the_count_of_the_public_code(classes, published, norm):
    model = build_model(dict(name="spineparsenet", norm=norm), out_channels=classes)
    parameters = shapes(model, 2, 16, 16)[0]["params"]
    assert count_parameters(parameters) == published
    encoder = [v for k, v in parameters.items() if k.startswith(("stem", "block", "exit"))]
    assert count_parameters(encoder) == 3_118_280


@pytest.mark.parametrize(("classes", "published"), [(20, 11_784_852), (2, 11_779_074)])
def test_the_network_that_refines_has_the_count_of_the_public_code(classes, published):
    block = dict(name="spineparsenet", refine_widths=(32, 64, 128, 256, 512))
    model = build_model(block, out_channels=classes)
    parameters = shapes(model, 16, 16, 16)[0]["params"]
    assert count_parameters(parameters["refine"]) == published


@pytest.mark.parametrize(
    ("strides", "rate"), [((1, 1, 1), 1), ((1, 2, 2), 1), ((2, 2, 2), 1), ((1, 1, 1), 2)]
)
@pytest.mark.usefixtures("form")
def test_depthwise_convolution_is_that_of_flax(strides, rate):
    x, kernel = normal(0, 2, 5, 6, 7, 3), normal(1, 3, 3, 3, 1, 3)
    conv = nn.Conv(
        3,
        (3, 3, 3),
        strides,
        padding=rate,
        kernel_dilation=rate,
        feature_group_count=3,
        use_bias=False,
    )
    found = depthwise.__wrapped__(x, kernel, strides, rate)
    np.testing.assert_allclose(found, conv.apply({"params": {"kernel": kernel}}, x), atol=1e-4)


def test_operations_of_a_depthwise_convolution_are_the_closed_form():
    x, kernel = jnp.zeros((1, 4, 6, 8, 5)), jnp.zeros((3, 3, 3, 1, 5))
    count = flops(lambda x, kernel: depthwise(x, kernel, (1, 2, 2)), x, kernel)
    assert count == 2 * (4 * 3 * 4 * 5) * 27


@pytest.mark.parametrize("sides", [(3, 8, 10), (6, 7, 2), (5, 4, 1)])
def test_interpolation_is_that_of_scipy_with_corners_on_corners(sides):
    x = np.asarray(normal(0, 2, 3, 4, 5, 2))
    factors = (1, *(new / old for new, old in zip(sides, x.shape[1:4], strict=True)), 1)
    expected = ndimage.zoom(x, factors, order=1, grid_mode=False)
    np.testing.assert_allclose(interpolate(jnp.asarray(x), sides), expected, atol=1e-5)


def test_interpolation_repeats_a_single_voxel():
    x = normal(0, 2, 1, 1, 1, 3)
    np.testing.assert_allclose(interpolate(x, (2, 3, 4)), jnp.tile(x, (1, 2, 3, 4, 1)))


def test_the_graph_links_each_vertebra_to_those_that_may_follow():
    links = adjacency(labels.NUM_CLASSES + 3)
    ids = (0, *labels.VERSE_IDS)

    def neighbours(name):
        at = ids.index(labels.id_of(name))
        return {labels.name(ids[i]) for i in np.flatnonzero(links[at]) if i != at}

    assert neighbours("C1") == {"C2"}
    assert neighbours("T12") == {"T11", "T13", "L1"}
    assert neighbours("T13") == {"T12", "L1"}
    assert neighbours("L6") == {"L5"}
    for alone in (0, *range(labels.NUM_CLASSES, len(links))):
        np.testing.assert_array_equal(np.flatnonzero(links[alone]), [alone])
        assert links[alone, alone] == 1


@pytest.mark.parametrize("nodes", [2, 20, labels.NUM_CLASSES])
def test_the_normalised_adjacency_keeps_the_roots_of_the_degrees_and_nothing_grows(nodes):
    links = adjacency(nodes)
    np.testing.assert_array_equal(links, links.T)
    degrees = (links > 0).sum(1)
    np.testing.assert_allclose(links @ np.sqrt(degrees), np.sqrt(degrees), rtol=1e-6)
    assert np.abs(np.linalg.eigvalsh(links)).max() == pytest.approx(1)


def test_graph_reasoning_is_its_formula():
    module, x = GraphReasoning(3, norm="none"), normal(0, 2, 2, 3, 2, 4)
    variables = module.init(jax.random.key(0), x, train=False)
    found, logits = module.apply(variables, x, train=False)
    parameters = dict(variables["params"])
    parameters["back"] = parameters["back"]["conv"]
    kernel = {name: np.asarray(leaf["kernel"]) for name, leaf in parameters.items()}
    for one, got, given in zip(x.reshape(2, -1, 4), found.reshape(2, -1, 4), logits, strict=True):
        one = np.asarray(one, np.float64)
        np.testing.assert_allclose(given.reshape(-1, 3), one @ kernel["classes"], atol=1e-5)
        share = special.softmax(one @ kernel["classes"], axis=1)
        nodes = np.maximum((share / share.sum(0)).T @ (one @ kernel["pool"]), 0)
        for step in (1, 2, 3):
            nodes = np.maximum(adjacency(3) @ nodes @ kernel[f"graph{step}"], 0)
        returned = np.maximum(share @ nodes @ kernel["back"], 0)
        expected = np.maximum(one @ kernel["skip"], 0) + returned
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_shapes_are_those_of_the_strides_whatever_the_sides(norm):
    model = build_model({**SMALL, "norm": norm}, out_channels=3)
    variables, out = shapes(model, 3, 16, 20, channels=2, batch=2)
    assert out == {
        "stem": (3, 8, 10, 8),
        "block1": (3, 4, 5, 8),
        "block2": (3, 2, 3, 8),
        "block3": (3, 1, 2, 12),
        "encoder": (3, 1, 2, 8),
        "pyramid": (3, 1, 2, 24),
        "coarse": (3, 4, 5, 24),
        "fine": (3, 8, 10, 8),
        "auxiliary": (3, 16, 20, 3),
    }
    assert ("batch_stats" in variables) == (norm == "batch")


@pytest.fixture(scope="module")
def learnt():
    """Return a task with auxiliary logits and offsets, a batch, and its network, run and input."""
    config = spineparsenet.get_config("debug")
    # Without strides no map has a single voxel, of which a group norm leaves nothing.
    config.model.update({**FEWEST, "strides": (1, 1, 1), "refine_widths": (4, 8)})
    config.data.cube.size = (4, 8, 8)
    config.loss.update(auxiliary_weight=0.3, offset_weight=1.0)
    task = build_task(config)
    label = np.zeros((2, 4, 8, 8), np.uint8)
    label[:, 1:3, 2:6, :4], label[:, 1:3, 2:6, 4:] = 21, 20
    batch = {
        "image": 300 * normal(0, 2, 4, 8, 8),
        "label": jnp.asarray(label),
        "stats": jnp.zeros((2, 4)),
        "weight": jnp.ones(2),
    }
    how = preprocess.from_config(config.data)
    x = normalise.network_input(batch["image"], config.data.normalise, how.range_hu, jnp.zeros(4))
    leaves, tree = jax.tree.flatten(jax.eval_shape(task.init, jax.random.key(0))["params"])
    leaves = [0.3 * normal(at, *leaf.shape) for at, leaf in enumerate(leaves)]
    parameters = jax.tree.unflatten(tree, leaves)

    @quick_jit
    def run(parameters, of_logits, of_others):
        """Return logits, intermediates, and gradients of the weighted sum of squares of logits."""

        def squares(parameters):
            logits, out = task.model.apply({"params": parameters}, x[..., None])
            others = jnp.sum(out["coarse_logits"] ** 2) + jnp.sum(out["auxiliary"] ** 2)
            return of_logits * jnp.sum(logits**2) + of_others * others, (logits, out)

        gradients, output = jax.grad(squares, has_aux=True)(parameters)
        return *output, gradients

    return task, batch, x, parameters, run


def test_the_loss_has_the_cross_entropy_of_the_nodes_that_voxels_belong_to(learnt):
    task, batch, _, parameters, run = learnt
    logits, out, _ = run(parameters, 1.0, 1.0)
    found = quick_jit(lambda p: task.loss(p, {}, batch, None)[0])(parameters)
    truth = labels.to_contiguous(np.asarray(batch["label"])).astype(int)

    def entropy(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, truth).mean()

    expected = 0.3 * entropy(out["auxiliary"][..., : labels.NUM_CLASSES])
    for each in (logits, out["coarse_logits"]):
        classes, offsets = jnp.split(each, [labels.NUM_CLASSES], -1)
        expected += entropy(classes) + offset_error(offsets, truth, spacing_mm=2.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_gradients_are_finite_and_reach_every_parameter(learnt):
    *_, parameters, run = learnt
    for path, gradient in jax.tree.leaves_with_path(run(parameters, 1.0, 1.0)[-1]):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.abs(gradient).max() > 0, path


def test_the_3d_network_learns_nothing_from_the_one_that_refines_its_slices(learnt):
    *_, parameters, run = learnt
    for name, group in run(parameters, 1.0, 0.0)[-1].items():
        sizes = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(group)]
        assert all(sizes) if name == "refine" else not any(sizes), name


def test_the_2d_network_sees_a_slice_of_the_image_and_of_the_coarse_logits(learnt):
    task, _, x, parameters, run = learnt
    logits, out, _ = run(parameters, 1.0, 1.0)
    refine = ResUNet(out_channels=logits.shape[-1], widths=task.model.refine_widths)
    seen = jnp.concatenate([x[..., None], out["coarse_logits"]], -1)[1, 2:3]
    expected = apply(refine, {"params": parameters["refine"]}, seen)[0]
    np.testing.assert_allclose(logits[1, 2], expected[0], atol=1e-3)


def test_a_network_without_auxiliary_logits_is_refused_in_one_line():
    config = unet3d.get_config("debug")
    config.loss.auxiliary_weight = 0.3
    words = r"loss\.auxiliary_weight=0\.3 .*model\.name='unet3d' .* choose .* spineparsenet$"
    with pytest.raises(InputError, match=words) as error:
        build_task(config)
    assert "\n" not in str(error.value)


def test_bfloat16_keeps_float32_parameters_and_logits():
    model = build_model(SMALL, dtype=jnp.bfloat16, out_channels=3)
    x = jax.ShapeDtypeStruct((1, 4, 16, 16, 1), jnp.float32)
    (logits, out), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x), x
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert logits.dtype == out.pop("auxiliary").dtype == jnp.float32
    assert {map_.dtype for map_ in out.values()} == {jnp.dtype(jnp.bfloat16)}


def test_remat_computes_the_blocks_again_in_the_backward_pass():
    x = jnp.zeros((1, 4, 16, 16, 1))
    counts = []
    for remat in (False, True):
        model = build_model(FEWEST, out_channels=3, remat=remat)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        gradient = jax.grad(lambda v, m=model: jnp.sum(m.apply(v, x)[0]))
        counts.append((jax.tree.structure(variables), flops(gradient, variables)))
    (plain, cost), (same, more) = counts
    assert plain == same and more > 1.05 * cost


def test_config_is_accepted_and_its_debug_cube_fits():
    for argument in (None, "debug"):
        config = spineparsenet.get_config(argument)
        schema.check(config)
        model = build_model(config.model, out_channels=labels.NUM_CLASSES)
        shapes(model, *config.data.cube.size)


def test_summarize_prints_the_count_for_all_classes(capsys):
    assert main(["summarize", f"--config={spineparsenet.__file__}"]) == 0
    # Each class has 128 weights to a node, and 256 weights and a bias of the logits.
    more = labels.NUM_CLASSES - 20
    count = 4_231_044 + more * (128 + 256 + 1)
    # The 2D network has a channel of 3x3 weights and one of the logits for each.
    count += 11_784_852 + more * (9 * 32 + 32 + 1)
    assert f"parameters: {count:,}\n" in capsys.readouterr().out
