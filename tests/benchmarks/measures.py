"""Heights, angles and HU of phantoms, measured from scan and labels, against the truth.

    python -m tests.benchmarks.measures [--cases=N] [--seed=N]

The truth are the shapes and the bone that the phantoms were drawn from, where the scan shows them;
its surface is that of the labels. The measures know only the scan, with its noise and voxels, and
the labels. The command prints one table: mean, standard deviation and greatest size of the errors,
and the truth's range.
"""

import argparse
import math
from collections import defaultdict
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from spinejax import geometry, labels, morphometry
from spinejax.metrics.body_centres import body_centres
from spinejax.phantom.body import end_plates, scene
from spinejax.phantom.body.render import render
from spinejax.phantom.dataset import draw_case, plan_case
from spinejax.phantom.scanner import artefacts, view
from spinejax.text_table import text_table

SEED, CASES = 2801, 20
LIMITS = dict(
    min_extent_mm=250.0,
    max_extent_mm=450.0,
    min_spacing_mm=0.7,
    max_spacing_mm=3.0,
    max_voxels=1_500_000,
    rates=dict(fractures=3.0, scoliosis=0.4),
)
RAS = geometry.LPS_TO_RAS[:3, :3]
BANDS = {"anterior": (0.10, 0.25), "middle": (0.40, 0.60), "posterior": (0.75, 0.90)}


def truth_of(parameters, slot, protocol):
    """Return the true measures of a body, and the normals of its end plates in RAS+."""
    body = end_plates.body(parameters, slot)

    def shown(points):
        person = end_plates.in_person(points, parameters, slot)
        return np.asarray(_shown_at(jnp.asarray(person), protocol)) @ RAS

    top, bottom = shown(body.top), shown(body.bottom)
    high = np.linalg.norm(top - bottom, axis=-1)
    near = np.abs(body.across) <= 0.5
    found = {
        f"height_{name}_mm": high[np.ix_(near, (body.depth >= low) & (body.depth <= most))].mean()
        for name, (low, most) in BANDS.items()
    }
    found["depth_mm"] = body.depth_mm
    found["wedge"] = found["height_anterior_mm"] / found["height_posterior_mm"]
    found["biconcave"] = found["height_middle_mm"] / found["height_posterior_mm"]
    inner = body.across[:, None] ** 2 + (2 * body.depth - 1)[None] ** 2 <= 0.75**2
    normals = [_normal(side[inner]) for side in (top, bottom)]
    middle = 0.5 * (body.top + body.bottom)
    # The core: 60 % of the width, 50 % of the depth, the middle half of the least height.
    s, t = np.meshgrid(body.across, 2 * body.depth - 1, indexing="ij")
    core = (s / 0.6) ** 2 + ((t + 0.1) / 0.5) ** 2 <= 1
    half = 0.25 * (body.top - body.bottom)[..., 2][inner].min()
    points = middle[core][:, None] + np.linspace(-half, half, 9)[:, None] * np.array([0, 0, 1.0])
    place = end_plates.in_person(points.reshape(-1, 3), parameters, slot)
    hu = np.asarray(_hu(jnp.asarray(place), parameters, protocol))
    found |= {"hu_mean": float(np.mean(hu)), "hu_median": float(np.median(hu))}
    return found, normals


_shown_at = jax.jit(view.shown_at)


@jax.jit
def _hu(points, parameters, protocol):
    """Return the HU of points (n, 3) without noise and with little blur.

    The tube's voltage, beam hardening and calibration belong to the scan.
    """
    hu, _ = render(parameters, points, edge_mm=0.3)
    hu = hu + (protocol["voltage"] - 1.0) * jnp.maximum(hu, 0.0) + protocol["offset"]
    seen = view.shown_at(points, protocol)
    outline = scene.outline(seen[:, 2], parameters["profile"])
    return hu + artefacts.attenuation(seen, outline, protocol)["shade"]


def _normal(points):
    """Return the upward normal of the plane through points (n, 3)."""
    normal = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][2]
    return normal * np.sign(normal[2])


def _tilts(normal):
    return [math.degrees(math.atan2(normal[axis], normal[2])) for axis in (0, 1)]


def compare(seed, index, limits):
    """Yield (measure, true value, measured value) of a phantom; None where nothing was measured."""
    parameters, scan, whole, points = plan_case(seed, index, limits)
    volume, mask, _, _ = draw_case(seed, index, limits)
    ids = [int(i) for i in np.asarray(parameters["spine"]["id"])]
    found = morphometry.measure(mask, volume, body_centres(mask, volume.steps_mm))
    true, normals = {}, {}
    for slot, label in enumerate(ids):
        if label in found and labels.name(label) not in ("C1", "C2"):
            true[label], normals[label] = truth_of(parameters, slot, scan.protocol)
    for label, values in true.items():
        for name, value in values.items():
            yield name, value, getattr(found[label], name)
    for a, b in pairwise(true):
        if b not in labels.successors(a):
            continue
        apart = points[ids.index(a)] - points[ids.index(b)]
        yield "distance_below_mm", float(np.linalg.norm(apart)), found[a].distance_below_mm
        axes = [sum(normals[i]) / np.linalg.norm(sum(normals[i])) for i in (a, b)]
        angle = math.degrees(math.acos(min(1.0, float(axes[0] @ axes[1]))))
        yield "angle_below_deg", angle, found[a].angle_below_deg
    tilts = {i: [_tilts(one) for one in both] for i, both in normals.items()}
    angles = morphometry.cobb_angles(found)
    if len(tilts) > 1 and "C2" not in (angles["coronal"].upper, angles["coronal"].lower):
        order = list(tilts)
        most = max(
            abs(tilts[a][0][0] - tilts[b][1][0])
            for place, a in enumerate(order)
            for b in order[place + 1 :]
        )
        yield "coronal Cobb angle, deg", most, angles["coronal"].cobb_deg
    last = "L6" if labels.id_of("L6") in found else "L5"
    for name, ends, sign in (
        ("thoracic_kyphosis", ("T4", "T12"), 1),
        ("lumbar_lordosis", ("L1", last), -1),
    ):
        first, second = map(labels.id_of, ends)
        if first in tilts and second in tilts:
            value = sign * (tilts[first][0][1] - tilts[second][1][1])
            yield f"{name}, deg", value, angles[name].cobb_deg


def table(pairs):
    """Return the table of (measure, true value, measured value)."""
    by_name = defaultdict(list)
    for name, value, measured in pairs:
        by_name[name].append((value, np.nan if measured is None else measured))
    rows = [
        ["measure", "n", "not measured", "truth", "mean error", "mean absolute", "SD", "greatest"]
    ]
    for name, values in by_name.items():
        value, measured = np.array(values, float).T
        known = np.isfinite(measured)
        error = (measured - value)[known]
        digits = 3 if name in ("wedge", "biconcave") else 1 if name.startswith("hu") else 2
        low, high = np.percentile(value, [5, 95])
        numbers = (error.mean(), np.abs(error).mean(), error.std(), np.abs(error).max())
        rows.append(
            [
                name, str(known.sum()), str((~known).sum()),
                f"{low:.{digits}f} to {high:.{digits}f}",
                *(f"{number:.{digits}f}" for number in numbers),
            ]
        )  # fmt: skip
    return text_table(rows)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    pairs = [pair for index in range(given.cases) for pair in compare(given.seed, index, LIMITS)]
    print(table(pairs))


if __name__ == "__main__":
    main()
