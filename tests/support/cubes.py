"""What the tests of networks of cubes share."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from tests.support.networks import init, normal, quick_jit, quick_key


def shapes(model, *sides, channels=1, batch=1):
    """Return the shapes of variables, logits and intermediates for a cube, computing nothing."""
    x = jax.ShapeDtypeStruct((batch, *sides, channels), jnp.float32)
    (logits, out), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x), x
    )
    assert logits.shape == (batch, *sides, model.out_channels)
    assert logits.dtype == jnp.float32
    return variables, {name: map_.shape[1:] for name, map_ in out.items()}


def gradients(model, x):
    """Return the gradients of a loss over cubes `x` in training."""
    variables = init(model, x)
    wanted = jax.random.randint(jax.random.key(5), x.shape[:-1], 0, model.out_channels)

    def loss(parameters):
        (logits, _), _ = model.apply(
            {**variables, "params": parameters},
            x,
            train=True,
            rngs={"dropout": quick_key(0)},
            mutable=["batch_stats"],
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], axis=-1)
        return -chosen.mean()

    return quick_jit(jax.grad(loss))(variables["params"])


def check_gradients(model, side):
    """Assert that gradients are finite and reach every parameter."""
    found = gradients(model, normal(0, 1, side, side, side, 1))
    for path, gradient in jax.tree.leaves_with_path(found):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.abs(gradient).max() > 0, path


def ways(array, spacing):
    """Offset of each voxel to the centre of mass of its label, in the unit of `spacing`; else 0."""
    out = np.zeros((*array.shape, 3), np.float32)
    ids = [i for i in np.unique(array) if i]
    centres = ndimage.center_of_mass(array > 0, array, ids)
    for i, centre in zip(ids, centres, strict=True):
        out[array == i] = (centre - np.argwhere(array == i)) * spacing
    return out
