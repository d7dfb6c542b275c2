"""Vertebral morphometry: sizes, densities and angles of named vertebrae, from labels and CT.

A vertebra's label covers body and arch, and heights are those of the body. It is found in a frame
of its own, whose axes point to the right, to the front and up:

1. *Up* begins as the direction from the next vertebra below to the next one above, *front* as that
   of the patient. On the midline, through the vertebra's centre of mass, the body is what lies
   furthest in front; behind it is the canal.
2. Lines from the body's centre to the front, to the back, to the right and to the left, at mid
   height, leave the label at the walls of the body, or at the canal. They give `depth_mm`, the
   median over the lines, and centre the frame. *Front* is now the direction from the vertebra's
   centre of mass to that of its body, because the arch lies behind.
3. Columns upwards and downwards from mid height leave the label at the end plates. A plane is
   fitted to each end plate. The mean of the two normals is the new *up*. Steps 2 and 3 are
   repeated.

Surfaces lie where the linearly interpolated label is one half. Samples of a line find the step in
which it leaves the label, and halving that step finds the place, whatever the size of the voxels.
Heights are means over columns within half of the width about the midline: anterior from 10 to 25 %
of the depth, middle from 40 to 60 %, posterior from 75 to 90 %. The rims themselves are left out,
because osteophytes grow there.

The core, whose HU are measured, is an elliptic cylinder within the body: 60 % of the width, 50 % of
the depth and of the least height. It lies a little in front of the middle, away from the veins at
the back, and holds neither the shell nor the end plates.

The ratios of heights are those of Eastell et al. (J Bone Miner Res 6:207, 1991): wedge is anterior
to posterior, biconcave is middle to posterior, crush is posterior to the mean posterior height of
the neighbours. The grade has the limits of Genant et al. (J Bone Miner Res 8:1137, 1993): a loss
of 20, 25 and 40 % begins grade 1, 2 and 3. A reader grades by eye and knows other causes; this
grade is a measurement and no diagnosis.

Cobb angles are those between end plates, projected to the coronal or the sagittal plane of the
scan. They are angles of a person who lies, not of one who stands.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import ndimage

from spinejax import geometry, labels
from spinejax.volume import Volume

GRADES = (0.20, 0.25, 0.40)
"""The losses of height at which Genant's grades 1, 2 and 3 begin."""

BANDS = {"anterior": (0.10, 0.25), "middle": (0.40, 0.60), "posterior": (0.75, 0.90)}
"""Where heights are measured: shares of the body's depth, from the front."""

ACROSS = 0.5
"""Heights are measured within this share of the half width on both sides of the midline."""

CORE = (0.6, 0.5, 0.5)
"""Share of the width, of the depth and of the height that the core has."""

CORE_FORWARD = 0.1
"""The core lies this share of the half depth in front of the middle."""

METAL_HU = 2500
"""Such values are those of implants and not of bone."""

SAGITTAL_ANGLES = {
    "cervical_lordosis": ("C2", "C7", -1),
    "thoracic_kyphosis": ("T4", "T12", 1),
    "lumbar_lordosis": ("L1", "L5", -1),
}
"""Cobb angle -> the vertebrae at its ends, and the sign of a forward bend. It lies between the
upper end plate of the first and the lower one of the last; C2 counts with its lower one, because
its dens hides the upper one."""

_GRADED = tuple(labels.order(labels.id_of(name)) for name in ("T4", "L4"))
_ATLAS, _AXIS = 1, 2
_ROUNDS = 5  # a badly centred first frame needs four
_STEP_MM = (1.5, 1.5, 1.0)  # of the samples along the axes of the frame
_HALVINGS = 6  # of a step at a surface: to 0.02 mm
_REACH_MM = (42.0, 39.0, 34.0)  # of the samples, on each side
_MIDLINE_MM = 4.5  # half the width of the narrowest canals is about 8
_PLAUSIBLE_MM = {"depth": (6.0, 60.0), "height": (3.0, 55.0)}
_WIDEST = 1.4  # the width of a body to its depth: that of the cervical ones, and of L5
_RIM = 0.75  # end plates are fitted within this share of width and depth
_BORDER = 0.75  # voxels: a surface this close to the border is that of the scan

