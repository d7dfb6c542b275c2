"""SpineParseNet (Pang et al., IEEE TMI 40(1), 2021), of paper B's Table 3.

Its 3D network is GCSN, the graph convolutional segmentation network: DeepLabv3+ in 3D, and a graph
between the maps of its decoder whose nodes are the classes. Layers, widths, rates and strides are
those of the public code: with one channel in, 4,231,044 parameters for its 20 classes and 4,224,114
for 2. It was made for sagittal MR slices, so it strides within slices alone; `strides` changes
that.

Chosen here: the graph links each vertebra to those that may follow it (`labels.successors`), since
there are no classes of discs; group norm, which has the parameters of the published batch norm,
because cubes come in small batches; all parts learn together. The shortcut of a block sees the
input after its ReLU, as in the public code, whose ReLU works in place.

A 2D network (`models.resunet`) then refines the result slice by slice. It sees the sagittal slices
and, as further channels, the coarse logits of each class. Here it sees the slices of a cube, and it
learns at the same time as the 3D network, which learns nothing from it. The public code trains it
after the 3D network, on whole slices.
"""

import itertools
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spinejax import labels
from spinejax.models.layers import (
    HE_NORMAL,
    Conv3D,
    Dtype,
    Logits,
    Network,
    Norm,
    Normed,
    NormKind,
    convolve,
    normed,
    rematerialised,
)
from spinejax.models.resunet import ResUNet
from spinejax.schema import Several, Whole

RATES = (6, 12, 18)  # of the pyramid
EXIT_RATE = 2  # of the last separable convolutions of the encoder
GRAPH_STEPS = 3

# Types of fields.
Strides = Annotated[tuple[int, ...], Several(Whole(1, 2), 3)]
Entry = Annotated[tuple[int, ...], Several(Whole(1, 8192), least=4)]
Refine = Annotated[tuple[int, ...], Several(Whole(1, 8192), least=0)]
Pair = Annotated[tuple[int, ...], Several(Whole(1, 8192), 2)]


# Jitted to be traced once for the many layers of one shape.
@partial(jax.jit, static_argnums=(2, 3))
def depthwise(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], rate: int = 1
) -> jax.Array:
    """Return each channel of `x` (b, x, y, z, c) convolved with its own kernel, zeros around.

    On CPUs, where XLA computes grouped convolutions slowly, it is a sum of shifted cubes. On GPUs
    and TPUs it is a grouped convolution.

    Args:
        x: cubes.
        kernel: (n, n, n, 1, c), n odd.
        strides: along x, y and z, in voxels; each is centred on the first voxel.
        rate: dilation.

    Returns:
        (b, x', y', z', c), x' being x / stride rounded up.
    """
    margin = rate * (kernel.shape[0] // 2)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shifted, strides=strides, rate=rate),
        default=partial(
            convolve,
            strides=strides,
            padding=[(margin, margin)] * 3,
            rate=rate,
            groups=x.shape[-1],
        ),
    )


