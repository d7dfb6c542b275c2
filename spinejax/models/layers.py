"""Building blocks of the networks: the base classes, then one section for each kind of layer.

Arrays are `(b, h, w, c)`. Pooling, norms, upsampling, dropout and logits also accept cubes
`(b, x, y, z, c)`; 2D convolutions also accept stacks of slices `(b, n, h, w, c)`. Parameters are
float32; computations run in a module's `dtype`.

Some convolutions have a form of their own on CPUs. `jax.lax.platform_dependent` chooses between it
and XLA's convolution when the program is lowered, so that a program for a GPU or TPU holds only the
latter, even if it is lowered on a machine that has none (`docs/scaling.md`).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import InputError
from spinejax.schema import Choice, Number, Whole

Dtype = jnp.dtype | type
HE_NORMAL = nn.initializers.he_normal()
PRIOR = 0.05  # rough share of a slice's pixels that show vertebrae

# Types of the fields of networks: which values a config may give them.
Rate = Annotated[float, Number(0, 1, below=True)]
Depth = Annotated[int, Whole(1, 256)]  # a number of layers
NORMS = ("group", "batch", "none")
NormKind = Annotated[str, Choice(NORMS)]
STEMS = ("3x3", "7x7")
StemKind = Annotated[str, Choice(STEMS)]


# Base classes


class Network(nn.Module):
    """Base class of the networks.

    A network's `apply(variables, x, train=...)` returns float32 logits and a dict of named
    intermediates. One whose name ends in "_logits" holds logits of a part of the network. The
    task's loss is added for it, and the network keeps that part from learning by anything else
    (`jax.lax.stop_gradient`). Training needs `rngs={"dropout": key}` where dropout is above 0, and
    `mutable=["batch_stats"]` with norm "batch".

    The fields that a subclass adds are the fields of a config's `model` block: their types say
    which values are allowed (`spinejax.models.fields`), and the section "Attributes" of the
    docstring says what they mean. The fields below are set by `spinejax.models.build_model`.

    Attributes:
        out_channels: channels of the logits. 1 means binary, through a sigmoid; more are classes,
            through a softmax.
        axis_name: device axis over which norm "batch" shares its statistics.
        dtype: of computation; parameters and logits are float32.
        remat: recompute each block in the backward pass, to save memory.
    """

    out_channels: int = 1
    axis_name: str | None = None
    dtype: Dtype = jnp.float32
    remat: bool = False

    SEES: ClassVar[str] = "slices"  # or "patches", which get one class each, or "cubes"
    PER_STAGE: ClassVar[tuple[str, ...]] = ()  # fields with one value for each stage of `widths`
    AUXILIARY: ClassVar[bool] = False  # whether the intermediate "auxiliary" is logits to be learnt
    LEARNS: ClassVar[bool] = True  # False: no parameters; it reads all slices of a scan at once

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return 1

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise InputError unless arrays (b, sides, c) of this shape fit the network's fields."""
        if self.SEES == "slices":
            check_sides(shape[1], shape[2], self.stride)
        elif self.SEES == "cubes":
            check_cube(shape, self.stride)

    def adopted(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the variables of another run with which a training begins: all by default."""
        return dict(variables)


class Normed(nn.Module, kw_only=True):
    """Base class of blocks with a norm.

    Attributes:
        norm: one of NORMS.
        axis_name: device axis over which norm "batch" shares its statistics.
        dtype: of computation.
    """

    norm: str = "group"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32


def normed(module: Any) -> dict[str, Any]:
    """Return the fields of `Normed` that a module hands on to its blocks."""
    return dict(norm=module.norm, axis_name=module.axis_name, dtype=module.dtype)


def rematerialised(block: Any, module: Any, train: int) -> Any:
    """Return a block class, recomputed in the backward pass if `module.remat`.

    `train` is the number of the argument `train` of the block's `__call__`, `self` being 0.
    """
    return nn.remat(block, static_argnums=(train,)) if module.remat else block


# Sizes that do not fit


def check_sides(height: int, width: int, stride: int) -> None:
    """Raise InputError unless both sides of an image are positive multiples of `stride`."""
    if min(height, width) < stride:
        raise InputError(
            f"image of {height} x {width} pixels is smaller than the network's stride {stride}; "
            f"pad it to at least {stride} x {stride} (config field data.size)"
        )
    if height % stride or width % stride:
        up = (math.ceil(height / stride) * stride, math.ceil(width / stride) * stride)
        raise InputError(
            f"image sides {height} x {width} must be multiples of the network's stride {stride}; "
            f"use for example {up[0]} x {up[1]} (config field data.size)"
        )


def check_patch(height: int, width: int, least: int, network: str) -> None:
    """Raise InputError unless both sides of a patch have at least `least` pixels."""
    if min(height, width) < least:
        raise InputError(
            f"a patch of {height} x {width} pixels is too small for {network}, which needs "
            f"{least} x {least}; enlarge config field data.patches.size"
        )


def check_cube(shape: tuple[int, ...], stride: int) -> None:
    """Raise InputError unless `shape` is (b, x, y, z, c), the sides multiples of `stride`."""
    if len(shape) != 5:
        raise InputError(
            f"a network of cubes needs arrays (b, x, y, z, c), not one of shape {shape}; choose "
            "another task, or a network of slices (config field model.name)"
        )
    sides = tuple(shape[1:4])
    if any(side % stride or not side for side in sides):
        up = tuple(max(1, math.ceil(side / stride)) * stride for side in sides)
        raise InputError(
            f"cube sides {sides} must be multiples of the network's stride {stride}; use for "
            f"example {up} (config field data.cube.size)"
        )


# Pooling


def max_pool(x: jax.Array, size: int = 2, stride: int = 2) -> jax.Array:
    """Return the maxima of windows of `size` pixels a side, `stride` pixels apart.

    Windows of `(b, h, w, c)` or of cubes `(b, x, y, z, c)` lie wholly inside: a side of n pixels
    becomes (n - size) // stride + 1.

    Values and gradients are those of `nn.max_pool`, whose gradient (select-and-scatter) is slow.
    The code selects maxima instead of calling `jnp.max`, whose gradient asks which inputs *equal*
    the maximum: if XLA recomputes an input inside another fusion and rounds it differently, no
    input is equal, or the wrong one. Columns come before rows, to select the first of equal maxima
    in reading order.
    """
    for axis in range(x.ndim - 2, 0, -1):
        last = (x.shape[axis] - size) // stride * stride + 1
        taps = [jax.lax.slice_in_dim(x, tap, tap + last, stride, axis=axis) for tap in range(size)]
        x = taps[0]
        for tap in taps[1:]:
            x = jnp.where(x >= tap, x, tap)
    return x


class MaxPool(nn.Module):
    """`max_pool` as a layer, so that a network's table shows it.

    Attributes:
        size: side of the windows in pixels.
        stride: from window to window, in pixels.
        padding: pixels on each side that are never the maximum.
    """

    size: int = 2
    stride: int = 2
    padding: int = 0

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pool `(b, h, w, c)`."""
        if self.padding:
            sides = (self.padding, self.padding)
            x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)), constant_values=-jnp.inf)
        return max_pool(x, self.size, self.stride)