Steps = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Morphometry:
    """The measures of one vertebra; None for what cannot be measured.

    Attributes:
        volume_ml: of its label.
        hu_mean: mean HU of the body's core.
        hu_median: its median.
        height_anterior_mm: of the body in front.
        height_middle_mm: in the middle.
        height_posterior_mm: behind.
        depth_mm: of the body at mid height, from front to canal.
        wedge: anterior to posterior height.
        biconcave: middle to posterior height.
        crush: posterior height to the mean of those of the neighbours.
        genant: 0 to 3, a measurement and no diagnosis.
        distance_below_mm: from its body's centre to that of the next vertebra below.
        angle_below_deg: between the axes of the two bodies.
        not_measured: which of these are None -> why.
        upper: (3,) unit normal of the upper end plate, upwards, in RAS+.
        lower: (3,) of the lower end plate, upwards, too.
        centre: (3,) of the body, mm in RAS+.
    """

    volume_ml: float | None = None
    hu_mean: float | None = None
    hu_median: float | None = None
    height_anterior_mm: float | None = None
    height_middle_mm: float | None = None
    height_posterior_mm: float | None = None
    depth_mm: float | None = None
    wedge: float | None = None
    biconcave: float | None = None
    crush: float | None = None
    genant: int | None = None
    distance_below_mm: float | None = None
    angle_below_deg: float | None = None
    not_measured: dict[str, str] = field(default_factory=dict)
    upper: np.ndarray | None = None
    lower: np.ndarray | None = None
    centre: np.ndarray | None = None


NUMBERS: tuple[str, ...] = tuple(Morphometry.__dataclass_fields__)[:13]
"""The names of the measures of a vertebra."""
_OF_BODY = tuple(name for name in NUMBERS[1:11] if name not in ("crush", "genant"))
_OF_HEIGHT = tuple(name for name in _OF_BODY if "height" in name or name in ("wedge", "biconcave"))


@dataclass(frozen=True)
class CobbAngle:
    """A Cobb angle: between the end plates of two vertebrae.

    Attributes:
        cobb_deg: None if it cannot be measured. A lordosis or kyphosis that is bent the other way
            is negative.
        upper: name of the vertebra at the upper end.
        lower: at the lower end.
        not_measured: why there is no angle; empty if there is one.
    """

    cobb_deg: float | None
    upper: str | None
    lower: str | None
    not_measured: str = ""


class _Unmeasurable(Exception):
    """Why a body cannot be measured."""


def measure(
    array: np.ndarray,
    scan: Volume,
    centroids: Mapping[int, np.ndarray],
    *,
    cut: Collection[int] = (),
) -> dict[int, Morphometry]:
    """Measure the vertebrae of a scan.

    Args:
        array: (x, y, z) uint8 VerSe ids on the grid of `scan.array`.
        scan: CT in HU.
        centroids: VerSe id -> (3,) voxel index there of the vertebral body's centre, see
            `metrics.body_centres`. Only these vertebrae are measured.
        cut: ids of vertebrae that an end of the scan cuts.

    Returns:
        VerSe id -> measures, from head to foot.
    """
    boxes = geometry.label_boxes(array)
    ids = sorted((i for i in centroids if i in boxes), key=labels.order)
    masks = {i: _mask(array, scan, i, boxes[i]) for i in ids}
    found = {}
    for place, label in enumerate(ids):
        above, below = ids[max(0, place - 1)], ids[min(len(ids) - 1, place + 1)]
        up = np.array([0.0, 0.0, 1.0])
        if above != below:
            up = _unit(masks[above].mass - masks[below].mass)
        centre = geometry.voxel_to_world(scan.affine, centroids[label])
        found[label] = _vertebra(masks[label], scan, label, centre, up, label in cut)
    return _compared(found)


def cobb_angles(found: Mapping[int, Morphometry]) -> dict[str, CobbAngle]:
    """Return the Cobb angles of a spine: `coronal` and those of `SAGITTAL_ANGLES`.

    The coronal angle is the largest between the upper end plate of any vertebra and the
    lower one of any vertebra below it, always positive. The lumbar lordosis ends at L6 where there
    is one.

    Args:
        found: from `measure`.
    """
    result = {"coronal": _coronal(found)}
    for name, (first, last, sign) in SAGITTAL_ANGLES.items():
        if name == "lumbar_lordosis" and labels.id_of("L6") in found:
            last = "L6"
        result[name] = _sagittal(found, first, last, sign)
    return result


