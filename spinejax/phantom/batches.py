"""Endless batches of phantoms as NumPy arrays, for training in any framework."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from spinejax import numerics
from spinejax.errors import InputError, check_choice
from spinejax.phantom.once import in_steps
from spinejax.phantom.person.anatomy import check_rates
from spinejax.phantom.samples import (
    Sampling,
    batch_of,
    cube_sample,
    slice_sample,
    subject_rows,
)
from spinejax.phantom.scanner.scan_plan import REGIONS
from spinejax.volume import PLANES

AIR_HU, MOST_HU = -1024, 3071


def stream(
    seed: int = 0,
    size: Sequence[int] = (80, 128),
    batch_size: int = 8,
    *,
    spacing_mm: float = 2.0,
    plane: str = "sagittal",
    region: str = "any",
    rates: Mapping[str, float] | None = None,
    smoothing_mm: float = 0.75,
    spine_free_fraction: float = 0.1,
    label_cut: bool = False,
    start: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Draw endless batches of synthetic spine CT.

    Every sample is another person in another scanner. Batch i is a function of the seed, i and the
    options alone. The first batch takes a minute or so, since JAX compiles.

        for batch in spinejax.phantom.stream(seed=0, size=(80, 128), batch_size=8):
            images = torch.from_numpy(batch["image"]).float()

    Args:
        seed: 0 to 2**31 - 1.
        size: Pixels of slices, two numbers, or voxels of cubes, three numbers. Axes point to the
            left, to the back and to the head, without the axis across a slice: sagittal slices are
            (back, head), coronal (left, head), axial (left, back), cubes (left, back, head).
        batch_size: Samples in a batch.
        spacing_mm: Side of the pixels or voxels, mm.
        plane: "sagittal", "coronal" or "axial"; cubes have none.
        region: Where scans are centred: "any", "cervical", "thoracic" or "lumbar".
        rates: Frequencies of variants, fractures and scoliosis, by the names of `anatomy`; others
            keep their defaults.
        smoothing_mm: Standard deviation of the Gaussian that smooths the scans, mm.
        spine_free_fraction: Share of slices that lie anywhere in the scan rather than at a
            vertebra; cubes always lie at one.
        label_cut: Label vertebrae that the edge of the scan cuts, too; VerSe leaves them out.
        start: Number of the first batch, to resume.

    Returns:
        Iterator of batches: `image` (batch_size, *size) int16, HU from -1024 to 3071, -1024 outside
        the scan; `label` (batch_size, *size) uint8, VerSe ids, 0 for background; `spacing_mm`
        (batch_size, 2 or 3) float32.

    Raises:
        InputError: an unusable argument.
    """
    sides, most = tuple(int(side) for side in size), 2**31 - 1
    for name, value, good, advice in (
        ("seed", seed, 0 <= seed <= most, f"a whole number from 0 to {most}"),
        ("size", sides, len(sides) in (2, 3), "two numbers for slices or three for cubes"),
        ("size", sides, min(sides, default=0) > 0, "numbers from 1 up"),
        ("batch_size", batch_size, batch_size > 0, "a whole number from 1 up"),
        ("start", start, start >= 0, "a whole number from 0 up"),
        ("spacing_mm", spacing_mm, 0.1 <= spacing_mm <= 20.0, "a length from 0.1 to 20 mm"),
        ("smoothing_mm", smoothing_mm, 0.0 <= smoothing_mm <= 20.0, "a length from 0 to 20 mm"),
        (
            "spine_free_fraction", spine_free_fraction, 0.0 <= spine_free_fraction <= 1.0,
            "a share from 0 to 1",
        ),
    ):  # fmt: skip
        if not good:
            raise InputError(f"{name}={value}: give {advice}")
    check_choice("plane", plane, PLANES)
    check_choice("region", region, REGIONS)
    how = Sampling(
        plane=plane,
        size=(sides[0], sides[1]),
        mode="resample",
        spacing_mm=float(spacing_mm),
        smoothing_mm=float(smoothing_mm),
        clamp_hu=(float(AIR_HU), float(MOST_HU)),
        window=False,
        fill_hu=float(AIR_HU),
        spine_free_fraction=float(spine_free_fraction),
        label_cut=label_cut,
        region=region,
        rates=tuple(sorted(check_rates(rates or {}).items())),
    )
    return _batches(seed, sides, batch_size, how, start)


def _batches(
    seed: int, size: tuple[int, ...], count: int, how: Sampling, start: int
) -> Iterator[dict[str, np.ndarray]]:
    spacing = np.full((count, len(size)), how.spacing_mm, np.float32)
    coming = _drawn(seed, start, size, count, how)
    while True:
        start += 1
        # JAX draws the next images while these are used.
        now, coming = coming, _drawn(seed, start, size, count, how)
        yield {**{name: np.array(now[name]) for name in now}, "spacing_mm": spacing.copy()}


@numerics.fixed()
def _drawn(
    seed: int, number: int, size: tuple[int, ...], count: int, how: Sampling
) -> dict[str, jax.Array]:
    key, rows = jax.random.fold_in(jax.random.key(seed), number), []
    if in_steps():
        rows.append(subject_rows(key, np.arange(count), how))
    return _batch(key, size, count, how, *rows)


@partial(jax.jit, static_argnames=("size", "count", "how"))
def _batch(
    key: jax.Array, size: tuple[int, ...], count: int, how: Sampling, *rows: jax.Array
) -> dict[str, jax.Array]:
    if len(size) == 2:
        one = partial(slice_sample, how=how)
    else:
        sides = (size[0], size[1], size[2])
        one = partial(cube_sample, size=sides, spacing_mm=how.spacing_mm, how=how)
    drawn = batch_of(one, key, jnp.arange(count), *rows)
    return {"image": drawn["image"].astype(jnp.int16), "label": drawn["label"].astype(jnp.uint8)}