def average_pool_to(x: jax.Array, size: int) -> jax.Array:
    """Average equal blocks of `(b, h, w, c)` so that no side exceeds `size`.

    Along each side, a block is as long as the smallest divisor that brings the side down to `size`.
    """
    b, h, w, c = x.shape
    rows, columns = (
        next(d for d in range(1, side + 1) if side % d == 0 and side // d <= size)
        for side in (h, w)
    )
    if rows == columns == 1:
        return x
    return x.reshape(b, h // rows, rows, w // columns, columns, c).mean(axis=(2, 4))


# Norm


class GroupNorm(nn.Module):
    """`nn.GroupNorm`, with the same parameters and the same values up to rounding.

    Its sums run over one axis between the first and the last, then over the rest, and a product
    adds the channels of a group, because on CPUs XLA is slow at sums that leave few numbers.
    Milliseconds of a norm with a ReLU, and of its gradient, for 8 slices (2 threads of one core,
    jax 0.10.2):

        slices, channels    80 x 128, 12    40 x 64, 24    20 x 32, 48
        nn.GroupNorm           4.8 / 5.7      1.5 / 2.7      0.6 / 0.8
        this                   1.1 / 2.5      0.3 / 0.5      0.4 / 0.4

    Attributes:
        num_groups: of equally many channels.
        epsilon: is added to the variance.
    """

    num_groups: int
    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise `(b, ..., c)`; the statistics are float32."""
        b, *between, c = x.shape
        scale = self.param("scale", nn.initializers.ones_init(), (c,))
        bias = self.param("bias", nn.initializers.zeros_init(), (c,))
        values = x.astype(jnp.float32)
        count = math.prod(between) * c // self.num_groups
        of_group = jnp.repeat(jnp.eye(self.num_groups), c // self.num_groups, axis=0)

        def mean(values: jax.Array) -> jax.Array:
            sums = values.reshape(b, between[0], -1).sum(1).reshape(b, -1, c).sum(1)
            # GPUs and TPUs would otherwise round the sums to a few digits.
            return jnp.matmul(sums, of_group, precision="highest") / count

        def of_channels(values: jax.Array) -> jax.Array:
            values = jnp.repeat(values, c // self.num_groups, axis=-1)
            return values.reshape(b, *[1] * len(between), c)

        centre = mean(values)
        variance = jnp.maximum(mean(values * values) - centre * centre, 0.0)
        factor = of_channels(jax.lax.rsqrt(variance + self.epsilon)) * scale
        return ((values - of_channels(centre)) * factor + bias).astype(self.dtype)


class Norm(Normed):
    """Normalisation with learned scale and offset.

    `"group"` has gcd(8, channels) groups, so that any width works; `"batch"` shares its statistics
    over the devices of `axis_name` while training; `"none"` is the identity.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalise `(b, ..., c)`; the statistics of "group" run over all axes between b and c."""
        if self.norm == "group":
            groups = math.gcd(8, x.shape[-1])
            return GroupNorm(groups, dtype=self.dtype, name="group")(x)
        if self.norm == "batch":
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name="batch",
            )(x)
        return x


# Convolutions as functions: XLA's, and its equals on CPUs

_CHANNELS_LAST = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
"""Number of sides -> meaning of the axes of x, kernel and result."""


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    rate: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolve by XLA's own convolution.

    Args:
        x: `(..., *sides, c)`.
        kernel: `(*taps, c / groups, width)`.
        strides: in pixels, one for each side.
        padding: zeros before and after each side.
        rate: dilation.
        groups: of channels that do not see one another.

    Returns:
        `(..., *sides', width)`.
    """
    n = len(strides)
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-n - 1 :]),
        kernel,
        strides,
        padding,
        rhs_dilation=[rate] * n,
        dimension_numbers=_CHANNELS_LAST[n],
        feature_group_count=groups,
    )
    return y.reshape(*x.shape[: -n - 1], *y.shape[1:])


