"""What the tests of networks share: random arrays and a jit that compiles fast."""

import functools

import jax


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# Each function here runs once or twice: compiling it well takes longer than running it badly.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def init(model, x):
    return quick_jit(model.init)(jax.random.key(0), x)


def apply(model, variables, x):
    return quick_jit(model.apply)(variables, x)
