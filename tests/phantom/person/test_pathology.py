"""What age and chance do to phantoms: frequencies, couplings, and shapes that stay whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from spinejax.phantom import anatomy, centroids, render
from spinejax.phantom.body.warp import unwarp

PEOPLE = 600


paint = jax.jit(lambda p, points: render(p, points, distractors=False)[1])


@pytest.fixture(scope="module")
def people():
    """Many persons of the default kind, persons along the first axis."""
    keys = jax.random.split(jax.random.key(12), PEOPLE)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(anatomy))(keys))


def one(people, index):
    return jax.tree.map(lambda a: a[index], people)


def has(people, vertebra):
    return (people["spine"]["id"] == vertebra).any(1)


def of(people, vertebra, values):
    """The value of one vertebra in the persons that have it."""
    return values[people["spine"]["id"] == vertebra]


@pytest.mark.parametrize(
    ("count", "total", "found"),
    [  # in the training set of VerSe'20
        (2, 80, lambda p: has(p, 28)),
        (16, 83, lambda p: has(p, 25)),
        (3, 83, lambda p: ~has(p, 19)),
    ],
    ids=["T13", "L6", "no T12"],
)
def test_variants_are_as_frequent_as_in_verse(people, count, total, found):
    share = found(people).mean()
    expected = count / total
    assert abs(share - expected) < 3.5 * (expected * (1 - expected) / PEOPLE) ** 0.5


def test_ages_and_sizes_span_those_of_patients(people):
    age, scale = people["person"]["age"], people["person"]["scale"]
    assert age.min() < 18 and age.max() > 85 and 40 < np.median(age) < 70
    assert scale.min() < 0.88 and scale.max() > 1.1
    assert scale[age < 15].mean() < scale[age > 20].mean() - 0.08


def test_distances_measured_on_real_spines_lie_well_inside_the_draws(people):
    from tests.phantom.person.test_anatomy import DISTANCE_MM

    _, origins = jax.vmap(centroids)(people)
    origins = np.asarray(origins)
    for (upper, lower), span in DISTANCE_MM.items():
        both = has(people, upper) & has(people, lower)
        a, b = (of(people, v, origins) for v in (upper, lower))
        a, b = a[both[has(people, upper)]], b[both[has(people, lower)]]
        low, high = np.percentile(np.linalg.norm(a - b, axis=1), [2, 98])
        assert low < span[0] and span[1] < high, (upper, lower, low, high)


def test_bone_is_lost_and_discs_wear_and_backs_bend_with_age(people):
    spine, age = people["spine"], people["person"]["age"]
    here = spine["id"] > 0
    hu = np.array([c[h].mean() for c, h in zip(spine["cancellous"], here, strict=True)])
    wear = np.array([w[h].mean() for w, h in zip(spine["wear"], here, strict=True)])
    old, young = age > 65, age < 35
    assert hu[young].mean() > hu[old].mean() + 50  # about 1.6 HU a year
    assert hu.min() < 75 and hu.max() > 260
    assert wear[old].mean() > wear[young].mean() + 0.3
    both = has(people, 11) & has(people, 18)
    up = [of(people, v, spine["rotation"][..., 2])[both[has(people, v)]] for v in (11, 18)]
    lean = [np.degrees(np.arctan2(-u[:, 1], u[:, 2])) for u in up]
    kyphosis = lean[0] - lean[1]  # T4 to T11
    assert 20 < kyphosis.mean() < 50
    assert kyphosis[old[both]].mean() > kyphosis[young[both]].mean() + 3


def test_fractures_are_those_of_the_old_and_of_all_grades(people):
    grade, age = people["spine"]["grade"], people["person"]["age"]
    broken = (grade > 0).any(1)
    assert broken[age > 70].mean() > 3 * broken[age < 40].mean()
    assert 0.1 < broken[age > 70].mean() < 0.8
    assert {1, 2, 3} <= set(np.unique(grade).astype(int))


def test_severe_scoliosis_occurs_and_most_spines_are_nearly_straight(people):
    axis = people["spine"]["rotation"][..., 2]
    side = np.degrees(np.arctan2(axis[..., 0], axis[..., 2]))
    side = np.where(people["spine"]["id"] > 0, side, np.nan)
    cobb = np.nanmax(side, 1) - np.nanmin(side, 1)
    assert np.median(cobb) < 15 and np.percentile(cobb, 99) > 30


def test_no_body_enters_the_next(people):
    spine = people["spine"]
    h, origin = spine["size"]["h"], spine["origin"]
    filled = spine["id"][:, 1:] > 0
    step = np.linalg.norm(np.diff(origin, axis=1), axis=2)
    free = (step - h[:, :-1] - h[:, 1:])[:, 2:]  # from C3 on
    assert np.where(filled[:, 2:], free, 9.0).min() > 0.3


def heights(person, place):
    """Height of the body in front, in the middle and behind, mm."""
    spine = person["spine"]
    size = {k: float(v[place]) for k, v in spine["size"].items() if v[place].ndim == 0}
    z = np.arange(-22, 22, 0.25)
    found = []
    for share in (-0.7, 0.0, 0.55):
        line = np.stack([0 * z, 0 * z + share * size["b"], z], -1)
        points = spine["origin"][place] + line @ spine["rotation"][place].T
        points = unwarp(jnp.asarray(points, jnp.float32), person)
        found.append(0.25 * (np.asarray(paint(person, points)) == spine["id"][place]).sum())
    return np.array(found)


def test_graded_fractures_have_lost_that_much_height(people):
    """Against the neighbours, which is how a radiologist grades (Genant: 20, 25 and 40 %)."""
    spine = people["spine"]
    thoracolumbar = (spine["id"] > 12) & (spine["id"] < 24)
    for grade, least, most in ((1, 0.05, 0.40), (3, 0.25, 0.75)):
        alone = (spine["grade"] == grade) & thoracolumbar
        alone[:, 1:-1] &= (spine["grade"][:, :-2] == 0) & (spine["grade"][:, 2:] == 0)
        lost = []
        for index, place in np.argwhere(alone)[:6]:
            person = one(people, index)
            next_to = 0.5 * (heights(person, place - 1) + heights(person, place + 1))
            lost.append((1 - heights(person, place) / next_to).max())
        assert len(lost) >= 2
        assert least < np.mean(lost) < most, (grade, lost)


@pytest.mark.parametrize("kind", ["old", "young", "bent"])
def test_every_vertebra_is_one_piece_without_holes(people, kind):
    """At 1 mm, of four lumbar or thoracic vertebrae of an unusual person."""
    spine, about = people["spine"], people["person"]
    tilt = np.abs(np.where(spine["id"] > 0, spine["rotation"][:, :, 0, 2], 0)).max(1)
    score = {"old": about["worn"] + about["brittle"], "young": -about["age"], "bent": tilt}[kind]
    person = one(people, int(np.argmax(score)))
    spine = person["spine"]
    middle = int(np.argmax(spine["id"] == (14 if kind == "bent" else 21)))
    at = np.asarray(centroids(person)[1])[middle]
    axes = [np.arange(-70, 71), np.arange(-50, 80), np.arange(-62, 62)]
    points = at + np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    label = np.asarray(paint(person, jnp.asarray(points, jnp.float32)))
    border = {*np.unique(label[:, :, [0, -1]])}
    whole = [int(i) for i in np.unique(label) if i and i not in border]
    assert whole
    for vertebra in whole:
        mask = label == vertebra
        pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        # In a severe scoliosis a neighbour may cut off the tip of a process.
        assert sizes.max() / sizes.sum() > 0.98, (vertebra, sizes)
        filled = ndimage.binary_fill_holes(mask)
        assert filled.sum() / mask.sum() < 1.01, vertebra


def test_real_vertebrae_are_as_large_as_some_phantoms(people, real_data):
    import nibabel as nib

    step = 5.0
    real = {}
    for name in (
        "sub-verse014/sub-verse014",
        "sub-verse004/sub-verse004",
        "sub-gl003/sub-gl003_dir-ax",
    ):
        path = real_data / "verse" / "derivatives" / f"{name}_seg-vert_msk.nii.gz"
        image = nib.load(path)
        values = np.asarray(image.dataobj).astype(int)
        counts = np.bincount(values.ravel())
        voxel = np.prod(image.header.get_zooms()) / 1000
        for vertebra in np.flatnonzero(counts)[1:]:
            real.setdefault(int(vertebra), []).append(counts[vertebra] * voxel)
    drawn = {}
    for index in range(10):
        person = one(people, index)
        ids, origins = (np.asarray(v) for v in centroids(person))
        for vertebra in real:
            at = origins[ids == vertebra]
            if len(at) == 0:
                continue
            grid = np.arange(-60, 61, step)
            points = (
                at[0] + [0, 25, -5] + np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1)
            )
            label = np.asarray(paint(person, jnp.asarray(points, jnp.float32)))
            drawn.setdefault(vertebra, []).append((label == vertebra).sum() * step**3 / 1000)
    for vertebra, volumes in real.items():
        low, high = min(drawn[vertebra]), max(drawn[vertebra])
        assert low < max(volumes) and min(volumes) < high, (vertebra, volumes, low, high)
