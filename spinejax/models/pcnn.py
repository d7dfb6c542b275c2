"""Pulse-coupled neural networks (PCNN), which segment bright tissue and are not trained.

Rows of paper A's Table 11: Zareie et al., Australasian Physical & Engineering Sciences in Medicine
41, 2018, 10.1007/s13246-018-0702-3. `APCNN` sets its parameters for each image and `PCNN` has the
same ones for all images.

Published, in the abstract: the network is applied to the 3D image, its parameters are adapted to
each image, and a median filter follows. Published elsewhere: the neuron, its fast linking, and the
adaptive rule (Chen et al., IEEE Transactions on Neural Networks 22(6), 2011, SPCNN).

Chosen here, because the paper's text could not be had:

* The region of interest is a whole scan of cubic voxels, mapped to [0, 1]. Brightness does not tell
  vertebrae from other bones, and nobody gives a box around the spine. So ribs, pelvis and contrast
  medium count as errors. Zareie et al. may have worked within a volume of interest.
* 26 neighbours link, with weights 1 / distance. Their sum takes the place of 6, the sum of the 2D
  weights, in the adaptive rule.
* Foreground is what fires before the iterations end. `APCNN` ends with the first iteration in which
  Chen's rule lets voxels fire: those above Otsu's threshold, and their neighbours by fast linking.
  Chen's network has no fast linking; the title of Zareie et al. says "fast". Without it, the
  foreground would be what Otsu's threshold finds.
* The median filter has 3 x 3 x 3 voxels and filters the mask.
"""

import itertools
import math
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from spinejax.models.layers import Network
from spinejax.schema import Number, Whole

_STEPS = list(itertools.product((-1, 0, 1), repeat=3))
WEIGHTS = {step: 1 / math.hypot(*step) for step in _STEPS if any(step)}
"""Step to a neighbour, in voxels -> its weight in the linking."""
WEIGHT = sum(WEIGHTS.values())
"""The linking of a voxel whose neighbours all fire."""

BINS = 256  # of the histogram of `otsu`

FIRST = 3
"""The iteration in which, by the adaptive rule, the first voxels fire."""


class Parameters(NamedTuple):
    """The parameters of the neurons, each a scalar.

    Attributes:
        memory: share of its activity that a neuron keeps from the last iteration, exp(-alpha_f).
        linking: effect of the neighbours that fire, beta or lambda.
        threshold: first threshold.
        decay: share of its threshold that a neuron keeps, exp(-alpha_e).
        jump: what the threshold of a neuron rises by when it fires, V.
    """

    memory: jax.typing.ArrayLike
    linking: jax.typing.ArrayLike
    threshold: jax.typing.ArrayLike
    decay: jax.typing.ArrayLike
    jump: jax.typing.ArrayLike


def linked(fired: jax.Array) -> jax.Array:
    """Return the sum of the weights of the neighbours that fire, (x, y, z) bool to float32."""
    padded = jnp.pad(fired.astype(jnp.float32), 1)
    total = jnp.zeros(fired.shape, jnp.float32)
    for weight in sorted(set(WEIGHTS.values())):
        at = [
            padded[tuple(slice(1 + s, 1 + s + n) for s, n in zip(step, fired.shape, strict=True))]
            for step, its in WEIGHTS.items()
            if its == weight
        ]
        total += weight * sum(at[1:], start=at[0])
    return total


def otsu(image: jax.Array) -> jax.Array:
    """Return the threshold that separates two classes of voxels best (Otsu, 1979).

    It is an edge of `BINS` bins, or the mean of all edges that are equally good, as in Chen's work.

    Args:
        image: any shape, in [0, 1].

    Returns:
        () float32 in (0, 1).
    """
    bins = jnp.clip((image * BINS).astype(jnp.int32), 0, BINS - 1)
    share = jnp.bincount(bins.ravel(), length=BINS) / image.size
    centres = (jnp.arange(BINS) + 0.5) / BINS
    below, moment = jnp.cumsum(share), jnp.cumsum(share * centres)
    spread = below * (1 - below)
    between = jnp.where(spread > 1e-9, (moment[-1] * below - moment) ** 2 / (spread + 1e-30), 0.0)
    best = between == between.max()
    return jnp.sum(best * (jnp.arange(BINS) + 1)) / (BINS * jnp.sum(best))


def adapted(image: jax.Array) -> Parameters:
    """Return the parameters that SPCNN's rule sets for an image.

    With the standard deviation sigma, Otsu's threshold S', W = `WEIGHT`, and M the activity that an
    unlinked voxel of brightness 1 has in the third iteration:

        exp(-alpha_f) = sigma
        lambda = (S_max / S' - 1) / W
        V = exp(-alpha_f) + 1 + W lambda
        M = (1 - exp(-3 alpha_f)) / (1 - exp(-alpha_f)) + W lambda exp(-alpha_f)
        exp(-alpha_e) = S' M / V

    All voxels fire in iteration 1 and none in iteration 2. In iteration 3 those above S' fire.

    Args:
        image: (x, y, z) float32 in [0, 1].
    """
    # The means of lines first: float32 loses digits in a sum over a whole scan.
    centred = image - image.mean(-1).mean(-1).mean()
    sigma = jnp.sqrt(jnp.square(centred).mean(-1).mean(-1).mean())
    threshold = otsu(image)
    linking = (image.max() / threshold - 1) / WEIGHT
    # Rounding must not let a voxel of the largest brightness fire in the second iteration.
    jump = (sigma + 1 + WEIGHT * linking) * (1 + 1e-5)
    activity = 1 + sigma + sigma**2 + WEIGHT * linking * sigma
    return Parameters(sigma, linking, 0.0, threshold * activity / jump, jump)


