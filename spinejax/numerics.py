"""What jax computes with: its devices, and the switches that change numbers.

jax takes switches from the environment, such as JAX_ENABLE_X64, and from the program that calls
this package. No result of this package depends on them: it computes inside `fixed`. The switches
of the compiler cannot be set there; a run records them (`switches`).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import flax
import jax
import numpy as np

from spinejax.errors import InputError, shown

logger = logging.getLogger("spinejax")

# Switches that only a whole program can set, and the values that this package needs.
_NEEDED = {"jax_random_seed_offset": 0, "flax_fix_rng_separator": False}
_COMPILER = (
    "XLA_FLAGS",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "NVIDIA_TF32_OVERRIDE",
    "LIBTPU_INIT_ARGS",
)


@contextmanager
def fixed() -> Iterator[None]:
    """Compute with the same switches in every environment and program; also a decorator.

    The caller's switches hold again afterwards. They differ by thread: a function that another
    thread runs needs its own `fixed`.

    Raises:
        InputError: jax has no device, or a switch that cannot be set here has another value.
    """
    check_devices()
    for name, needed in _NEEDED.items():
        value = getattr(flax.config if name.startswith("flax") else jax.config, name, needed)
        if value != needed:
            raise InputError(
                f"{name.upper()}={value} changes random numbers; unset it, or set it to {needed}"
            )
    with ExitStack() as stack:
        for switch in (
            jax.enable_x64(False),
            jax.default_matmul_precision(None),
            jax.default_prng_impl("threefry2x32"),
            jax.threefry_partitionable(True),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            jax.softmax_custom_jvp(False),
            # These find faults in programs; with some, jax computes without its compiler.
            jax.disable_jit(False),
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.debug_key_reuse(False),
            jax.transfer_guard("allow"),
        ):
            stack.enter_context(switch)
        yield


@cache
def check_devices() -> None:
    """Start jax's devices, and warn once of flags that make XLA less exact.

    Raises:
        InputError: there is no device, such as with JAX_PLATFORMS=cuda on a machine without GPU; or
            a flag makes convolutions wrong.
    """
    if "fast_m" in os.environ.get("XLA_FLAGS", ""):
        logger.warning(
            "XLA_FLAGS=%s makes XLA less exact: scores differ from those of other machines",
            os.environ["XLA_FLAGS"],
        )
    try:
        jax.devices()
    except Exception as error:  # jax raises AssertionError, RuntimeError and others
        asked = getattr(jax.config, "jax_platforms", None)
        if asked:
            raise InputError(
                f"JAX_PLATFORMS={asked}: jax finds no such device; unset JAX_PLATFORMS to use what "
                "this machine has, write JAX_PLATFORMS=cpu for the processor, or install jax for "
                "the device (pip install -e .[cuda])"
            ) from error
        for name in ("JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES"):
            if name in os.environ:
                raise InputError(
                    f"{name}={shown(os.environ[name])}: jax finds no such devices; unset {name} to "
                    "use what this machine has"
                ) from error
        reason = str(error).partition("\n")[0][:150] or type(error).__name__
        raise InputError(
            f"jax finds no device ({reason}); JAX_PLATFORMS=cpu uses the processor"
        ) from error
    flags = os.environ.get("XLA_FLAGS", "")
    if "onednn" in flags and not _convolves():
        raise InputError(
            f"XLA_FLAGS={shown(flags)}: convolutions by oneDNN are wrong in jax {jax.__version__}; "
            "take the flag of oneDNN out"
        )


def _convolves() -> bool:
    """Return whether the gradient by the weights of a layer with one output channel is right.

    With `--xla_cpu_experimental_onednn_custom_call`, jaxlib 0.11.2 and 0.12.0.1 compute another
    one, and losses look normal. All numbers are small integers, so the sums are exact.
    """
    rng = np.random.default_rng(0)
    x, g = (np.float32(rng.integers(-3, 4, (2, 8, 8, c))) for c in (8, 1))

    def layer(kernel: jax.Array, x: jax.Array) -> jax.Array:
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)

    # As arguments: constants would be multiplied by the compiler itself.
    found = jax.jit(lambda k, x, g: jax.vjp(lambda k: layer(k, x), k)[1](g)[0])(
        np.ones((1, 1, 8, 1), np.float32), x, g
    )
    return np.array_equal(np.asarray(found)[0, 0], np.einsum("bhwi,bhwo->io", x, g))


def switches() -> dict[str, str]:
    """Return the environment variables that change what the compiler makes, if they are set."""
    return {name: os.environ[name] for name in _COMPILER if os.environ.get(name)}
