"""Whether a scan can be a CT in Hounsfield units, of a human, with true voxel sizes.

A file does not say that its numbers are Hounsfield units (HU), or that its lengths are true. Facts
that every CT shares tell: air lies near -1000 HU, fat near -100, muscle near 50, and few voxels lie
above 1000; a voxel has 0.02 to 25 mm; a body is wider than a fist and narrower than the scanner.

`check` refuses what cannot be a CT and returns doubts about the rest. Right scans cause neither:
crops without air or of the lung alone, contrast agent, metal, noise, and fillers below -1024 or NaN
outside of the scan circle. Values are never corrected. A crop without air may be shifted or scaled
a little and still look right.

The check looks at a sample of at most 60 x 60 x 60 voxels, which takes milliseconds.
"""

from dataclasses import dataclass

import numpy as np

from spinejax.errors import InputError
from spinejax.volume import Volume

LEAST_VOXEL_MM, MOST_VOXEL_MM = 0.02, 25.0
"""Sides of the voxels of CT. The finest scanners of living bone have 0.06 mm; the widest gaps
between slices, of old chest CT, are 20 mm."""

MOST_RATIO = 100.0
"""Largest ratio of the sides of a voxel. Slices of 10 mm with pixels of 0.25 mm have 40."""

MOST_EXTENT_MM = 2500.0
"""Longest side of a scan: the table of a scanner moves by up to 2 m."""

LEAST_FOUND_ML = 1.0
"""A spine of a smaller volume counts as nothing found; the smallest vertebra has several ml."""

_SIDE = 60  # voxels of the sample along each axis
_LEAST_SAMPLE = 4096  # voxels; the values of a smaller scan are not doubted
_LARGE_SAMPLE = 20_000
_DOUBTFUL_RATIO = 40.0
_MOST_FIELD_MM = 1000.0  # the widest field of view of a scanner is 800 mm
_LEAST_BODY_MM = 60.0  # the chest of a newborn is about 90 mm wide
_NARROW_HU = 20.0
_LEAST_SPAN_HU = 100.0  # more than the noise within one organ
_MOST_VALUE = 100_000.0  # offsets and unsigned numbers of 16 bits stay below
_AIR_HU, _BODY_HU = -900.0, -500.0  # below: air; above: no lung
_GIVE_HU = "give the CT in HU, as the scanner exported it"


def check(volume: Volume, name: str) -> list[str]:
    """Refuse a scan that cannot be a CT; return doubts about others.

    Args:
        volume: the scan.
        name: what to call it in messages, for example its path.

    Returns:
        Doubts, one line each, without the name; none for a plausible CT.

    Raises:
        InputError: voxel sizes or intensities are not those of a CT. The message says what they
            look like, and what to do.
    """
    sample = _sample(volume.array)
    problem = _impossible_grid(volume)
    if problem is None and (labels := label_map(volume)) is not None:
        problem = f"{labels}; give the CT"
    problem = problem or _impossible_values(volume.array, sample)
    if problem is not None:
        raise InputError(f"{name}: {problem}")
    doubts = (_doubtful_grid(volume, sample), _doubtful_values(sample))
    return [doubt for doubt in doubts if doubt is not None]


def label_map(volume: Volume) -> str | None:
    """Return how a volume that was read as a CT shows that it is a label map; None if it is none.

    Masks of zeros and ones count as label maps.
    """
    array, values = volume.array, np.unique(_sample(volume.array))
    low, high = float(array.min()), float(array.max())
    # To 0.01, as labels are read.
    whole = bool((np.abs(values - np.rint(values)) <= 0.01).all())
    if not whole or low < 0 or high == low or _flatness(array) <= 0.9:
        return None
    # Masks of a whole body have more than a hundred labels. So have pictures with grey values, in
    # which flat regions lie outside of the body.
    if len(values) > 64 and (high > 255 or _flatness(array, above=0) <= 0.6):
        return None
    some = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if values[4:].size else "")
    return f"holds only the numbers {some} in flat regions, so it is a label map"


def why_nothing(volume: Volume) -> str | None:
    """Return likely reasons why no spine was found, on one line; None if `check` has doubts."""
    sample = _sample(volume.array)
    if _doubtful_values(sample) or _doubtful_grid(volume, sample):
        return None
    height = volume.shape[2] * volume.spacing_mm[2]
    return (
        f"the scan may show no spine (it is {height:.0f} mm high), its header may give a wrong "
        f"orientation (it says {volume.orientation}), or the network was trained on other scans"
    )


