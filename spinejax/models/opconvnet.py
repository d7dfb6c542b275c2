"""OP-convNet: the patch classifier of paper B, section IV.A, figure 8 and table 1.

Three times convolution, ReLU and overlapping max pooling, then three fully connected layers.
Text and table of the paper disagree on padding; the defaults are those of the table, whose counts
and shapes agree with each other. A 32 x 32 patch gives 1,682,178 parameters and the activation
sizes 15-7-5-3-3-2.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import InputError
from spinejax.models.layers import (
    MaxPool,
    Network,
    ProductConv,
    Rate,
)


class OPConvNet(Network):
    """Classifier of square patches; most fields in the plural hold one value for each stage.

    The intermediates are the pooled activations of the stages, `maxpool_1` (b, h, w, widths[0]) and
    so on. Parameters are `conv_1` ... {kernel (k, k, in, out), bias} and `fc_1` ... {kernel, bias}.
    The last activations are flattened in the order (h, w, c). Biases begin at zero (section IV).

    Attributes:
        widths: channels of the convolutions.
        kernels: sides of the convolutions, in taps.
        strides: strides of the convolutions.
        paddings: "valid" for none, "same" for zeros that keep the sides.
        pools: sides of the pooling windows.
        pool_strides: not printed; these lead from 15 to 7, from 5 to 3 and from 3 to 2.
        fc_widths: widths of the hidden connected layers; the last layer has out_channels.
        fc_relu: ReLU after each hidden connected layer; table 1 has no such rows.
        dropout: dropout rate after each hidden connected layer.
        init_std: standard deviation of the Gaussian that first weights are drawn from; 0: sqrt(2 /
            inputs) of each layer (He et al., ICCV 2015).
    """

    out_channels: int = 2
    widths: tuple[int, ...] = (64, 128, 256)
    kernels: tuple[int, ...] = (3, 3, 3)
    strides: tuple[int, ...] = (2, 1, 1)
    paddings: tuple[Literal["valid", "same"], ...] = ("valid", "valid", "same")
    pools: tuple[int, ...] = (3, 3, 2)
    pool_strides: tuple[int, ...] = (2, 1, 1)
    fc_widths: tuple[int, ...] = (1024, 256)
    fc_relu: bool = True
    dropout: Rate = 0.5
    init_std: Rate = 0.0

    SEES = "patches"
    PER_STAGE = ("widths", "kernels", "strides", "paddings", "pools", "pool_strides")

    def activation_sizes(self, n: int) -> tuple[int, ...]:
        """Return the sides of the maps of each convolution and pool, for a patch of `n` pixels.

        Raises:
            InputError: The patch is too small for the layers.
        """
        sizes: list[int] = []
        side = n
        for stage in range(len(self.widths)):
            kernel = 1 if self.paddings[stage] == "same" else self.kernels[stage]
            side = (side - kernel) // self.strides[stage] + 1
            sizes.append(side)
            side = (side - self.pools[stage]) // self.pool_strides[stage] + 1
            sizes.append(side)
            if min(sizes) < 1:
                raise InputError(
                    f"a patch of {n} x {n} pixels is too small for stage {stage + 1} of opconvnet; "
                    "enlarge config field data.patches.size or shrink model.kernels and model.pools"
                )
        return tuple(sizes)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise InputError unless patches (b, h, w, c) are large enough for the layers."""
        self.activation_sizes(min(shape[1:3]))

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and pooled activations of patches `x` (b, n, n, channels)."""
        self.check_input(x.shape)
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        if self.init_std:
            init = nn.initializers.normal(self.init_std)
        common: dict[str, Any] = dict(kernel_init=init, dtype=self.dtype)

        def stage(network: OPConvNet, x: jax.Array, index: int) -> jax.Array:
            conv = ProductConv(
                network.widths[index],
                network.kernels[index],
                network.strides[index],
                network.paddings[index],
                **common,
                name=f"conv_{index + 1}",
            )
            size, stride = network.pools[index], network.pool_strides[index]
            return MaxPool(size, stride, name=f"maxpool_{index + 1}")(nn.relu(conv(x)))

        if self.remat:
            stage = nn.remat(stage, static_argnums=(2,))
        out: dict[str, jax.Array] = {}
        x = x.astype(self.dtype)
        for index in range(len(self.widths)):
            x = out[f"maxpool_{index + 1}"] = stage(self, x, index)
        x = x.reshape(x.shape[0], -1)
        for index, width in enumerate(self.fc_widths):
            x = nn.Dense(width, **common, name=f"fc_{index + 1}")(x)
            x = nn.relu(x) if self.fc_relu else x
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{index + 1}")(x)
        last = f"fc_{len(self.fc_widths) + 1}"
        logits = nn.Dense(self.out_channels, kernel_init=init, dtype=jnp.float32, name=last)(x)
        return logits, out
