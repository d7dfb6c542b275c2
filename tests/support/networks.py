"""What the tests of networks share: random arrays, and a jit and random keys that compile fast."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl


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


def _mixed(words):
    """Mix the bits of 32-bit words: the finaliser of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ (words >> shift)) * jnp.uint32(factor)
    return words ^ (words >> 16)


def _words(key, shape):
    count = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return _mixed(_mixed(key[0] + (count + 1) * jnp.uint32(0x9E3779B9)))


def _bits(key, width, shape):
    return _words(key, shape).astype(jnp.dtype(f"uint{width}"))


# A network draws each of its arrays apart. Threefry, jax's own generator, is so long a program that
# most of the time to compile `init` goes into it.
_QUICK = define_prng_impl(
    key_shape=(1,),
    seed=lambda seed: _mixed(seed.astype(jnp.uint32) + 1)[None],
    split=lambda key, shape: _words(key, shape)[..., None],
    random_bits=_bits,
    fold_in=lambda key, data: _mixed(key ^ _mixed(data.astype(jnp.uint32) + 1)),
    name="quick",
    tag="quick",
)


def quick_key(seed):
    """A random key whose numbers compile fast; they are good enough for weights."""
    return jax.random.key(seed, impl=_QUICK)


def init(model, x):
    return quick_jit(model.init)(quick_key(0), x)


def apply(model, variables, x):
    return quick_jit(model.apply)(variables, x)