def _sample(array: np.ndarray) -> np.ndarray:
    """Return a regular sample of an array (x, y, z), at most `_SIDE` voxels a side, float32."""
    steps = tuple(slice(None, None, -(-n // _SIDE)) for n in array.shape)
    return np.asarray(array[steps], np.float32)


def _impossible_grid(volume: Volume) -> str | None:
    sides = np.array(volume.spacing_mm)
    shown = " x ".join(f"{side:.3g}" for side in sides)
    advice = "correct the voxel size in the header"
    if sides.min() < LEAST_VOXEL_MM or sides.max() > MOST_VOXEL_MM:
        unit = ""
        for factor, what in ((1e-3, "micrometres"), (1e3, "metres")):
            if 0.05 <= (factor * sides).min() and (factor * sides).max() <= 10:
                unit = f" (lengths in {what}, taken for mm?)"
        return (
            f"voxels of {shown} mm are not those of a CT, which has {LEAST_VOXEL_MM:g} to "
            f"{MOST_VOXEL_MM:g} mm{unit}; {advice}"
        )
    if sides.max() >= MOST_RATIO * sides.min():
        return (
            f"voxels of {shown} mm are not those of a CT: one side is {MOST_RATIO:g} times another "
            f"or more; {advice}"
        )
    extent = (sides * volume.shape).max()
    if extent > MOST_EXTENT_MM:
        return (
            f"the scan is {extent / 1000:.3g} m long by its header (voxels of {shown} mm), but no "
            f"CT is longer than {MOST_EXTENT_MM / 1000:g} m; {advice}"
        )
    return None


def _impossible_values(array: np.ndarray, sample: np.ndarray) -> str | None:
    low, high = float(array.min()) + 0.0, float(array.max())
    if low == high:
        return f"every voxel is {low:g}; the scan is empty, export it again"
    if np.quantile(sample, 0.99) > _MOST_VALUE:
        return f"its values reach {high:.3g}, but HU end near 30000, even in metal; {_GIVE_HU}"
    if high < _AIR_HU:
        return None  # air, which is a doubt
    middle = np.quantile(sample, 0.999) - np.quantile(sample, 0.001)
    if low >= 0 and high <= 1:
        return (
            f"its values lie between {low:.3g} and {high:.3g}, so they are probabilities, or were "
            f"rescaled to 0-1; {_GIVE_HU}"
        )
    if high - low <= _NARROW_HU or (middle <= _NARROW_HU and high - low <= 20 * _NARROW_HU):
        return (
            f"its values lie between {low:.3g} and {high:.3g}, but those of a body in HU span more "
            f"than 1000, so they were rescaled (to 0-1, or by mean and deviation?); {_GIVE_HU}"
        )
    return None


def _flatness(array: np.ndarray, above: float = -np.inf) -> float:
    """Return the share of equal neighbours, of the axis along which it is largest.

    Args:
        array: (x, y, z).
        above: pairs whose first value is at most this do not count.
    """
    shares = [0.0]
    for axis, length in enumerate(array.shape):
        if length > 1:
            steps = [slice(None, None, -(-n // _SIDE)) for n in array.shape]
            pairs = []
            for first in (0, 1):
                steps[axis] = slice(first, length - 1 + first, -(-length // _SIDE))
                pairs.append(array[tuple(steps)])
            counted = pairs[0] > above
            if counted.any():
                shares.append(float((pairs[0] == pairs[1])[counted].mean()))
    return max(shares)


def _doubtful_grid(volume: Volume, sample: np.ndarray) -> str | None:
    sides = np.array(volume.spacing_mm)
    shown = " x ".join(f"{side:.3g}" for side in sides)
    width = max(sides[:2] * volume.shape[:2])
    if width > _MOST_FIELD_MM:
        return (
            f"the field of view is {width:.0f} mm wide by the header (voxels of {shown} mm), and "
            f"that of a scanner at most {_MOST_FIELD_MM:.0f} mm; check the voxel size"
        )
    body = _body_mm(sample, sides * volume.shape)
    if body is not None and max(body) < _LEAST_BODY_MM:
        return (
            f"the body is only {body[0]:.0f} mm wide and {body[1]:.0f} mm deep by the header "
            f"(voxels of {shown} mm); check the voxel size"
        )
    if sides.max() > _DOUBTFUL_RATIO * sides.min():
        return (
            f"voxels of {shown} mm are {sides.max() / sides.min():.0f} times longer than wide; "
            "check the voxel size"
        )
    return None


def _body_mm(sample: np.ndarray, extent_mm: np.ndarray) -> tuple[float, float] | None:
    """Return width and depth of a body with air on all four sides; None without such a body."""
    body = sample > _BODY_HU
    if not body.any():
        return None
    found, box = [], []
    for axis in (0, 1):
        profile = body.mean(axis=tuple({0, 1, 2} - {axis}))
        inside = np.flatnonzero(profile > 0.1 * profile.max())
        box.append(slice(inside[0], inside[-1] + 1))
        if inside[0] == 0 or inside[-1] == len(profile) - 1:
            return None
        found.append(float((inside[-1] + 1 - inside[0]) / len(profile) * extent_mm[axis]))
    # A vessel in a crop of the lung is no body, and lung is no air.
    outside = np.median(sample[~body])
    return (found[0], found[1]) if body[tuple(box)].mean() > 0.5 and outside < _AIR_HU else None


@dataclass(frozen=True)
class _Spread:
    """The distribution of a sample; `values` are sorted."""

    values: np.ndarray

    def share(self, low: float, high: float = np.inf) -> float:
        """Return the share of values from `low` to below `high`."""
        first, last = np.searchsorted(self.values, (low, high))
        return float(last - first) / len(self.values)

    def near(self, value: float, reach: float = 10.0) -> float:
        """Return the share of values at most `reach` away."""
        return self.share(value - reach, value + reach)

    def at(self, share: float) -> float:
        """Return the value below which this share lies."""
        return float(self.values[int(share * (len(self.values) - 1))])


def _doubtful_values(sample: np.ndarray) -> str | None:
    """Return what the values look like if they are probably not HU.

    Thresholds leave a margin to all real scans, phantoms and crops of them that were tried
    (docs/inputs.md).
    """
    if sample.size < _LEAST_SAMPLE:
        return None
    spread = _Spread(np.sort(sample, axis=None))
    return (
        _shifted(spread)
        or _without_air(spread, _corners(sample))
        or _masked(spread)
        or _equalised(spread)
        or _negated(spread)
        or _clipped(spread)
        or _scaled(spread)
    )


def _shifted(spread: _Spread) -> str | None:
    values = spread.values
    whole = bool((values == np.rint(values)).all())
    if whole and spread.share(60_000, 65_536) > 0.02:
        return (
            "negative HU were stored as unsigned numbers (values just below 65536); subtract 65536 "
            "from the values above 32767"
        )
    lowest = float(values[0])
    tissue = spread.share(850, 1250)
    if (
        tissue > 0.1
        and spread.share(350, 800) < 0.5 * tissue
        and max(spread.share(-np.inf, -60), spread.share(1800)) < 0.05
        and lowest > _AIR_HU
    ):
        return (
            "looks like HU + 1024: tissue lies near 1060 instead of 50, and nothing near -1000; "
            "subtract 1024, e.g. save img.get_fdata() - 1024 with nibabel"
        )
    if spread.at(0.25) > 450:
        return f"most values lie above 450, where HU have bone and metal only; {_GIVE_HU}"
    # HU - 1024: reading sets air and fat to -1024, and little but bone lies above -900.
    body, tissue = spread.share(_BODY_HU), spread.share(-200, 200)
    piled = spread.share(-np.inf, -1023) > 0.3 and spread.share(-np.inf, _AIR_HU) > 0.7
    if (spread.share(-np.inf, -940) > 0.7 and spread.at(0.99) < _BODY_HU) or (
        piled and body < 0.1 and tissue < 0.4 * body
    ):
        return (
            "it shows nothing but air, or its values are HU - 1024 (an offset subtracted twice); "
            "in that case add 1024"
        )
    return None


def _corners(sample: np.ndarray) -> np.ndarray:
    """Return the medians of the four corners of the slices, (4,): in a whole scan, outside."""
    x, y = (max(1, n // 10) for n in sample.shape[:2])
    return np.array([np.median(sample[i, j]) for i in np.s_[:x, -x:] for j in np.s_[:y, -y:]])


def _without_air(spread: _Spread, corners: np.ndarray) -> str | None:
    """Find background, or the air of other units, that lies above the HU of air."""
    values = spread.values
    lowest, top = float(values[0]), spread.at(0.999)
    if lowest <= _AIR_HU:
        return None
    step = 0.02 * (top - lowest)
    exact, low = (
        spread.share(lowest, np.nextafter(lowest, np.inf)),
        spread.share(lowest, lowest + step),
    )
    clipped = exact > 0.03 and low - exact < 2 * exact
    # In a crop of tissue, few voxels have the lowest values. Its corners may be fat.
    piled = low > 0.05 and low > 1.5 * spread.share(lowest + step, lowest + 2 * step)
    reach = 0.1 * (spread.at(0.75) - lowest)
    outside = corners.max() < lowest + reach and not -160 < np.median(corners) < -40
    if clipped or piled or outside:
        if lowest < 0 and clipped:
            return f"values are clipped at {lowest:g}, above the HU of air (-1000); {_GIVE_HU}"
        return _no_air_at(lowest)
    # Every piece of a body this large has fat, or noise below 0.
    if lowest >= 0 and top - spread.at(0.001) > _LEAST_SPAN_HU and len(values) >= _LARGE_SAMPLE:
        return _no_air_at(lowest)
    below = values[values < -170]
    if len(below) > 0.05 * len(values) and spread.share(-np.inf, -880) < 0.001:
        first, middle, last = np.quantile(below, (0.25, 0.5, 0.75))
        gap = spread.share(middle + 50, middle + 120) < 0.2 * spread.near(middle, 50)
        if middle > -700 and last - first < 60 and gap:
            return (
                f"air seems to lie at {middle:.0f} instead of -1000, so the values were rescaled; "
                f"{_GIVE_HU}"
            )
    return None


def _no_air_at(lowest: float) -> str:
    return (
        f"nothing lies near -1000 HU, where air is, and the lowest value is {lowest:.4g}: a "
        f"picture with grey values, MR or X-ray? {_GIVE_HU}"
    )


def _masked(spread: _Spread) -> str | None:
    """Find a number that was written into air or background, for example by a body mask."""
    values, counts = np.unique(spread.values, return_counts=True)
    inside = (values > _AIR_HU) & (values < values[-1])
    if not inside.any():
        return None
    filler = float(values[inside][counts[inside].argmax()])
    share = spread.share(filler, np.nextafter(filler, np.inf))
    around = spread.near(filler, 10) - share
    if share > 0.05 and share > around:
        return (
            f"{100 * share:.0f} % of the voxels are exactly {filler:g}, as if masked or filled; "
            "fill with -1024, the HU of air"
        )
    return None


def _equalised(spread: _Spread) -> str | None:
    steps = np.diff([spread.at(share) for share in np.linspace(0.05, 0.95, 10)])
    if steps.max() < 1.3 * steps.min() and len(spread.values) >= _LARGE_SAMPLE:
        return f"all values are equally frequent, as in an equalised picture; {_GIVE_HU}"
    return None


def _negated(spread: _Spread) -> str | None:
    air = spread.share(900, 1100)
    if air > 0.1 and spread.share(1100) < 0.01 and spread.share(-np.inf, -700) < 0.05:
        return "looks like HU with the wrong sign: air lies near 1000; multiply by -1"
    return None


def _clipped(spread: _Spread) -> str | None:
    highest = float(spread.values[-1])
    if highest < 600 and spread.share(highest) > 0.003:
        return f"values are clipped at {highest:g} HU, below those of bone; {_GIVE_HU}"
    return None


def _scaled(spread: _Spread) -> str | None:
    """Find HU that were multiplied by 2 or more, or shifted.

    Air then lies below -1024, and reading sets it to -1024.
    """
    body, tissue = spread.share(_BODY_HU), spread.share(-200, 200)
    if spread.share(3100) > 0.005 and spread.share(1000) > 0.03 and tissue < 0.4 * body:
        return f"too many values lie above 1000, so HU were multiplied; {_GIVE_HU}"
    if body < 0.2:
        return None
    counts, edges = np.histogram(spread.values, np.arange(-500, 1, 20))
    peak = float(edges[counts.argmax()] + 10)
    height = spread.near(peak)
    if (
        peak <= -170
        and height > 0.04 * body
        and height > 2 * spread.near(-100)
        and height > 1.5 * max(spread.near(peak - 80), spread.near(peak + 80))
    ):
        return (
            f"fat seems to lie at {peak:.0f} HU instead of -100, so the values were shifted or "
            f"multiplied; {_GIVE_HU}"
        )
    if np.median(spread.values[spread.values > _BODY_HU]) > 400 and tissue < 0.15 * body:
        return f"nearly no tissue lies between -200 and 200, so HU were multiplied; {_GIVE_HU}"
    return None
