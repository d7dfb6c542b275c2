"""Subjects: persons, each with the protocol of one scan.

A subject is the outcome of some thousand small operations. A CPU needs a millisecond for them, but
XLA compiles them for many seconds. So one program (`rows`) draws the subjects for all
configs: rates and limits are its arguments, as is the number of subjects. `spinejax phantom` uses
it on every device. On CPUs, programs that draw samples take its rows instead of repeating it. On
GPUs thousands of operations on one number each are slow; there, programs draw the subjects of a
whole batch at once (`draw`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spinejax.phantom.person.anatomy import Parameters, anatomy
from spinejax.phantom.scanner.scan_plan import REGIONS, Protocol, protocol

Array = jax.Array
Options = dict[str, Any]

TURNS = 16
"""The most subjects that a call of the program draws."""


class Subject(NamedTuple):
    """A person and how they are scanned.

    Attributes:
        person: From `anatomy`.
        protocol: From `scan_plan.protocol`.
    """

    person: Parameters
    protocol: Protocol


def options(rates: Mapping[str, float], limits: Mapping[str, float], region: str) -> Options:
    """Return the numbers that `draw` takes, in the form that `rows` compiles once for all.

    Args:
        rates: Of `anatomy`; those that are missing have its defaults.
        limits: Lengths and the number of voxels, of `scan_plan.protocol`; likewise.
        region: One of `REGIONS`.
    """
    of_scan = {**(protocol.__kwdefaults__ or {}), **limits}
    del of_scan["region"]
    numbers = {"rates": {**(anatomy.__kwdefaults__ or {}), **rates}, "limits": of_scan}
    return {
        **jax.tree.map(np.float32, numbers),
        "region": np.asarray(REGIONS[region], np.float32),
    }


def draw(keys: Sequence[Array] | Array, how: Options) -> Subject:
    """Draw a subject: the person by the first of two random keys, the protocol by the second."""
    person = anatomy(keys[0], **how["rates"])
    return Subject(person, protocol(keys[1], person, region=how["region"], **how["limits"]))


def rows(keys: np.ndarray, how: Options) -> np.ndarray:
    """Draw subjects one after the other, by the program that all configs share.

    Args:
        keys: Data (n, 2, 2) uint32 of the two keys of each, see `draw`.
        how: From `options`.

    Returns:
        (n, numbers) uint32, from which `read` makes subjects.
    """
    found = []
    for first in range(0, len(keys), TURNS):
        part = keys[first : first + TURNS]
        padded = np.zeros((TURNS, *part.shape[1:]), np.uint32)
        padded[: len(part)] = part
        found.append(np.asarray(_rows(padded, len(part), how))[: len(part)])
    return np.concatenate(found)


@jax.jit
def _draw(keys: Array, how: Options) -> Subject:
    return draw(jax.random.wrap_key_data(keys), how)


@jax.jit
def _rows(keys: Array, count: Array, how: Options) -> Array:
    leaves = jax.tree.leaves(jax.eval_shape(_draw, keys[0], how))

    def add(i: Array, rows: Array) -> Array:
        drawn = jax.tree.leaves(_draw(keys[i], how))
        return rows.at[i].set(jnp.concatenate([_bits(x) for x in drawn]))

    empty = jnp.zeros((TURNS, sum(leaf.size for leaf in leaves)), jnp.uint32)
    return lax.fori_loop(0, count, add, empty)


def _bits(x: Array) -> Array:
    x = x.ravel()
    return x.astype(jnp.uint32) if x.dtype == bool else lax.bitcast_convert_type(x, jnp.uint32)


def read(row: Array) -> Subject:
    """Return the subject of a row (numbers,) of `rows`, a JAX or a NumPy array."""
    keys = jax.ShapeDtypeStruct((2, 2), jnp.uint32)
    leaves, form = jax.tree.flatten(jax.eval_shape(_draw, keys, options({}, {}, "any")))
    parts, first = [], 0
    for leaf in leaves:
        part = row[first : first + leaf.size]
        part = part.astype(bool) if leaf.dtype == bool else part.view(leaf.dtype)
        parts.append(part.reshape(leaf.shape))
        first += leaf.size
    return jax.tree.unflatten(form, parts)
