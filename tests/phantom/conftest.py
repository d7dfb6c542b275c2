"""Persons that several modules of tests share."""

import jax
import pytest

from spinejax.phantom import anatomy


@pytest.fixture(scope="session")
def person():
    return jax.jit(anatomy)(jax.random.key(5))


@pytest.fixture(scope="session")
def crowd():
    draw = jax.jit(lambda keys: jax.lax.map(anatomy, keys))
    # As numpy arrays: to take a person out of jax's would compile a program for each shape.
    return jax.device_get(draw(jax.random.split(jax.random.key(2), 64)))


@pytest.fixture(scope="session")
def people(crowd):
    return jax.tree.map(lambda a: a[:16], crowd)
