"""`spinejax.phantom.stream`: NumPy batches that depend on seed, number and options alone."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spinejax.phantom
from spinejax.errors import InputError
from spinejax.phantom import batches
from spinejax.phantom.person.levels import SLOT_IDS

SMALL = {"size": (24, 40), "batch_size": 2, "spacing_mm": 4.0}


def take(count, **options):
    return list(itertools.islice(spinejax.phantom.stream(**{**SMALL, **options}), count))


@pytest.fixture
def cheap(monkeypatch):
    """Noise in place of phantoms; the arguments of every sampler that was made."""
    made = []

    def sample(key, subject, *, how, size=None, spacing_mm=None):
        made.append((how, size, spacing_mm))
        image = jnp.round(300 * jax.random.normal(key, size or how.size))
        return {"image": image, "label": (image > 0).astype(jnp.int32), "stats": jnp.zeros(4)}

    monkeypatch.setattr(batches, "slice_sample", sample)
    monkeypatch.setattr(batches, "cube_sample", sample)
    batches._batch.clear_cache()
    yield made
    batches._batch.clear_cache()


def test_batches_hold_hu_and_verse_ids():
    first, second = take(2)
    assert first["image"].shape == first["label"].shape == (2, 24, 40)
    assert first["image"].dtype == np.int16 and first["label"].dtype == np.uint8
    assert -1024 <= first["image"].min() and first["image"].max() <= 3071
    image, label = (np.concatenate([first[n], second[n]]) for n in ("image", "label"))
    assert set(np.unique(label)) <= {0, *SLOT_IDS.tolist()} and label.any()
    assert np.median(image[label > 0]) > np.median(image[label == 0])
    np.testing.assert_array_equal(first["spacing_mm"], np.full((2, 2), 4.0, np.float32))
    assert (first["image"] != second["image"]).any()


def test_a_batch_depends_on_seed_and_number_alone(cheap):
    whole = take(5, seed=3)
    again, later = take(2, seed=3), take(3, seed=3, start=2)
    for ours, theirs in zip(again + later, whole, strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert (take(1, seed=4)[0]["image"] != whole[0]["image"]).any()
    # Samples of a larger batch begin with those of a smaller one.
    larger = take(1, seed=3, batch_size=4)[0]
    np.testing.assert_array_equal(larger["image"][:2], whole[0]["image"])


def test_three_numbers_make_cubes_and_options_reach_the_samples(cheap):
    batch = take(1, size=(8, 9, 10), region="lumbar", label_cut=True, rates={"l6": 1})[0]
    assert batch["image"].shape == (2, 8, 9, 10) and batch["spacing_mm"].shape == (2, 3)
    how, size, spacing_mm = cheap[-1]
    assert (size, spacing_mm) == ((8, 9, 10), 4.0)
    assert (how.region, how.label_cut, how.rates) == ("lumbar", True, (("l6", 1.0),))
    take(1, plane="axial", smoothing_mm=0.0, spine_free_fraction=0.5)
    how, size, _ = cheap[-1]
    assert (how.plane, how.smoothing_mm, how.spine_free_fraction) == ("axial", 0.0, 0.5)
    assert size is None and how.size == (24, 40)


def test_batches_may_be_changed_in_place(cheap):
    batch = take(1)[0]
    for value in batch.values():
        value += 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed=-1: give a whole number from 0"),
        ({"size": (80,)}, "two numbers for slices or three for cubes"),
        ({"size": (80, 0)}, "from 1 up"),
        ({"batch_size": 0}, "batch_size=0: give a whole number from 1 up"),
        ({"start": -1}, "start=-1"),
        ({"spacing_mm": 0.0}, "spacing_mm=0.0"),
        ({"smoothing_mm": float("nan")}, "smoothing_mm=nan"),
        ({"spine_free_fraction": 1.5}, "give a share from 0 to 1"),
        ({"plane": "sagital"}, "did you mean 'sagittal'"),
        ({"region": "sacral"}, "region = 'sacral' is unknown"),
        ({"rates": {"t14": 1.0}}, "t14"),
        ({"rates": {"t13": 2.0}}, "give a probability from 0 to 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_unusable_arguments_are_refused_at_once(options, words):
    with pytest.raises(InputError, match=words) as error:
        spinejax.phantom.stream(**options)
    assert "\n" not in str(error.value)


def test_jax_is_imported_when_a_function_is_first_used():
    code = "import sys, spinejax.phantom; assert 'jax' not in sys.modules; spinejax.phantom.render"
    subprocess.run([sys.executable, "-c", code + "; assert 'jax' in sys.modules"], check=True)
    with pytest.raises(AttributeError, match="no attribute 'sinogram'"):
        _ = spinejax.phantom.sinogram