def _coronal(found: Mapping[int, Morphometry]) -> CobbAngle:
    tops = [(i, _tilt_deg(one.upper, 0)) for i, one in found.items() if one.upper is not None]
    ends = [(i, _tilt_deg(one.lower, 0)) for i, one in found.items() if one.lower is not None]
    pairs = [
        (abs(top - end), i, j)
        for i, top in tops
        for j, end in ends
        if labels.order(i) < labels.order(j)
    ]
    if not pairs:
        return CobbAngle(None, None, None, "fewer than two vertebral bodies were measured")
    angle, i, j = max(pairs)
    return CobbAngle(angle, labels.name(i), labels.name(j))


def _sagittal(found: Mapping[int, Morphometry], first: str, last: str, sign: int) -> CobbAngle:
    normals = []
    for name, upper in ((first, first != "C2"), (last, False)):
        one = found.get(labels.id_of(name))
        normal = None if one is None else one.upper if upper else one.lower
        if normal is None:
            why = "is not in the labels" if one is None else "could not be measured"
            return CobbAngle(None, first, last, f"{name} {why}")
        normals.append(normal)
    return CobbAngle(sign * (_tilt_deg(normals[0], 1) - _tilt_deg(normals[1], 1)), first, last)


def _tilt_deg(normal: np.ndarray, axis: int) -> float:
    """Return by how much a normal leans to the right (axis 0) or forwards (axis 1)."""
    return math.degrees(math.atan2(normal[axis], normal[2]))


def grade(loss: float) -> int:
    """Return Genant's grade of a share of height that is lost; see `GRADES`."""
    return sum(loss >= limit for limit in GRADES)


def _compared(found: dict[int, Morphometry]) -> dict[int, Morphometry]:
    """Return the measures with those that need neighbours: crush, grade, distance, angle."""
    result = dict(found)
    below = {a: b for a, b in pairwise(found) if b in labels.successors(a)}
    above = {b: a for a, b in below.items()}
    for label, one in found.items():
        not_measured = dict(one.not_measured)
        near = [found[i] for i in (above.get(label), below.get(label)) if i is not None]
        heights = [n.height_posterior_mm for n in near if n.height_posterior_mm is not None]
        changes: dict[str, float | int | None] = {}
        height = one.height_posterior_mm
        if height is not None and heights:
            changes["crush"] = height / float(np.mean(heights))
        elif height is not None:
            not_measured["crush"] = "no neighbour was measured"
        else:
            not_measured["crush"] = not_measured["height_posterior_mm"]
        if not _GRADED[0] <= labels.order(label) <= _GRADED[1]:
            not_measured["genant"] = "the grade is defined from T4 to L4"
        elif one.wedge is not None and one.biconcave is not None:
            ratios = [one.wedge, one.biconcave, changes.get("crush") or 1.0]
            changes["genant"] = grade(1.0 - min(ratios))
        else:
            not_measured["genant"] = not_measured["height_posterior_mm"]
        if label in below:
            other = found[below[label]]
            if one.centre is not None and other.centre is not None:
                changes["distance_below_mm"] = float(np.linalg.norm(one.centre - other.centre))
            else:
                not_measured["distance_below_mm"] = "one of the two bodies was not measured"
            axes = _axis(one), _axis(other)
            if axes[0] is not None and axes[1] is not None:
                cosine = float(np.clip(axes[0] @ axes[1], -1.0, 1.0))
                changes["angle_below_deg"] = math.degrees(math.acos(cosine))
            else:
                not_measured["angle_below_deg"] = "one of the two bodies was not measured"
        else:
            why = "the next vertebra below is not in the labels"
            not_measured |= dict.fromkeys(("distance_below_mm", "angle_below_deg"), why)
        result[label] = replace(one, **changes, not_measured=not_measured)  # type: ignore[arg-type]
    return result


def _axis(one: Morphometry) -> np.ndarray | None:
    if one.upper is None or one.lower is None:
        return None
    return _unit(one.upper + one.lower)


# One vertebra.