def firing_times(image: jax.Array, neurons: Parameters, *, iterations: int) -> jax.Array:
    """Return the iteration in which each voxel first fires.

    A voxel is a neuron. In each iteration, with its brightness S, its activity U, its threshold E,
    and L, the `linked` neighbours that fired in the last iteration or have fired in this one:

        U = memory U + S (1 + linking L)
        it fires where U > E
        E = decay E + jump where it fired

    Fast linking repeats the first two lines until no more voxel fires. The pulses of iteration 1
    do not count: with a threshold of 0 all neurons fire then.

    Args:
        image: (x, y, z) float32 in [0, 1]; 0 never fires.
        neurons: their parameters.
        iterations: at most 255; the network ends earlier if each voxel has fired.

    Returns:
        (x, y, z) uint8; 0 for voxels that have not fired.
    """

    def iterate(state: Any) -> Any:
        number, activity, threshold, before, times = state
        kept = neurons.memory * activity

        def link(pulses: Any) -> Any:
            fired, _, _ = pulses
            activity = kept + image * (1 + neurons.linking * linked(before | fired))
            more = fired | (activity > threshold)
            return more, activity, jnp.any(more != fired)

        none = jnp.zeros(image.shape, bool)
        fired, activity, _ = jax.lax.while_loop(
            lambda pulses: pulses[2], link, (none, activity, jnp.array(True))
        )
        number += 1
        first = fired & (times == 0) & (number > 1)
        times = jnp.where(first, number.astype(jnp.uint8), times)
        return number, activity, neurons.decay * threshold + neurons.jump * fired, fired, times

    def waits(state: Any) -> jax.Array:
        number, *_, times = state
        return (number < iterations) & jnp.any((times == 0) & (image > 0))

    start = (
        jnp.array(0, jnp.int32),
        jnp.zeros(image.shape, jnp.float32),
        jnp.full(image.shape, neurons.threshold, jnp.float32),
        jnp.zeros(image.shape, bool),
        jnp.zeros(image.shape, jnp.uint8),
    )
    return jax.lax.while_loop(waits, iterate, start)[-1]


def median(mask: jax.Array) -> jax.Array:
    """Return the median of 3 x 3 x 3 voxels of a mask, (x, y, z) bool; the outermost are repeated.

    Of bool it is the majority.
    """
    count = jnp.pad(mask.astype(jnp.uint8), 1, mode="edge")
    for axis in range(3):
        n = count.shape[axis] - 2
        taps = [jax.lax.slice_in_dim(count, at, at + n, axis=axis) for at in range(3)]
        count = taps[0] + taps[1] + taps[2]
    return count > 13


class _Pulses(Network):
    """Base class of the two: a network without parameters."""

    LEARNS: ClassVar[bool] = False

    def segment(
        self, x: jax.Array, neurons: Parameters | None, iterations: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the result of `__call__`; `neurons` None adapts them to the image."""
        self.check_input(x.shape)
        image = x[..., 0].astype(jnp.float32)
        low, high = image.min(), image.max()
        image = (image - low) / jnp.where(high > low, high - low, 1)
        neurons = adapted(image) if neurons is None else neurons
        times = firing_times(image, neurons, iterations=iterations)
        mask = median(times > 0)
        return jnp.where(mask, 10.0, -10.0)[..., None], {"firing_times": times}


class PCNN(_Pulses):
    """PCNN with fixed parameters, the same for all images.

    The values are choices: the paper prints none. The threshold begins at 1, the largest
    brightness, and rises by 20 where a neuron fires.

    Attributes:
        beta: effect of the neighbours that fire.
        decay: rate at which the threshold falls, per iteration.
        iterations: what fires in this many iterations is foreground.
    """

    beta: Annotated[float, Number(0, 100)] = 0.05
    decay: Annotated[float, Number(0, 100, above=True)] = 0.2
    iterations: Annotated[int, Whole(2, 255)] = 8

    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of a whole scan `x`, its slices (n, h, w, 1)."""
        neurons = Parameters(0.0, self.beta, 1.0, math.exp(-self.decay), 20.0)
        return self.segment(x, neurons, self.iterations)


class APCNN(_Pulses):
    """Adaptive PCNN: SPCNN's rule sets the parameters for each image, see `adapted`."""

    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of a whole scan `x`, its slices (n, h, w, 1)."""
        return self.segment(x, None, FIRST)