_NARROW = 16
"""With at most so many channels in and out, XLA on CPUs does not call YNNPACK (jax 0.10.2)."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_narrow(x: jax.Array, kernel: jax.Array, rate: int = 1) -> jax.Array:
    """Convolve in 2D to few channels: zeros add channels to the kernel, and are dropped again.

    Args and result are those of `convolve` at stride 1, zeros around, an odd kernel, no groups.
    """
    n, _, c, width = kernel.shape
    if max(c, width) <= _NARROW:
        kernel = jnp.pad(kernel, [(0, 0)] * 3 + [(0, _NARROW + 1 - width)])
    around = (rate * (n // 2), rate * (n // 2))
    return convolve(x, kernel, strides=(1, 1), padding=[around] * 2, rate=rate)[..., :width]


def _narrow_and_inputs(
    x: jax.Array, kernel: jax.Array, rate: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve_narrow(x, kernel, rate), (x, kernel)


def _narrow_gradients(
    rate: int, inputs: tuple[jax.Array, jax.Array], given: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = inputs
    n, _, c, width = kernel.shape
    by_x = convolve_narrow(given, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), rate)
    # The gradient by the kernel is a convolution, too: one image slides over the other. Its
    # channels are the channels out, of which XLA needs many, so the image with more of them slides.
    turned = c > width <= _NARROW
    image, window = (given, x) if turned else (x, given)
    image, window = (a.reshape(-1, *a.shape[-3:]) for a in (image, window))
    around = (rate * (n // 2), rate * (n // 2))
    by_kernel = jax.lax.conv_general_dilated(
        image,
        window,
        (rate, rate),
        [around] * 2,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )
    if turned:
        by_kernel = jnp.flip(by_kernel, (0, 1)).swapaxes(2, 3)
    return by_x, by_kernel


convolve_narrow.defvjp(_narrow_and_inputs, _narrow_gradients)


def convolve_as_product(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: Sequence[tuple[int, int]]
) -> jax.Array:
    """Convolve in 2D by one matrix product over shifted copies of the image.

    Args and result are those of `convolve`, with one stride for both sides.
    """
    n, width = kernel.shape[0], kernel.shape[-1]
    x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 3), *padding, (0, 0)))
    for axis in (-2, -3):  # the taps end up in the order of the kernel: row, column, channel
        last = (x.shape[axis] - n) // stride * stride + 1
        taps = [jax.lax.slice_in_dim(x, tap, tap + last, stride, axis=axis) for tap in range(n)]
        x = jnp.concatenate(taps, axis=-1)
    return x @ kernel.reshape(-1, width)


def convolve_by_maps(x: jax.Array, kernel: jax.Array, *, rate: int) -> jax.Array:
    """Convolve in 2D by multiplications and additions of whole maps, zeros around.

    Args and result are those of `convolve` at stride 1, without groups.
    """
    height, width, channels = x.shape[-3:]
    n = kernel.shape[0]
    around = (rate * (n // 2), rate * (n // 2))
    x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 3), around, around, (0, 0)))
    maps = {
        (i, j, c): x[..., i * rate : i * rate + height, j * rate : j * rate + width, c]
        for i in range(n)
        for j in range(n)
        for c in range(channels)
    }
    out = [sum(at * kernel[*tap, o] for tap, at in maps.items()) for o in range(kernel.shape[-1])]
    return jnp.stack(out, axis=-1)


def convolve_planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve cubes at stride 1, zeros around, by one 2D convolution.

    Each plane of x is laid beside its neighbours along that axis, as channels.

    Args:
        x: `(b, x, y, z, c)`.
        kernel: `(n, n, n, c, width)`, n odd.

    Returns:
        `(b, x, y, z, width)`.
    """
    b, depth, height, width, c = x.shape
    n = kernel.shape[0]
    x = jnp.pad(x, ((0, 0), (n // 2, n // 2), (0, 0), (0, 0), (0, 0)))
    x = jnp.concatenate([x[:, tap : tap + depth] for tap in range(n)], axis=-1)
    x = jax.lax.conv_general_dilated(
        x.reshape(b * depth, height, width, n * c),
        # (x, y, z, in, out) -> (y, z, (x, in), out)
        kernel.transpose(1, 2, 0, 3, 4).reshape(n, n, n * c, -1),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return x.reshape(b, depth, height, width, -1)


# 2D convolutions


class ProductConv(nn.Module):
    """Convolution that CPUs compute as one matrix product over shifted copies of the image.

    It equals `nn.Conv`, with the same parameters, and on GPUs and TPUs it is `nn.Conv`. For a
    single network the product costs a third more. But on CPUs XLA is slow at the grouped
    convolutions into which `vmap` over networks turns `nn.Conv`, at convolutions in a loop, and at
    maps smaller than the kernel. Milliseconds of CPU time of one training step (2 cores, jax
    0.10.2), for OP-convNet with 128 patches a network, and for VGG-11, whose last maps are 2 x 2, a
    patch:

                  OP-convNet: alone   8 under vmap   8 in lax.map   VGG-11
        nn.Conv                  64            228            780       80
        this                     86            100             77       12 (where maps are 2 x 2)

    Attributes:
        width: channels out.
        kernel: side of the kernel in taps.
        stride: in pixels.
        padding: "valid", "same", or pixels of zeros on each side.
    """

    width: int
    kernel: int
    stride: int
    padding: str | int
    kernel_init: nn.initializers.Initializer = HE_NORMAL
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(..., h, w, c)` to `(..., h', w', width)`."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.width)
        kernel = self.param("kernel", self.kernel_init, shape)
        strides = (self.stride, self.stride)
        if isinstance(self.padding, int):
            sides = [(self.padding, self.padding)] * 2
        else:
            sides = jax.lax.padtype_to_pads(
                x.shape[-3:-1], shape[:2], strides, self.padding.upper()
            )
        x = jax.lax.platform_dependent(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            cpu=partial(convolve_as_product, stride=self.stride, padding=sides),
            default=partial(convolve, strides=strides, padding=sides),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
            x = x + bias.astype(self.dtype)
        return x


class PlanesConv(nn.Module):
    """Convolution from few channels to few, which CPUs compute as sums of whole maps.

    It equals `nn.Conv` at stride 1 with zeros around, with the same parameters, and on GPUs and
    TPUs it is `nn.Conv`. XLA's convolutions on CPUs need many channels; `make bench NAMES=layers`
    compares both. It is for prediction: on CPUs a training step of CHASPPRAU-Net becomes slower
    with it.

    Attributes:
        width: channels out.
        kernel: side of the kernel in taps, odd.
        rate: dilation.
    """

    width: int
    kernel: int
    rate: int
    kernel_init: nn.initializers.Initializer = HE_NORMAL
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(..., h, w, c)` to `(..., h, w, width)`."""
        n, margin = self.kernel, self.rate * (self.kernel // 2)
        kernel = self.param("kernel", self.kernel_init, (n, n, x.shape[-1], self.width))
        x = jax.lax.platform_dependent(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            cpu=partial(convolve_by_maps, rate=self.rate),
            default=partial(
                convolve, strides=(1, 1), padding=[(margin, margin)] * 2, rate=self.rate
            ),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
            x = x + bias.astype(self.dtype)
        return x


_FEW = 3
"""So few channels are few for XLA's convolutions on CPUs."""


def conv2d(
    x: jax.Array,
    width: int,
    kernel: int,
    *,
    rate: int = 1,
    stride: int = 1,
    use_bias: bool,
    dtype: Dtype,
    train: bool,
    name: str = "conv",
) -> jax.Array:
    """Convolve in the form that is fastest for these shapes on CPUs, and by XLA's on GPUs and TPUs.

    All forms have the parameters of `nn.Conv` and give the same values up to rounding. Call this
    where a module may be made, in a method with `nn.compact`.

    Args:
        x: `(..., h, w, c)`.
        width: channels out.
        kernel: side of the kernel in taps.
        rate: dilation.
        stride: in pixels.
        use_bias: whether to add a bias.
        dtype: of computation.
        train: whether the gradient will be needed.
        name: of the module.

    Returns:
        `(..., h', w', width)`, h' being h / stride rounded up.
    """
    common: dict[str, Any] = dict(use_bias=use_bias, kernel_init=HE_NORMAL, dtype=dtype, name=name)
    # This is "SAME" at stride 1; stride 2 is centred on the first pixel, as published.
    padding = rate * (kernel // 2)
    # XLA is fast from one channel to many, `convolve_narrow` from one channel to some.
    one_in = x.shape[-1] == 1 and width > _FEW and stride == 1
    few_in = kernel > 1 and x.shape[-1] <= _FEW and not one_in
    if few_in and width <= _FEW and stride == 1 and not train:
        return PlanesConv(width, kernel, rate, **common)(x)
    if rate == 1 and (min(x.shape[-3:-1]) < kernel or few_in):
        return ProductConv(width, kernel, stride, padding, **common)(x)
    side = (kernel, kernel)
    if kernel > 1 and 1 < width <= _NARROW and stride == 1 and not few_in:
        common["conv_general_dilated"] = narrow_on_cpus
    conv = nn.Conv(width, side, stride, padding=padding, kernel_dilation=rate, **common)
    return conv(x)


def narrow_on_cpus(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    **_: Any,
) -> jax.Array:
    """Do what `jax.lax.conv_general_dilated` does, in the place where `nn.Conv` calls it.

    On CPUs this is `convolve_narrow`, so strides are 1 and zeros are around.
    """
    rate = rhs_dilation[0]
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: convolve_narrow(x, kernel, rate),
        default=partial(convolve, strides=strides, padding=padding, rate=rate),
    )


class ConvNorm(Normed):
    """Convolution and norm, then ReLU if `activate`.

    The convolution has a bias only with norm "none": any other norm removes a bias again.

    Attributes:
        width: channels out.
        kernel: side of the kernel in taps.
        rate: dilation.
    """

    width: int
    kernel: int = 3
    rate: int = 1
    activate: bool = True
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(..., h, w, c)` to `(..., h', w', width)`, h' being h / stride rounded up."""
        x = conv2d(
            x,
            self.width,
            self.kernel,
            rate=self.rate,
            stride=self.stride,
            use_bias=self.norm == "none",
            dtype=self.dtype,
            train=train,
        )
        x = Norm(**normed(self), name="norm")(x, train=train)
        return nn.relu(x) if self.activate else x


class ConvBlock(Normed):
    """Twice 3x3 convolution, norm, ReLU; with `residual` a shortcut is added before the last ReLU.

    The shortcut (paper A, section 3.2, figure 1) is a 1x1 convolution with a norm where the width
    changes, else the input itself.
    """

    width: int
    residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(..., h, w, c)` to `(..., h, w, width)`."""
        common = normed(self)
        y = ConvNorm(self.width, **common, name="conv1")(x, train=train)
        y = ConvNorm(self.width, **common, activate=False, name="conv2")(y, train=train)
        if self.residual:
            if x.shape[-1] != self.width:
                shortcut = ConvNorm(self.width, 1, **common, activate=False, name="shortcut")
                x = shortcut(x, train=train)
            y = y + x
        return nn.relu(y)


# 3D convolutions


class Conv3D(nn.Module):
    """3D convolution at stride 1 with zeros around, which CPUs compute as one 2D convolution.

    It equals `nn.Conv` with padding "SAME", with the same parameters, and on GPUs and TPUs it is
    `nn.Conv`. On CPUs XLA's 2D convolutions are fast and its 3D convolutions are slow
    (`convolve_planes`). Milliseconds of CPU time of one 3x3x3 layer, forward and with its gradient
    (2 busy cores, jax 0.10.2):

        cube, channels          48^3, 17 to 16   24^3, 64 to 64   12^3, 144 to 96
        nn.Conv                     302 / 900        113 / 387          36 / 148
        3 convolutions, summed       44 / 131         33 / 109          14 /  47
        this                         39 / 134         35 / 104          15 /  45

    In a chain of four layers, this needed 0.65 to 0.95 of the sum's time and 0.8 of its memory.

    Attributes:
        width: channels out.
        kernel: side of the kernel in taps, odd.
    """

    width: int
    kernel: int = 3
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(b, x, y, z, c)` to `(b, x, y, z, width)`."""
        n = self.kernel
        kernel = self.param("kernel", HE_NORMAL, (n, n, n, x.shape[-1], self.width))
        x = jax.lax.platform_dependent(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            cpu=convolve_planes,
            default=partial(convolve, strides=(1, 1, 1), padding=[(n // 2, n // 2)] * 3),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
            x = x + bias.astype(self.dtype)
        return x


class ConvNorm3D(Normed):
    """3x3x3 convolution and norm, then ReLU; a bias only with norm "none"."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)` to `(b, x, y, z, width)`."""
        bias = self.norm == "none"
        x = Conv3D(self.width, use_bias=bias, dtype=self.dtype, name="conv")(x)
        return nn.relu(Norm(**normed(self), name="norm")(x, train=train))


# Between resolutions


class Upsample(nn.Module):
    """Transposed convolution of 2 pixels a side with stride 2, as a dense layer and a reshape.

    With stride equal to the kernel's side no two inputs meet in one output. So a dense layer to
    4 * width channels (8 for cubes), laid out as 2 x 2 blocks, is the same function with the same
    number of parameters, and faster (a transposed convolution is a dilated one to XLA).
    """

    width: int
    dtype: Dtype = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, 2h, 2w, width)`, or a cube likewise."""
        b, *sides, c = x.shape
        n = len(sides)
        # (place in the block along each axis, in, out)
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(
                2.0, "fan_in", "normal", in_axis=n, batch_axis=tuple(range(n))
            ),
            (*[2] * n, c, self.width),
        )
        x, weights = (a.astype(self.dtype) for a in (x, kernel))
        weights = weights.reshape(2**n, c, self.width).swapaxes(0, 1).reshape(c, -1)
        y = (x.reshape(-1, c) @ weights).reshape(b, *sides, *[2] * n, self.width)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
            y = y + bias.astype(self.dtype)
        # The place in the block along each axis goes behind that axis: (b, h, 2, w, 2, width).
        order = [axis for side in range(1, n + 1) for axis in (side, side + n)]
        y = y.transpose(0, *order, 2 * n + 1)
        return y.reshape(b, *(2 * side for side in sides), self.width)


class Downsample3D(nn.Module):
    """2x2x2 convolution with stride 2 as a reshape and a dense layer: the reverse of `Upsample`."""

    width: int
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(b, 2x, 2y, 2z, c)` to `(b, x, y, z, width)`."""
        dense = nn.Dense(
            self.width,
            use_bias=self.use_bias,
            kernel_init=HE_NORMAL,
            dtype=self.dtype,
            name="conv",
        )
        return dense(folded(x, 2))


class ExpandingLevel(Normed):
    """One level of the expanding path of the 3D U-Net: upsample, concatenate, convolve twice.

    Cicek et al., MICCAI 2016, section 2. Dropout of whole channels follows if its rate is above 0.

    Attributes:
        width: channels out.
        up_width: channels of the upsampled map.
        up_bias: whether upsampling has a bias.
        dropout: rate.
    """

    width: int
    up_width: int
    up_bias: bool
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)` and the skip `(b, 2x, 2y, 2z, s)` to `(b, 2x, 2y, 2z, width)`."""
        x = Upsample(self.up_width, self.dtype, self.up_bias, name="up")(x)
        x = jnp.concatenate([skip, x], axis=-1)
        for index in (1, 2):
            x = ConvNorm3D(self.width, **normed(self), name=f"conv{index}")(x, train=train)
        return SpatialDropout(self.dropout, name="dropout")(x, train=train)


def folded(x: jax.Array, side: int) -> jax.Array:
    """Turn blocks of voxels into channels: `(b, nx, ny, nz, c)` to `(b, x, y, z, n^3 c)`.

    Args:
        x: cubes.
        side: n, of a block.
    """
    if side == 1:
        return x
    b, *sides, c = x.shape
    nx, ny, nz = (length // side for length in sides)
    x = x.reshape(b, nx, side, ny, side, nz, side, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, nx, ny, nz, side**3 * c)


def unfolded(x: jax.Array, side: int) -> jax.Array:
    """Turn channels into blocks of voxels: the reverse of `folded`."""
    if side == 1:
        return x
    b, nx, ny, nz, c = x.shape
    x = x.reshape(b, nx, ny, nz, side, side, side, c // side**3)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, nx * side, ny * side, nz * side, c // side**3)


# Dropout and logits


class SpatialDropout(nn.Module):
    """Dropout of whole channels of `(b, ..., c)`, because neighbouring pixels are much alike."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Drop channels with probability `rate` while training; needs the "dropout" key."""
        between = tuple(range(1, x.ndim - 1))
        return nn.Dropout(self.rate, broadcast_dims=between, deterministic=not train)(x)


def _prior_bias(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
    """Return the bias with which a binary network first predicts PRIOR everywhere.

    Vertebrae are a few percent of a slice. With a bias of zero, Adam needs hundreds of steps only
    to lower the logits of the rest (Lin et al., focal loss, ICCV 2017, section 4.1).
    """
    return jnp.full(shape, math.log(PRIOR / (1 - PRIOR)), dtype)


class Logits(nn.Module):
    """1x1 convolution to `out_channels`, computed and returned in float32.

    Attributes:
        out_channels: channels of the logits; 1 is binary.
        fold: side of the blocks of voxels into which each voxel of a cube is cut; see `unfolded`.
    """

    out_channels: int
    fold: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(b, ..., c)` to float32 `(b, ..., out_channels)`, each side times `fold`."""
        y = nn.Conv(
            self.out_channels * self.fold ** (x.ndim - 2),
            (1, 1),
            dtype=jnp.float32,
            bias_init=_prior_bias if self.out_channels == 1 else nn.initializers.zeros_init(),
            name="conv",
        )(x)
        return unfolded(y, self.fold)
