"""Slices, patches and cubes of phantoms as pure functions of a key, for use in a jitted step.

Every sample is another person in another scanner. Options are Python numbers, fixed when jitted. A
batch needs no file and depends on its key alone, not on the number of devices or earlier batches,
so that a run resumes at any step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spinejax.phantom import subjects
from spinejax.phantom.body import column
from spinejax.phantom.body.render import render
from spinejax.phantom.draws import Draws, draw
from spinejax.phantom.once import in_steps, kept
from spinejax.phantom.scanner import physics, view
from spinejax.volume import PLANES

Array = jax.Array

NEAR_SPINE_MM = {"sagittal": (-46.0, 46.0), "coronal": (-26.0, 62.0), "axial": (-30.0, 30.0)}
"""Slices with vertebrae lie in this range: distance from a body's centroid across the slices."""

THROUGH_BODY_MM = {"sagittal": (-20.0, 20.0), "coronal": (-15.0, 15.0), "axial": (-12.0, 12.0)}
"""Half of these lie in this range: they pass through the body, most of a vertebra's volume."""

BODY_MM = {"sagittal": (-150.0, 150.0), "coronal": (-170.0, 90.0), "axial": (-1e4, 1e4)}
"""Other slices lie in this range from the top of the sacrum: wide fields of view hold much air."""

LOW_LUMBAR = (23, 25)
"""L4 to L6 are chosen three times as often as others, since the sacrum looks much like them."""

AIMED_SHARE = 0.85
"""Share of the slices with vertebrae whose window holds the chosen one, at a random place in it."""

PELVIS_MM = 130.0
PELVIS_SHARE = 0.7
"""Share of the other slices whose window lies up to `PELVIS_MM` below the top of the sacrum, if the
field of view reaches there: hips and pelvis look most like vertebrae."""

PATCHES_PER_SLICE = 16
"""Number of neighbouring patches of a batch that are cut from one slice."""


@dataclass(frozen=True)
class Sampling:
    """Settings for taking and preparing slices of phantoms; `data.preprocess` has the preparation.

    Attributes:
        plane: "sagittal", "coronal" or "axial".
        size: (h, w) pixels.
        mode: "resample" to `spacing_mm`, "native" pixels of the scanner, or "resize" the whole
            field of view to `size`.
        spacing_mm: Side of the pixels of "resample".
        smoothing_mm: Standard deviation of the Gaussian that preprocessing smooths with.
        clamp_hu: (low, high).
        window: Set values outside `clamp_hu` to 0 (paper B) rather than clamp them.
        fill_hu: Value outside the field of view.
        spine_free_fraction: Share of slices that lie anywhere in the field of view.
        distractors: Draw other tissue than the spine, too (`render`).
        acquisition: Add noise, blur and artefacts of a scanner (`physics.signal`); without them,
            only its field of view counts.
        label_cut: Label vertebrae that the field of view cuts, as in crops of annotated scans and
            as TotalSegmentator does; VerSe leaves them out.
        region: Where fields of view are centred, one of `scan_plan.REGIONS`.
        extents_mm: (least height, longest side) of fields of view.
        rates: Frequencies of variants, fractures and scoliosis, by the names of `anatomy`.
        neighbours: Slices on each side that the image of a slice also holds, as channels.
    """

    plane: str
    size: tuple[int, int]
    mode: str
    spacing_mm: float
    smoothing_mm: float
    clamp_hu: tuple[float, float]
    window: bool
    fill_hu: float
    spine_free_fraction: float
    distractors: bool = True
    acquisition: bool = True
    label_cut: bool = False
    region: str = "any"
    extents_mm: tuple[float, float] = (0.0, 700.0)
    rates: tuple[tuple[str, float], ...] = ()
    neighbours: int = 0


def _subject(keys: Array, row: Array | None, how: Sampling) -> subjects.Subject:
    """The subject of a row of `subject_rows`; without a row it is drawn here."""
    return subjects.draw(keys, _options(how)) if row is None else subjects.read(row)


def _options(how: Sampling) -> subjects.Options:
    least, most = how.extents_mm
    limits = {"min_extent_mm": least, "max_extent_mm": most}
    return subjects.options(dict(how.rates), limits, how.region)


