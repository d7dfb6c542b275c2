"""Random numbers by name.

Number i of a name is a function of the key, the name and i alone: the threefry cipher, with the
key, of the counter (CRC-32 of the name, i). So one more draw, another order of draws or a longer
array of one name changes no other number.

Each call of the generator compiles to hundreds of operations. `draw` therefore runs the function
that uses the numbers twice: first abstractly, to collect names and shapes; then with the numbers of
all names, drawn in one call.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry_2x32

from spinejax.phantom import once

Array = jax.Array
T = TypeVar("T")

LIMIT = 2.2
"""Standard deviations at which `Draws.normal` is truncated."""
CLIP = 2.5
"""Standard deviations at which `Draws.clipped` is clipped."""


def _unit(words: Array) -> Array:
    """Uniform numbers in [0, 1) from 32 random bits each: their upper 23 become the mantissa."""
    return lax.bitcast_convert_type((words >> 9) | np.uint32(0x3F800000), jnp.float32) - 1.0


def _truncated(words: Array) -> Array:
    share = 2.0 * _unit(words) - 1.0
    return jnp.clip(2**0.5 * lax.erf_inv(math.erf(LIMIT / 2**0.5) * share), -LIMIT, LIMIT)


def _clipped(words: Array) -> Array:
    return jnp.clip(2**0.5 * lax.erf_inv(2.0 * _unit(words) - 1.0), -CLIP, CLIP)


_KINDS: dict[str, Callable[[Array], Array]] = {
    "normal": _truncated, "clipped": _clipped, "uniform": _unit, "seed": lambda words: words,
}  # fmt: skip


class Draws:
    """Random numbers by name; a name may be used once."""

    def __init__(
        self, take: Callable[[str, str, tuple[int, ...]], Array], number: Array, prefix: str = ""
    ) -> None:
        self._take, self._number, self._prefix = take, number, prefix

    def of(self, part: str) -> "Draws":
        """Return draws whose names start with `part`."""
        return Draws(self._take, self._number, f"{self._prefix}{part}: ")

    def normal(self, name: str, *shape: int) -> Array:
        """Standard normal numbers, truncated at LIMIT: none lies beyond."""
        return self._take("normal", self._prefix + name, shape)

    def clipped(self, name: str, *shape: int) -> Array:
        """Standard normal numbers, clipped at CLIP: those beyond are set to it."""
        return self._take("clipped", self._prefix + name, shape)

    def uniform(self, name: str, *shape: int) -> Array:
        """Numbers in [0, 1)."""
        return self._take("uniform", self._prefix + name, shape)

    def seed(self, name: str, *shape: int) -> Array:
        """32 random bits each, uint32."""
        return self._take("seed", self._prefix + name, shape)

    def settled(self, values: T) -> T:
        """Return `values` unchanged, but computed once for all that use them (`once.kept`).

        Otherwise the compiler spends most of its time on copies of the arithmetic behind them.
        """
        return once.kept(self._number, values)


class _Place(NamedTuple):
    kind: str
    shape: tuple[int, ...]
    first: int  # among the numbers of its kind


class _Layout(NamedTuple):
    places: dict[str, _Place]
    counts: list[int]  # numbers of each of _KINDS
    counters: np.ndarray  # (2 n,) uint32: the names' CRC-32, then the indices


_LAYOUTS: WeakKeyDictionary[Callable[..., Any], _Layout] = WeakKeyDictionary()


def draw(key: Array, build: Callable[..., T], *args: Any, **options: Any) -> T:
    """Return `build(draws, *args, **options)` with the random numbers of `key`.

    Args:
        key: Random key; its first 64 bits count.
        build: Pure function whose names and shapes do not depend on its arguments.
        args: Of `build`.
        options: Of `build`.

    Raises:
        ValueError: `build` uses a name twice, two names with one CRC-32, or other names or shapes
            than when it was first called.
    """
    layout = _LAYOUTS.get(build)
    if layout is None:
        layout = _LAYOUTS[build] = _recorded(lambda draws: build(draws, *args, **options))
    words = threefry_2x32(jax.random.key_data(key)[:2], jnp.asarray(layout.counters))
    number = _unit(words[:1])
    parts = jnp.split(words[: words.size // 2], np.cumsum(layout.counts)[:-1])
    pools = once.kept(number, {k: _KINDS[k](part) for k, part in zip(_KINDS, parts, strict=True)})

    def take(kind: str, name: str, shape: tuple[int, ...]) -> Array:
        place = layout.places.get(name)
        if place is None or place.kind != kind or place.shape != shape:
            raise ValueError(f"random number {name!r} differs from the first call of {build}")
        return pools[kind][place.first : place.first + math.prod(shape)].reshape(shape)

    return build(Draws(take, number), *args, **options)


def _recorded(build: Callable[[Draws], Any]) -> _Layout:
    """Run `build` without numbers and record the names and shapes that it draws."""
    places: dict[str, _Place] = {}
    counts = dict.fromkeys(_KINDS, 0)

    def take(kind: str, name: str, shape: tuple[int, ...]) -> Array:
        if name in places:
            raise ValueError(f"random number {name!r} is drawn twice; give one another name")
        places[name] = _Place(kind, shape, counts[kind])
        counts[kind] += math.prod(shape)
        return jnp.zeros(shape, jnp.uint32 if kind == "seed" else jnp.float32)

    jax.eval_shape(lambda: build(Draws(take, jnp.zeros(1))))
    hashes = {name: zlib.crc32(name.encode()) for name in places}
    if len(set(hashes.values())) < len(hashes):
        twins = [name for name in hashes if list(hashes.values()).count(hashes[name]) > 1]
        raise ValueError(f"random numbers {twins} have one CRC-32; rename one of them")
    ordered = [n for kind in _KINDS for n, place in places.items() if place.kind == kind]
    sizes = [math.prod(places[name].shape) for name in ordered]
    first = np.repeat(np.array([hashes[name] for name in ordered], np.uint32), sizes)
    second = np.concatenate([np.arange(size, dtype=np.uint32) for size in sizes])
    return _Layout(places, list(counts.values()), np.concatenate([first, second]))