def _shifted(x: jax.Array, kernel: jax.Array, *, strides: tuple[int, ...], rate: int) -> jax.Array:
    n, sides = kernel.shape[0], x.shape[1:4]
    margin = rate * (n // 2)
    x = jnp.pad(x, ((0, 0), *[(margin, margin)] * 3, (0, 0)))
    y = jnp.zeros((), x.dtype)
    for tap in itertools.product(range(n), repeat=3):
        first = [rate * index for index in tap]
        last = [at + side for at, side in zip(first, sides, strict=True)]
        shifted = jax.lax.slice(
            x, (0, *first, 0), (x.shape[0], *last, x.shape[4]), (1, *strides, 1)
        )
        y = y + shifted * kernel[(*tap, 0)]
    return y


def interpolate(x: jax.Array, sides: tuple[int, ...]) -> jax.Array:
    """Return cubes (b, x, y, z, c) resized linearly to `sides`, corners on corners.

    A side of one voxel is repeated.
    """
    for axis, (old, new) in enumerate(zip(x.shape[1:4], sides, strict=True), 1):
        if old != new:
            places = np.linspace(0, old - 1, new)
            weights = np.maximum(1 - np.abs(places[:, None] - np.arange(old)), 0)
            # GPUs and TPUs would otherwise round logits to a few digits.
            x = jnp.tensordot(x, jnp.asarray(weights, x.dtype), (axis, 1), precision="highest")
            x = jnp.moveaxis(x, -1, axis)
    return x


def adjacency(nodes: int) -> np.ndarray:
    """Return the normalised adjacency of the classes' graph: D^-1/2 (A + I) D^-1/2, float32.

    A links vertebrae of which one may follow the other; background, and nodes that are no class,
    have no link. D holds the sums of the rows of A + I (Kipf and Welling, ICLR 2017).

    Args:
        nodes: the first classes of `labels`, background included, and further channels.
    """
    links = np.eye(nodes)
    classes = {verse_id: at for at, verse_id in enumerate(labels.VERSE_IDS, 1) if at < nodes}
    for verse_id, at in classes.items():
        for after in labels.successors(verse_id):
            if after in classes:
                links[at, classes[after]] = links[classes[after], at] = 1
    scale = 1 / np.sqrt(links.sum(1))
    return (scale[:, None] * links * scale).astype(np.float32)


class Depthwise(nn.Module):
    """`depthwise` with a 3x3x3 kernel for each channel."""

    strides: tuple[int, ...] = (1, 1, 1)
    rate: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(b, x, y, z, c)` to `(b, x', y', z', c)`, x' being x / stride rounded up."""
        kernel = self.param("kernel", HE_NORMAL, (3, 3, 3, 1, x.shape[-1]))
        return depthwise(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.rate)


class Point(Normed):
    """1x1x1 convolution and norm, then ReLU if `activate`; a bias only with norm "none"."""

    width: int
    strides: tuple[int, ...] = (1, 1, 1)
    activate: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)` to `(b, x', y', z', width)`, x' being x / stride rounded up."""
        along_x, along_y, along_z = self.strides
        x = x[:, ::along_x, ::along_y, ::along_z]
        bias = self.norm == "none"
        dense = nn.Dense(
            self.width, use_bias=bias, kernel_init=HE_NORMAL, dtype=self.dtype, name="conv"
        )
        x = Norm(**normed(self), name="norm")(dense(x), train=train)
        return nn.relu(x) if self.activate else x


class Separable(Normed):
    """Depthwise 3x3x3 and pointwise convolution, each with a norm and, if `activate`, ReLU."""

    width: int
    strides: tuple[int, ...] = (1, 1, 1)
    rate: int = 1
    activate: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)` to `(b, x', y', z', width)`, x' being x / stride rounded up."""
        x = Depthwise(self.strides, self.rate, self.dtype, name="depthwise")(x)
        x = Norm(**normed(self), name="norm")(x, train=train)
        x = nn.relu(x) if self.activate else x
        point = Point(self.width, activate=self.activate, **normed(self), name="point")
        return point(x, train=train)


class XceptionBlock(Normed):
    """Three separable convolutions, each after a ReLU, and a 1x1x1 shortcut; the last one strides.

    The first convolution changes the width if `grow_first`, else the second one.
    """

    width: int
    strides: tuple[int, ...] = (1, 1, 1)
    grow_first: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Map `(b, x, y, z, c)` to `(b, x', y', z', width)`, and the map before the strides."""
        common: dict[str, Any] = dict(activate=False, **normed(self))
        y = x = nn.relu(x)
        first = self.width if self.grow_first else x.shape[-1]
        for index, width in enumerate((first, self.width), 1):
            y = Separable(width, **common, name=f"conv{index}")(nn.relu(y), train=train)
        before = y
        y = Separable(self.width, self.strides, **common, name="conv3")(nn.relu(y), train=train)
        x = Point(self.width, self.strides, **common, name="shortcut")(x, train=train)
        return x + y, before


class Pyramid3D(Normed):
    """ASPP over cubes: a 1x1x1 and three dilated convolutions and the mean, fused by a 1x1x1."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)` to `(b, x, y, z, width)`."""
        common = normed(self)
        parts = [Point(self.width, **common, name="point")(x, train=train)]
        parts += [
            Separable(self.width, rate=rate, **common, name=f"rate{rate}")(x, train=train)
            for rate in RATES
        ]
        mean = x.mean(axis=(1, 2, 3), keepdims=True)
        mean = Point(self.width, **common, name="context")(mean, train=train)
        parts.append(jnp.broadcast_to(mean, parts[0].shape))
        return Point(self.width, **common, name="fuse")(jnp.concatenate(parts, -1), train=train)


class GraphReasoning(Normed):
    """Pools a map to one node for each class, convolves along the graph, and adds what returns.

    Logits of each voxel say to which nodes it belongs. A node is the mean of its voxels.
    """

    nodes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Map `(b, x, y, z, c)` to the same shape, and to float32 logits `(b, x, y, z, nodes)`."""
        b, *sides, width = x.shape
        init = nn.initializers.glorot_uniform()

        def dense(name: str, width: int = width, dtype: Dtype = self.dtype) -> nn.Dense:
            return nn.Dense(width, use_bias=False, kernel_init=init, dtype=dtype, name=name)

        logits = dense("classes", self.nodes, jnp.float32)(x)
        share = jax.nn.softmax(logits).reshape(b, -1, self.nodes)
        voxels = x.reshape(b, -1, width).astype(jnp.float32)
        least = jnp.finfo(jnp.float32).tiny
        graph = share.swapaxes(1, 2) @ voxels / jnp.maximum(share.sum(1), least)[..., None]
        graph = nn.relu(dense("pool")(graph))
        for step in range(GRAPH_STEPS):
            links = jnp.asarray(adjacency(self.nodes), self.dtype)
            graph = nn.relu(links @ dense(f"graph{step + 1}")(graph))
        back = (share.astype(self.dtype) @ graph).reshape(b, *sides, width)
        back = Point(width, **normed(self), name="back")(back, train=train)
        skip = nn.Dense(width, kernel_init=HE_NORMAL, dtype=self.dtype, name="skip")(x)
        return nn.relu(skip) + back, logits


class SpineParseNet(Network):
    """GCSN over cubes (b, x, y, z, c) of any sides, and the 2D network that refines its logits.

    The intermediate "auxiliary" holds the float32 logits by which voxels belong to the nodes of the
    graph, resized to the cube; with `loss.auxiliary_weight` they learn the classes. Where the 2D
    network follows, "coarse_logits" are those of GCSN.

    Attributes:
        widths: channels of the two convolutions of the stem, then of each block that strides.
        exit_widths: channels of the last block and of the separable convolutions after it.
        skip_widths: channels to which the maps for the two decoders are reduced.
        decoder_widths: channels of pyramid, first decoder and graph, then of the second decoder.
        strides: along x, y and z, of the first convolution and of each block.
        refine_widths: channels of each level of the 2D network; () leaves it out.
        norm: norm after each convolution; the published network has "batch".
    """

    out_channels: int = labels.NUM_CLASSES
    widths: Entry = (16, 32, 64, 128, 364)
    exit_widths: tuple[int, ...] = (512, 768, 768, 1024)
    skip_widths: Pair = (24, 64)
    decoder_widths: Pair = (128, 256)
    strides: Strides = (1, 2, 2)
    refine_widths: Refine = ()
    norm: NormKind = "group"

    SEES = "cubes"
    AUXILIARY = True

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return 2 ** max(len(self.refine_widths) - 1, 0)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of cubes `x` (b, x, y, z, c)."""
        self.check_input(x.shape)
        common = normed(self)
        block = rematerialised(XceptionBlock, self, train=2)
        cube = x.shape[1:4]
        out: dict[str, jax.Array] = {}

        def stem(y: jax.Array, conv: nn.Module, index: int) -> jax.Array:
            return nn.relu(Norm(**common, name=f"stem{index}_norm")(conv(y), train=train))

        def separable(y: jax.Array, width: int, name: str, rate: int = 1) -> jax.Array:
            return Separable(width, rate=rate, **common, name=name)(y, train=train)

        image = x = x.astype(self.dtype)
        first, second, *grown = self.widths
        bias = self.norm == "none"
        strided = nn.Conv(
            first,
            (3, 3, 3),
            self.strides,
            padding=1,
            use_bias=bias,
            kernel_init=HE_NORMAL,
            dtype=self.dtype,
            name="stem1_conv",
        )
        x = stem(x, strided, 1)
        x = stem(x, Conv3D(second, 3, bias, self.dtype, name="stem2_conv"), 2)
        out["stem"] = fine = x
        for index, width in enumerate(grown, 1):
            x, before = block(width, self.strides, **common, name=f"block{index}")(x, train)
            out[f"block{index}"] = x
            if index == 2:
                coarse = before  # of the first decoder's resolution
        x, _ = block(self.exit_widths[0], grow_first=False, **common, name="exit1")(x, train)
        for index, width in enumerate(self.exit_widths[1:], 2):
            x = separable(x, width, f"exit{index}", EXIT_RATE)
        x = out["encoder"] = x

        inner, outer = self.decoder_widths
        x = out["pyramid"] = Pyramid3D(inner, **common, name="pyramid")(x, train=train)
        for index, (name, skip, width) in enumerate(
            (("coarse", coarse, inner), ("fine", fine, outer))
        ):
            skip = Point(self.skip_widths[index], **common, name=f"{name}_skip")(skip, train=train)
            x = jnp.concatenate([interpolate(x, skip.shape[1:4]), skip], axis=-1)
            x = separable(separable(x, width, f"{name}1"), width, f"{name}2")
            if name == "coarse":
                graph = GraphReasoning(self.out_channels, **common, name="graph")
                x, logits = graph(x, train=train)
                out["auxiliary"] = interpolate(logits, cube)
            out[name] = x
        logits = interpolate(Logits(self.out_channels, name="logits")(x), cube)
        if self.refine_widths:
            out["coarse_logits"] = logits
            seen = jax.lax.stop_gradient(logits).astype(self.dtype)
            refine = ResUNet(
                self.out_channels,
                remat=self.remat,
                widths=self.refine_widths,
                **common,
                name="refine",
            )
            b, n, h, w = image.shape[:4]
            slices = jnp.concatenate([image, seen], -1).reshape(b * n, h, w, -1)
            logits = refine(slices, train=train)[0].reshape(b, n, h, w, -1)
        return logits, out