def subject_rows(key: Array, positions: np.ndarray, how: Sampling) -> np.ndarray:
    """Draw the subjects of a batch's samples before the samples; see `subjects.rows`.

    Args:
        key: Random key of the batch of all devices.
        positions: Places (b,) in that batch.
        how: Of the samples.
    """
    n = len(positions)
    # Of a whole number of turns, lest each number of samples compile a program.
    whole = np.resize(positions, -(-n // subjects.TURNS) * subjects.TURNS)
    return subjects.rows(np.asarray(_subject_keys(key, whole))[:n], _options(how))


@jax.jit
def _subject_keys(key: Array, positions: Array) -> Array:
    def of(position: Array) -> Array:
        return jax.random.key_data(jax.random.split(jax.random.fold_in(key, position), 3)[:2])

    return jax.vmap(of)(positions)


def slice_sample(key: Array, subject: Array | None = None, *, how: Sampling) -> dict[str, Array]:
    """Draw one slice of one person.

    Args:
        key: Random key of person, scanner and place.
        subject: Its row of `subject_rows`; without it, this function draws the subject itself.
        how: Slice and preparation.

    Returns:
        "image" (h, w) float32 HU, preprocessed but not normalised; "label" (h, w) int32 VerSe ids,
        0 for background and for cut vertebrae (see `Sampling.label_cut`); "stats" (4,) float32
        mean, standard deviation, minimum and maximum of the slice instead of the scan. With n
        neighbours the image is (h, w, 2n + 1): slices of the same scan, as far apart as its voxels.
    """
    keys = jax.random.split(key, 3)
    person, protocol = _subject(keys, subject, how)
    points, within, pixel_mm = draw(keys[2], _grid, person, protocol, how)
    if how.neighbours:
        return _with_neighbours(person, protocol, points, pixel_mm, how)
    hu, label = _drawn(person, protocol, points, pixel_mm, how)
    return prepared(hu, label, within, how)


def _with_neighbours(
    person: Any, protocol: dict[str, Array], points: Array, pixel_mm: Array, how: Sampling
) -> dict[str, Array]:
    """Draw a slice at points (h, w, 3) and its neighbours as one thin block; see `slice_sample`."""
    axis, n = PLANES[how.plane], how.neighbours
    lower, upper, apart_mm = (protocol[name][axis] for name in ("lower", "upper", "spacing"))
    offsets = jnp.arange(-n, n + 1) * apart_mm
    inner = [i for i in range(3) if i != axis]
    block = jnp.expand_dims(points, axis) + jnp.expand_dims(
        jnp.outer(offsets, jnp.eye(3)[axis]), inner
    )
    hu, label = _drawn(person, protocol, block, jnp.insert(pixel_mm, axis, apart_mm), how)
    within = jnp.all((block >= protocol["lower"]) & (block <= protocol["upper"]), -1)
    drawn = prepared(hu, label, within, how)
    levels = points[0, 0, axis] + offsets
    seen = (levels >= lower) & (levels <= upper)
    # Beyond the scan's end its last slice is repeated.
    nearest = jnp.clip(jnp.arange(2 * n + 1), n - jnp.sum(seen[:n]), n + jnp.sum(seen[n + 1 :]))
    image = jnp.moveaxis(drawn["image"], axis, -1)
    return drawn | {
        "image": jnp.take(image, nearest, axis=-1),
        "label": jnp.take(drawn["label"], n, axis=axis),
    }


def prepared(hu: Array, label: Array, within: Array, how: Sampling) -> dict[str, Array]:
    """Clamp or window HU, and fill what lies outside the field of view."""
    low, high = how.clamp_hu
    if how.window:
        image = jnp.where((hu >= low) & (hu <= high), hu, 0.0)
    else:
        image = jnp.clip(hu, low, high)
    image = jnp.round(jnp.where(within, image, how.fill_hu))
    count = jnp.maximum(jnp.sum(within), 1)
    mean = jnp.sum(jnp.where(within, image, 0.0)) / count
    std = jnp.sqrt(jnp.sum(jnp.where(within, (image - mean) ** 2, 0.0)) / count)
    stats = jnp.stack([mean, std, jnp.min(image), jnp.max(image)])
    return {"image": image, "label": jnp.where(within, label, 0), "stats": stats}


def _drawn(
    person: Any, protocol: dict[str, Array], points: Array, pixel_mm: Array, how: Sampling
) -> tuple[Array, Array]:
    """HU and labels at points (..., 3); labels without cut vertebrae, unless they are asked for."""
    points = kept(points, points)
    along_z = points.ndim == 4 or how.plane != "axial"  # then z is the last axis
    if how.acquisition:
        edge = protocol["blur"]
        if along_z:
            sliced = physics.thick(pixel_mm[-1], protocol)
            edge = jnp.where(sliced, protocol["axial_edge"], edge)
        hu, label = render(
            person,
            view.where(points, protocol),
            edge_mm=jnp.sqrt(edge**2 + how.smoothing_mm**2),
            distractors=how.distractors,
        )
        if along_z:
            z = points[(0,) * (hu.ndim - 1)][:, 2]
            hu = physics.axial_slices(hu, z, pixel_mm[-1], protocol)
        hu = physics.signal(hu, points, person, protocol, pixel_mm, smoothing_mm=how.smoothing_mm)
    else:
        edge = 0.5 * jnp.mean(pixel_mm)
        hu, label = render(person, points, edge_mm=edge, distractors=how.distractors)
    if how.label_cut:
        return hu, label
    whole = view.whole_vertebrae(
        person, protocol["lower"], protocol["upper"], protocol=protocol if how.acquisition else None
    )
    return hu, view.keep_labels(label, person["spine"]["id"], whole)


def _any_centre(u: Array, person: Any, protocol: dict[str, Array]) -> Array:
    """Centroid (3,) of a random vertebra at a height that the field of view covers (`LOW_LUMBAR`).

    Args:
        u: Uniform number that chooses.
        person: From `anatomy`.
        protocol: From `scan_plan.protocol`.
    """
    spine = person["spine"]
    low, high = protocol["lower"][2], protocol["upper"][2]
    return spine["origin"][_any_vertebra(u, spine["id"], spine["origin"][:, 2], low, high)]


def _any_vertebra(u: Array, ids: Array, z: Array, low: Array, high: Array) -> Array:
    """Index of a random vertebra whose height `z` lies between `low` and `high` (`LOW_LUMBAR`)."""
    seen = (ids > 0) & (z > low) & (z < high)
    # A field of view between two centroids shows no vertebra whole: choose among all.
    seen = jnp.where(jnp.any(seen), seen, ids > 0)
    weight = jnp.where((ids >= LOW_LUMBAR[0]) & (ids <= LOW_LUMBAR[1]), 3.0, 1.0)
    share = jnp.cumsum(jnp.where(seen, weight, 0.0))
    return jnp.sum(u * share[-1] >= share[:-1])


def _grid(
    draws: Draws, person: Any, protocol: dict[str, Array], how: Sampling
) -> tuple[Array, Array, Array]:
    """Points (h, w, 3) of a random slice, which of them were scanned, and pixel sides (2,), mm."""
    lower, upper = protocol["lower"], protocol["upper"]
    axis = PLANES[how.plane]
    inner = [i for i in range(3) if i != axis]
    size = jnp.asarray(how.size, jnp.float32)
    extent = (upper - lower)[jnp.array(inner)]
    if how.mode == "resample":
        pixel = jnp.full(2, how.spacing_mm)
    elif how.mode == "native":
        pixel = protocol["spacing"][jnp.array(inner)]
    else:
        pixel = extent / size
    uniform = draws.uniform
    chosen = _any_centre(uniform("vertebra"), person, protocol)
    free = uniform("spine free") < how.spine_free_fraction

    low, high = lower[axis], upper[axis]
    ranges = jnp.asarray([NEAR_SPINE_MM[how.plane], THROUGH_BODY_MM[how.plane]])
    offsets = ranges[(uniform("through body") < 0.5).astype(jnp.int32)]
    near = jnp.clip(chosen[axis] + offsets, low, high)
    sacrum = person["sacrum"]["origin"]
    body_mm = jnp.clip(sacrum[axis] + jnp.asarray(BODY_MM[how.plane]), low, high)
    low, high = jnp.where(free, body_mm, near)
    below = jnp.clip(sacrum[2] - lower[2], 0.0, PELVIS_MM)
    pelvic = free & (below > 30.0) & (uniform("pelvis") < PELVIS_SHARE)
    height = sacrum[2] - below * uniform("depth")
    level = low + (high - low) * uniform("across")

    # Most windows hold the chosen vertebra; the others lie anywhere on the slice.
    u = uniform("window", 2)
    room = extent - size * pixel
    anywhere = lower[jnp.array(inner)] + u * room
    target = chosen[jnp.array(inner)]
    reach = jnp.maximum(0.5 * size * pixel - 25.0, 0.0)
    if axis == 2:
        level = jnp.where(pelvic, height, level)
    else:
        anywhere = anywhere.at[1].set(
            jnp.where(pelvic, height - 0.5 * size[1] * pixel[1], anywhere[1])
        )
    aimed = target + (2.0 * u - 1.0) * reach - 0.5 * size * pixel
    least = lower[jnp.array(inner)] + jnp.minimum(room, 0.0)
    aimed = jnp.clip(aimed, least, least + jnp.abs(room))
    start = jnp.where(~free & (uniform("aimed") < AIMED_SHARE), aimed, anywhere)
    rows, columns = (start[i] + (jnp.arange(how.size[i]) + 0.5) * pixel[i] for i in (0, 1))
    first, second = jnp.meshgrid(rows, columns, indexing="ij")
    planes: list[Any] = [None] * 3
    planes[axis], planes[inner[0]], planes[inner[1]] = jnp.full_like(first, level), first, second
    points = jnp.stack(planes, -1)
    within = jnp.all((points >= lower) & (points <= upper), -1)
    return points, within, pixel


def patches_of(
    key: Array, drawn: dict[str, Array], *, count: int, side: int, margin: int, fill_hu: float
) -> dict[str, Array]:
    """Cut square patches from a slice: half of them about a vertebra's pixel, half elsewhere.

    Args:
        key: Random key of the places.
        drawn: A slice, from `slice_sample`.
        count: Number of patches.
        side: Pixels along a side of a patch.
        margin: Pixels around it that augmentation may draw from.
        fill_hu: Value outside the slice.

    Returns:
        Fields of `slice_sample` with a leading axis of `count` and sides of side + 2 margin. The
        drawn pixel lies in row and column side // 2 of the patch. On a slice without vertebra, or
        of vertebra alone, any pixel is drawn.
    """
    whole = side + 2 * margin
    before = margin + side // 2
    pad = [(before, whole - 1 - before)] * 2
    image = jnp.pad(drawn["image"], pad, constant_values=fill_hu)
    label = jnp.pad(drawn["label"], pad)
    foreground = (drawn["label"] > 0).reshape(-1)

    def places(key: Array, wanted: Array) -> Array:
        share = jnp.where(jnp.any(wanted), wanted, True).astype(jnp.float32)
        return jax.random.choice(key, wanted.size, (count,), p=share)

    keys = jax.random.split(key)
    inside, outside = places(keys[0], foreground), places(keys[1], ~foreground)
    rows, columns = jnp.divmod(
        jnp.where(jnp.arange(count) % 2 == 0, inside, outside), drawn["label"].shape[1]
    )

    def cut(array: Array) -> Array:
        one = lambda row, column: lax.dynamic_slice(array, (row, column), (whole, whole))  # noqa: E731
        return jax.vmap(one)(rows, columns)

    stats = jnp.broadcast_to(drawn["stats"], (count, 4))
    return {"image": cut(image), "label": cut(label), "stats": stats}


def _cube_numbers(draws: Draws) -> tuple[Array, Array]:
    return draws.uniform("vertebra"), draws.uniform("shift", 3)


def cube_sample(
    key: Array,
    subject: Array | None = None,
    *,
    size: tuple[int, int, int],
    spacing_mm: float,
    how: Sampling,
) -> dict[str, Array]:
    """Draw a cube of one person about a random vertebra.

    Args:
        key: Random key of person, scanner and place.
        subject: See `slice_sample`.
        size: (x, y, z) voxels along the canonical L, P, S axes.
        spacing_mm: Side of the voxels.
        how: Preprocessing; its plane, size and mode are not used.

    Returns:
        Fields of `slice_sample`, image and label (x, y, z).
    """
    keys = jax.random.split(key, 3)
    person, protocol = _subject(keys, subject, how)
    lower, upper = protocol["lower"], protocol["upper"]
    vertebra, shift = draw(keys[2], _cube_numbers)
    chosen = _any_centre(vertebra, person, protocol)
    extent = jnp.asarray(size, jnp.float32) * spacing_mm
    shift = (shift - 0.5) * jnp.maximum(extent - 50.0, 0.0)
    # The cube lies within the field of view, or the field of view within it, as for real scans.
    a, b = lower + 0.5 * extent, upper - 0.5 * extent
    centre = jnp.clip(chosen + shift, jnp.minimum(a, b), jnp.maximum(a, b))
    return _cube(person, protocol, centre, size, spacing_mm, how)


def _cube(
    person: Any,
    protocol: dict[str, Array],
    centre: Array,
    size: tuple[int, int, int],
    spacing_mm: float,
    how: Sampling,
) -> dict[str, Array]:
    """Draw the cube of `size` voxels about `centre` (3,) mm; see `cube_sample`."""
    axes = [centre[i] + (jnp.arange(size[i]) - (size[i] - 1) / 2) * spacing_mm for i in range(3)]
    points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)
    within = jnp.all((points >= protocol["lower"]) & (points <= protocol["upper"]), -1)
    hu, label = _drawn(person, protocol, points, jnp.full(3, spacing_mm), how)
    return prepared(hu, label, within, how)


CUT_MM = 12.0
"""The centroid of a vertebra that the field of view cuts may lie this far beyond its ends."""

INSET_MM = 4.0
"""A vertebra that is cut is marked at least this far within the field of view: the centre of the
part that can be seen, which is all that an earlier network finds."""


def _outline_numbers(draws: Draws) -> tuple[Array, Array]:
    return draws.uniform("vertebra"), draws.normal("jitter", 3)


def outline_sample(
    key: Array,
    subject: Array | None = None,
    *,
    size: tuple[int, int, int],
    spacing_mm: float,
    shift_mm: tuple[float, float],
    jitter_mm: float,
    how: Sampling,
) -> dict[str, Array]:
    """Draw the cube of one vertebra of one person.

    Args:
        key: Random key of person, scanner and place.
        subject: See `slice_sample`.
        size: (x, y, z) voxels along the canonical L, P, S axes.
        spacing_mm: Side of the voxels.
        shift_mm: (back, up) from the marked centre of the vertebra's body to the cube's centre.
        jitter_mm: Standard deviation of the error of the mark along each axis.
        how: Preprocessing; its plane, size and mode are not used.

    Returns:
        Fields of `cube_sample`; the label is 1 in this vertebra and 0 elsewhere.
    """
    keys = jax.random.split(key, 3)
    person, protocol = _subject(keys, subject, how)
    lower, upper = protocol["lower"], protocol["upper"]
    vertebra, jitter = draw(keys[2], _outline_numbers)
    ids, places = column.centroids(person)
    if how.acquisition:
        places = view.shown_at(places, protocol)
    beyond = CUT_MM if how.label_cut else 0.0
    chosen = _any_vertebra(vertebra, ids, places[:, 2], lower[2] - beyond, upper[2] + beyond)
    seen = jnp.clip(places[chosen], lower + INSET_MM, upper - INSET_MM)
    centre = seen + jitter_mm * jitter + jnp.asarray((0.0, *shift_mm))
    drawn = _cube(person, protocol, centre, size, spacing_mm, how)
    return drawn | {"label": (drawn["label"] == ids[chosen]).astype(jnp.int32)}


def batch_of(
    one: Callable[..., dict[str, Array]], key: Array, positions: Array, *rows: Any
) -> dict[str, Array]:
    """Draw the samples of a batch at `positions` (b,): one after the other on a CPU (`once`).

    Args:
        one: key, and one of each of `rows` -> sample.
        key: Random key of the batch of all devices.
        positions: Places in that batch.
        rows: Pytrees of arrays (b, ...).
    """
    each = lambda p, *row: one(jax.random.fold_in(key, p), *row)  # noqa: E731
    if in_steps():
        return lax.map(lambda given: each(*given), (positions, *rows))
    return jax.vmap(each)(positions, *rows)