@dataclass(frozen=True, eq=False)
class _Mask:
    """One vertebra's label in its box."""

    own: np.ndarray
    """(x, y, z) uint8, with a border of zeros."""
    count: int
    """Its voxels."""
    mass: np.ndarray
    """(3,) their centre, mm."""
    to_voxel: np.ndarray
    """(4, 4), from the world to indices of `own`."""
    start: np.ndarray
    """(3,) index of the first voxel of `own` in the scan."""
    whole: tuple[int, ...]
    """Voxels of the scan."""

    @property
    def touches(self) -> bool:
        """Whether it has voxels at a border of the scan."""
        last = self.start + self.own.shape
        return bool((self.start < 0).any() or (last > self.whole).any())

    def sample(self, frame: "_Frame", steps: Steps) -> np.ndarray:
        """Return the interpolated label (u, v, w) at steps along the axes of a frame."""
        matrix = self.to_voxel[:3, :3]
        at = geometry.voxel_to_world(self.to_voxel, frame.centre)[:, None, None, None]
        for axis, values in enumerate(steps):
            shape = [1, 1, 1]
            shape[axis] = -1
            along = matrix @ frame.axes[axis]
            at = at + along[:, None, None, None] * values.reshape(shape)
        return self._at(at)

    def sample_points(self, points: np.ndarray) -> np.ndarray:
        """Return the interpolated label (n,) at points (n, 3), in mm."""
        return self._at(geometry.voxel_to_world(self.to_voxel, points).T)

    def _at(self, at: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(self.own, at, np.float32, order=1, prefilter=False)

    def at_border(self, points: np.ndarray) -> bool:
        """Return whether many of the points (n, 3), in mm, lie at the border of the scan."""
        at = geometry.voxel_to_world(self.to_voxel, points) + self.start
        last = np.array(self.whole) - 1
        near = ((at < _BORDER - 0.5) | (at > last + 0.5 - _BORDER)).any(axis=1)
        return bool(near.mean() > 0.02)


@dataclass(frozen=True, eq=False)
class _Frame:
    """A vertebra's own frame."""

    centre: np.ndarray
    """(3,) mm."""
    axes: np.ndarray
    """(3, 3) unit vectors as rows: right, front, up."""

    def moved(self, by: np.ndarray) -> "_Frame":
        """Return the frame moved by (3,) mm along its axes."""
        return _Frame(self.centre + by @ self.axes, self.axes)

    def points(self, *uvw: np.ndarray) -> np.ndarray:
        """Return the places (n, 3) of points with these coordinates in the frame."""
        return self.centre + np.stack([one.ravel() for one in uvw], axis=-1) @ self.axes


@dataclass(frozen=True, eq=False)
class _Walls:
    """Half sizes of a body, and its end plates over a grid of columns (u, v)."""

    half_width: float
    half_depth: float
    top: np.ndarray
    bottom: np.ndarray
    """Heights of the surfaces above the frame's centre, NaN where a column does not begin in the
    label or does not leave it."""


def _mask(array: np.ndarray, scan: Volume, label: int, box: tuple[slice, ...]) -> _Mask:
    own = np.pad((array[box] == label).view(np.uint8), 1)
    start = np.array([side.start for side in box]) - 1
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    count = int(np.count_nonzero(own))
    sums = [
        np.arange(n) @ own.sum(axis=tuple({0, 1, 2} - {i}), dtype=np.int64)
        for i, n in enumerate(own.shape)
    ]
    mass = geometry.voxel_to_world(affine, np.array(sums) / count)
    return _Mask(own, count, mass, np.linalg.inv(affine), start, array.shape)


def _vertebra(
    mask: _Mask, scan: Volume, label: int, centre: np.ndarray, up: np.ndarray, cut: bool
) -> Morphometry:
    not_measured: dict[str, str] = {}
    volume = None
    if mask.touches or cut:
        not_measured["volume_ml"] = "the scan's edge cuts the vertebra"
    else:
        volume = mask.count * scan.voxel_ml
    if label == _ATLAS:
        not_measured |= dict.fromkeys(_OF_BODY, "C1 has no body")
        return Morphometry(volume, not_measured=not_measured)
    try:
        frame, walls, steps = _body(mask, centre, up, axis=label == _AXIS)
        lower = _normal(frame, steps, walls, walls.bottom, label)
        upper = None if label == _AXIS else _normal(frame, steps, walls, walls.top, label)
    except _Unmeasurable as why:
        not_measured |= dict.fromkeys(_OF_BODY, str(why))
        return Morphometry(volume, not_measured=not_measured)
    sizes: dict[str, Any] = {
        "depth_mm": 2.0 * walls.half_depth,
        "centre": frame.centre,
        "upper": upper,
        "lower": lower,
    }
    heights = {f"height_{k}_mm": v for k, v in _heights(walls, steps).items()}
    if label == _AXIS:
        not_measured |= dict.fromkeys(_OF_HEIGHT, "the dens hides the upper end plate")
    elif not all(map(math.isfinite, heights.values())):
        not_measured |= dict.fromkeys(
            _OF_HEIGHT, "the body is too small, or an end plate is not whole"
        )
    else:
        front, middle, behind = heights.values()
        sizes |= heights | {"wedge": front / behind, "biconcave": middle / behind}
    mean, median, why_not = _core_hu(scan, frame, walls, steps, low=label == _AXIS)
    if why_not:
        not_measured |= dict.fromkeys(("hu_mean", "hu_median"), why_not)
    return Morphometry(volume, mean, median, not_measured=not_measured, **sizes)


def _body(
    mask: _Mask, centre: np.ndarray, up: np.ndarray, *, axis: bool
) -> tuple[_Frame, _Walls, Steps]:
    """Find the body of a vertebra; see the module's docstring.

    Args:
        mask: of the vertebra.
        centre: (3,) a point at the height of the body, mm.
        up: (3,) unit vector, roughly upwards.
        axis: whether it is C2, which has no upper end plate.

    Raises:
        _Unmeasurable: there is no body, or the scan's edge cuts it.
    """
    u, v, w = (
        np.arange(-round(reach / step), round(reach / step) + 1) * step
        for reach, step in zip(_REACH_MM, _STEP_MM, strict=True)
    )
    steps = u, v, w
    frame = _started(mask, centre, up, steps)
    for last in (False,) * (_ROUNDS - 1) + (True,):
        inside = mask.sample(frame, steps)
        top, bottom = _exits(mask, frame, steps, inside, axis=2)
        high, low = (
            _median(side[np.ix_(np.abs(u) < _MIDLINE_MM, np.abs(v) < _MIDLINE_MM)], "height")
            for side in (top, bottom)
        )
        levels = np.abs(w - 0.5 * (high - low)) < 0.25 * (high + low)
        if axis:
            levels = (w < 0) & (w > -0.6 * low)
        # At least one level of a low body.
        levels |= w == 0
        near = np.abs(u) < _MIDLINE_MM
        midline = inside[np.ix_(near, np.full(len(v), True), levels)]
        front, behind = (
            _median(side, "depth")
            for side in _exits(mask, frame, (u[near], v, w[levels]), midline, axis=1)
        )
        # In front of the middle, where no process begins.
        fore = np.abs(v - 0.5 * (front - behind) - 0.15 * (front + behind)) < 0.1 * (front + behind)
        across = inside[np.ix_(np.full(len(u), True), fore, levels)]
        right, left = (
            _median(side, "width")
            for side in _exits(mask, frame, (u, v[fore], w[levels]), across, axis=0)
        )
        half_depth = 0.5 * (front + behind)
        _check("depth", 2.0 * half_depth)
        # Where the processes at the sides begin far in front, the lines run into them.
        right, left = (min(side, _WIDEST * half_depth) for side in (right, left))
        walls = _Walls(0.5 * (right + left), half_depth, top, -bottom)
        if last:
            break
        middle = np.array([0.5 * (right - left), 0.5 * (front - behind), 0.5 * (high - low)])
        if axis:
            middle[2] = 0.0
            frame = frame.moved(middle)
            frame = _turned(frame.centre, frame.axes[2], frame.centre - mask.mass)
            continue
        shifted = (u - middle[0], v - middle[1], w)
        planes = [_plane(shifted, walls, side, 0.9) for side in (walls.top, walls.bottom)]
        slopes = np.mean([plane[1:] for plane in planes], axis=0)
        middle[2] = 0.5 * (planes[0][0] + planes[1][0])
        upwards = frame.axes[2] - slopes @ frame.axes[:2]
        moved = frame.moved(middle).centre
        frame = _turned(moved, _unit(upwards), moved - mask.mass)
    # What is left of the offset from the middle belongs to the columns.
    columns = (u - 0.5 * (right - left), v - 0.5 * (front - behind), w)
    frame = frame.moved(np.array([0.5 * (right - left), 0.5 * (front - behind), 0.0]))
    used = _within(columns, walls, _RIM)
    sides = (walls.bottom,) if axis else (walls.top, walls.bottom)
    a, b = np.meshgrid(*columns[:2], indexing="ij")
    for side in sides:
        seen = used & np.isfinite(side)
        if np.count_nonzero(seen) < 0.7 * np.count_nonzero(used):
            raise _Unmeasurable("no vertebral body was found in the label")
        if mask.at_border(frame.points(a[seen], b[seen], side[seen])):
            raise _Unmeasurable("the scan's edge cuts the body")
    if not axis:
        _check("height", float(np.nanmedian((walls.top - walls.bottom)[used])))
    return frame, walls, columns


def _started(mask: _Mask, centre: np.ndarray, up: np.ndarray, steps: Steps) -> _Frame:
    """Return the first frame: the body is what lies furthest in front on the midline."""
    u, v, w = steps
    frame = _turned(centre, up, np.array([0.0, 1.0, 0.0]))
    off = frame.axes @ (mask.mass - centre)
    frame = frame.moved(np.array([off[0], 0.0, 0.0]))
    near = (u[np.abs(u) < _MIDLINE_MM], v, w[np.abs(w) <= 3.0])
    inside = mask.sample(frame, near).mean(axis=(0, 2)) > 0.5
    runs, count = ndimage.label(inside)
    places = [np.flatnonzero(runs == number) for number in range(1, count + 1)]
    places = [run for run in places if len(run) * _STEP_MM[1] >= _PLAUSIBLE_MM["depth"][0]]
    if not places:
        raise _Unmeasurable("no vertebral body was found in the label")
    return frame.moved(np.array([0.0, float(v[places[-1]].mean()), 0.0]))


def _check(name: str, size: float) -> None:
    low, high = _PLAUSIBLE_MM[name]
    if not low <= size <= high:
        raise _Unmeasurable(f"no vertebral body was found in the label ({name} {size:.0f} mm)")


def _median(values: np.ndarray, name: str) -> float:
    known = values[np.isfinite(values)]
    if 2 * known.size < values.size or not known.size:
        why = "no canal lies behind the body" if name == "depth" else f"its {name} has no end"
        raise _Unmeasurable(f"no vertebral body was found in the label ({why})")
    return float(np.median(known))


def _turned(centre: np.ndarray, up: np.ndarray, front: np.ndarray) -> _Frame:
    """Return the frame with this direction up and roughly this one to the front."""
    flat = front - (front @ up) * up
    if np.linalg.norm(flat) < 1e-3:
        raise _Unmeasurable("no arch lies behind the body")
    front = _unit(flat)
    return _Frame(centre, np.stack([np.cross(front, up), front, up]))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _exits(
    mask: _Mask, frame: _Frame, steps: Steps, inside: np.ndarray, *, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return how far lines along an axis run from its zero until they leave the label, mm.

    In the direction in which the axis grows, and in the other; NaN where a line does not begin in
    the label or does not leave it.

    Args:
        mask: of the vertebra.
        frame: whose axes the lines follow.
        steps: of the samples.
        inside: (u, v, w) the label there, see `_Mask.sample`.
        axis: of the lines.
    """
    lines = np.moveaxis(inside, axis, -1)
    others = np.meshgrid(*(one for i, one in enumerate(steps) if i != axis), indexing="ij")
    zero = int(np.flatnonzero(steps[axis] == 0)[0])

    def exit_of(lines: np.ndarray, sign: int) -> np.ndarray:
        out = lines < 0.5
        first = out.argmax(axis=-1)
        known = out.any(axis=-1) & (first > 0)
        places = [other[known] for other in others]
        outside = first[known] * _STEP_MM[axis]
        within = outside - _STEP_MM[axis]
        for _ in range(_HALVINGS):
            middle = 0.5 * (within + outside)
            label = mask.sample_points(frame.points(*_inserted(places, axis, sign * middle)))
            within = np.where(label < 0.5, within, middle)
            outside = np.where(label < 0.5, middle, outside)
        found = np.full(first.shape, np.nan)
        found[known] = 0.5 * (within + outside)
        return found

    return exit_of(lines[..., zero:], 1), exit_of(lines[..., zero::-1], -1)


def _inserted(others: list[np.ndarray], axis: int, values: np.ndarray) -> list[np.ndarray]:
    return [*others[:axis], values, *others[axis:]]


def _within(steps: Steps, walls: _Walls, share: float) -> np.ndarray:
    """Return which columns (u, v) lie in an ellipse of a share of the body's sizes."""
    u, v = steps[0][:, None] / walls.half_width, steps[1][None] / walls.half_depth
    return u**2 + v**2 <= share**2


def _plane(steps: Steps, walls: _Walls, side: np.ndarray, share: float) -> np.ndarray:
    """Fit a plane to an end plate: height in the middle, slope to the right, slope to the front.

    Columns further from the plane than 2.5 standard deviations, as by the median, are left out:
    Schmorl's nodes and osteophytes.
    """
    seen = _within(steps, walls, share) & np.isfinite(side)
    if np.count_nonzero(seen) < 12:
        raise _Unmeasurable("no vertebral body was found in the label")
    u, v = np.meshgrid(*steps[:2], indexing="ij")
    rows = np.stack([np.ones(np.count_nonzero(seen)), u[seen], v[seen]], axis=1)
    heights = side[seen]
    kept = np.full(len(heights), True)
    found = np.zeros(3)
    for _ in range(4):
        found = np.linalg.lstsq(rows[kept], heights[kept], rcond=None)[0]
        off = np.abs(heights - rows @ found)
        kept = off <= max(2.5 * 1.4826 * float(np.median(off)), 0.5)
    return found


def _normal(frame: _Frame, steps: Steps, walls: _Walls, side: np.ndarray, label: int) -> np.ndarray:
    """Return the unit normal of an end plate, upwards."""
    if labels.region(label) == "C":  # the processes at the sides of cervical end plates rise
        side = np.where(np.abs(steps[0])[:, None] < ACROSS * walls.half_width, side, np.nan)
    _, right, front = _plane(steps, walls, side, _RIM)
    return _unit(frame.axes[2] - right * frame.axes[0] - front * frame.axes[1])


def _heights(walls: _Walls, steps: Steps) -> dict[str, float]:
    """Return the heights of the three `BANDS`, mm; NaN where no column of a band has one."""
    near = np.abs(steps[0])[:, None] <= ACROSS * walls.half_width
    depth = 0.5 - 0.5 * steps[1][None] / walls.half_depth
    high = walls.top - walls.bottom
    found = {}
    for name, (low, most) in BANDS.items():
        columns = high[near & (depth >= low) & (depth <= most)]
        columns = columns[np.isfinite(columns)]
        found[name] = float(columns.mean()) if columns.size else math.nan
    return found


def _core_hu(
    scan: Volume, frame: _Frame, walls: _Walls, steps: Steps, *, low: bool
) -> tuple[float | None, float | None, str]:
    """Return mean and median HU of the body's core, or why there are none.

    The values are those of the voxels nearest to points 1 mm apart.

    Args:
        scan: the CT.
        frame: of the body.
        walls: of the body.
        steps: of the columns.
        low: whether the core lies in the lower half, under a dens.
    """
    a, b = CORE[0] * walls.half_width, CORE[1] * walls.half_depth
    within = _within(steps, walls, 0.5)
    floor = float(np.nanmax(walls.bottom[within]))
    roof = 0.0 if low else float(np.nanmin(walls.top[within]))
    middle, half = 0.5 * (roof + floor), 0.5 * CORE[2] * (roof - floor)
    u, v, w = np.meshgrid(
        *(np.arange(-math.floor(size), math.floor(size) + 1.0) for size in (a, b, max(half, 0.0))),
        indexing="ij",
    )
    core = (u / a) ** 2 + (v / b) ** 2 <= 1
    points = frame.points(u[core], v[core] + CORE_FORWARD * walls.half_depth, w[core] + middle)
    at = np.rint(geometry.world_to_voxel(scan.affine, points)).astype(np.intp)
    at = at[((at >= 0) & (at < scan.shape)).all(axis=1)]
    hu = scan.array[tuple(at.T)].astype(np.float64)
    if not hu.size:
        return None, None, "the scan does not show the body's core"
    if float((hu > METAL_HU).mean()) > 0.005:
        return None, None, "metal lies in the body's core"
    return float(hu.mean()), float(np.median(hu)), ""
