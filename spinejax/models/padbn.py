"""PaDBN: a deep belief network that classifies patches (Qadri et al., Applied Sciences 9:69, 2019).

Row "PaDBN" of paper A, table 11, and of paper B, table 3.

Published (abstract): patches of a region of interest of CT; restricted Boltzmann machines (RBMs) in
a stack, pretrained without labels by contrastive divergence; then back-propagation with labels; the
output is a likelihood of vertebra.

Chosen here, since the sizes are not known: patches of 32 x 32 pixels in [0, 1], so 1024 visible
units; hidden layers of 1000, 500 and 250 units; two classes: 1,651,252 parameters. All units are
binary (sigmoid). Each RBM is trained with CD-1 on the activations of the layers below it, which no
longer change (Hinton, Osindero and Teh, Neural Computation 18:1527, 2006). First weights are drawn
with a standard deviation of 0.01 (Hinton, "A practical guide to training RBMs", 2010, section 8).

An RBM has the energy E(v, h) = -b.v - c.h - v.W.h and the likelihood p(v) = exp(-F(v)) / Z, where
F(v) = -b.v - sum_j log(1 + exp(c_j + (v.W)_j)) is the free energy. W and c are kernel and bias of a
layer of the classifier. The visible biases b belong to the pretraining alone.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import InputError
from spinejax.models.layers import Network, Rate
from spinejax.schema import Whole

_VISIBLE = "visible_"  # begins the names of the visible biases


class PaDBN(Network):
    """Classifier of patches: hidden layers of sigmoid units, then the logits.

    The intermediates are the activations, `hidden_1` (b, widths[0]) and so on. Parameters are
    `fc_1` ... {kernel, bias}; in a pretraining also the visible biases `visible_1` ... of the RBMs.
    Pixels are flattened in the order (h, w, c).

    Attributes:
        widths: units of the hidden layers.
        init_std: standard deviation of the Gaussian that first weights are drawn from.
        rbm: number of the layer, from 1, that the run pretrains as an RBM, without labels; 0: the
            run trains the classifier.
        rbm_share: length of the pretraining of each layer, as a share of the classifier's training,
            which it precedes; 0: none.
    """

    out_channels: int = 2
    widths: tuple[int, ...] = (1000, 500, 250)
    init_std: Rate = 0.01
    rbm: Annotated[int, Whole(0, 64)] = 0
    rbm_share: Rate = 0.3

    SEES = "patches"

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise InputError if there is no layer `rbm`; every patch is large enough."""
        if self.rbm > len(self.widths):
            raise InputError(
                f"model.rbm={self.rbm} must be at most {len(self.widths)}, the number of hidden "
                f"layers of model.widths={self.widths}"
            )

    def adopted(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the variables of another run; the classifier takes no visible biases."""
        params = variables["params"]
        if not self.rbm:
            params = {name: leaf for name, leaf in params.items() if not name.startswith(_VISIBLE)}
        return {**variables, "params": params}

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and activations of patches `x` (b, h, w, channels)."""
        self.check_input(x.shape)
        init = nn.initializers.normal(self.init_std)
        out: dict[str, jax.Array] = {}
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        for number, width in enumerate(self.widths, 1):
            if self.rbm:
                self.param(f"{_VISIBLE}{number}", nn.initializers.zeros, (x.shape[-1],))
            layer = nn.Dense(width, kernel_init=init, dtype=self.dtype, name=f"fc_{number}")
            x = out[f"hidden_{number}"] = nn.sigmoid(layer(x))
        last = f"fc_{len(self.widths) + 1}"
        return nn.Dense(self.out_channels, kernel_init=init, dtype=jnp.float32, name=last)(x), out


class RBM(NamedTuple):
    """Parameters of an RBM: kernel (v, h), hidden bias (h,) and visible bias (v,)."""

    kernel: jax.Array
    hidden_bias: jax.Array
    visible_bias: jax.Array

    def hidden(self, visible: jax.Array) -> jax.Array:
        """Return the probabilities of hidden units, (b, h), given visible ones (b, v)."""
        return nn.sigmoid(visible @ self.kernel + self.hidden_bias)

    def visible(self, hidden: jax.Array) -> jax.Array:
        """Return the probabilities of visible units, (b, v), given hidden ones (b, h)."""
        return nn.sigmoid(hidden @ self.kernel.T + self.visible_bias)


def rbm_of(params: Mapping[str, Any], number: int) -> RBM:
    """Return an RBM of the parameters of a pretraining, from 1."""
    layer = params[f"fc_{number}"]
    return RBM(layer["kernel"], layer["bias"], params[f"{_VISIBLE}{number}"])


def free_energy(rbm: RBM, visible: jax.Array) -> jax.Array:
    """Return F(v) of visible units (b, v) in [0, 1], (b,)."""
    hidden = jax.nn.softplus(visible @ rbm.kernel + rbm.hidden_bias).sum(-1)
    return -visible @ rbm.visible_bias - hidden


def gibbs_sample(rbm: RBM, visible: jax.Array, keys: jax.Array, steps: int = 1) -> jax.Array:
    """Return visible units, (b, v) of 0 and 1, after steps of Gibbs sampling.

    Args:
        rbm: the parameters.
        visible: (b, v) in [0, 1], the beginning.
        keys: (b,) a random key for each sample.
        steps: hidden units are drawn given the visible ones, then the visible ones, so many times.
    """

    def draw(probability: jax.Array, number: int) -> jax.Array:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return jax.vmap(jax.random.bernoulli)(own, probability).astype(probability.dtype)

    for step in range(steps):
        hidden = draw(rbm.hidden(visible), 2 * step)
        visible = draw(rbm.visible(hidden), 2 * step + 1)
    return visible


def contrastive_divergence(
    rbm: RBM, visible: jax.Array, keys: jax.Array, steps: int = 1
) -> jax.Array:
    """Return F(data) - F(sample) of each sample, (b,), whose gradient is that of CD-k.

    The gradient of -log p(v) is the gradient of F at the data minus its mean under the model. CD
    replaces the model by a few steps of Gibbs sampling from the data (Hinton, Neural Computation
    14:1771, 2002). The sample is a constant for the gradient. Arguments as for `gibbs_sample`.
    """
    sample = jax.lax.stop_gradient(gibbs_sample(rbm, visible, keys, steps))
    return free_energy(rbm, visible) - free_energy(rbm, sample)


def reconstruction(rbm: RBM, visible: jax.Array) -> jax.Array:
    """Return the probabilities of visible units given those of the hidden units, (b, v)."""
    return rbm.visible(rbm.hidden(visible))
