"""Slices with random augmentation, from scans in the cache, beside MONAI's DataLoader.

Both read the same memory-mapped slices in random order on one core, cut a window at a random place
and make batches. Then they scale, rotate, mirror, shift and scale intensities, and add noise, with
the same ranges. Ours does that on the device, as the training step does; MONAI's transforms change
slice by slice. The files are in the page cache.
"""

import os
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import nibabel
import numpy as np

from spinejax import augment
from spinejax.data import cache
from spinejax.data.preprocess import SlicePreprocess
from spinejax.data.slice_feed import SliceFeed
from spinejax.datasets.verse import Case
from tests.benchmarks import timing

BATCH, BATCHES = 8, 8
LIMIT = 0.2
RANGES = dict(rotation_deg=15.0, shift_hu=30.0, gain=0.1, noise_hu=20.0, flip_probability=0.5)
SCALE = 0.15


def write_scan(folder, name, shape):
    """Write noise in the shape of a scan, with labels in a third of its slices along axis 2."""
    rng = np.random.default_rng(len(name))
    labels = np.zeros(shape, np.uint8)
    labels[shape[0] // 3 : shape[0] // 2, 10:-10, shape[2] // 3 : -shape[2] // 3] = 20
    image = rng.normal(0, 80, shape).astype(np.int16) + labels * np.int16(15)
    paths = folder / f"{name}_ct.nii", folder / f"{name}_msk.nii"
    for path, array in zip(paths, (image, labels), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0])), path)
    return Case(id=name, subject=name, image=paths[0], labels=paths[1])


def ours(cached, size):
    """Yield augmented batches of our feed."""
    feed = SliceFeed({"train": cached, "val": []}, size=size, batch_size=BATCH, seed=0, threads=0)
    change = partial(augment.augment, plane="axial", scale=(1 - SCALE, 1 + SCALE), **RANGES)

    @jax.jit
    def changed(number, image, label):
        return change(jax.random.split(jax.random.key(number), BATCH), image, label)

    with closing(feed.train()) as batches:
        for number, batch in enumerate(batches):
            yield jax.block_until_ready(changed(number, batch["image"], batch["label"]))


def theirs(cached, size):
    """Yield augmented batches of MONAI's DataLoader."""
    import torch
    from monai import transforms
    from monai.data import DataLoader, Dataset, set_track_meta

    set_track_meta(False)  # which is faster

    def read(place):
        case, position = place["case"], place["slice"]
        image = cached[case].image[position].astype(np.float32)
        label = cached[case].label[position]
        return {"image": torch.from_numpy(image)[None], "label": torch.tensor(label)[None]}

    both = ("image", "label")
    chain = [
        read,
        transforms.RandSpatialCropd(both, size, random_size=False),
        transforms.RandAffined(
            both,
            prob=1.0,
            rotate_range=np.deg2rad(RANGES["rotation_deg"]),
            scale_range=(SCALE, SCALE),
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        ),
        transforms.RandFlipd(both, prob=RANGES["flip_probability"], spatial_axis=0),
        transforms.RandScaleIntensityd("image", factors=RANGES["gain"], prob=1.0),
        transforms.RandShiftIntensityd("image", offsets=RANGES["shift_hu"], prob=1.0),
        transforms.RandGaussianNoised("image", std=RANGES["noise_hu"], prob=1.0),
    ]
    places = [
        {"case": i, "slice": n} for i, case in enumerate(cached) for n in range(case.shape[0])
    ]
    loader = DataLoader(
        Dataset(places, transforms.Compose(chain)), batch_size=BATCH, shuffle=True, drop_last=True
    )
    while True:
        yield from loader


def rows(toy=False):
    """Return the rows of the table; `toy` sizes only show that all of it runs."""
    import torch

    torch.set_num_threads(1)
    if not toy and hasattr(os, "sched_setaffinity"):  # before jax counts the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    size = (32, 32) if toy else (256, 256)
    shape = (40, 48, 12) if toy else (300, 420, 60)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cases = [write_scan(root, "scan" + "x" * i, shape) for i in range(1 if toy else 4)]
        cached = cache.prepare(cases, SlicePreprocess(plane="axial"), root / "cache")
        with closing(ours(cached, size)) as mine, closing(theirs(cached, size)) as peer:
            times = timing.interleaved(
                {
                    "ours": lambda: [next(mine) for _ in range(BATCHES)],
                    "MONAI": lambda: [next(peer) for _ in range(BATCHES)],
                },
                1 if toy else 7,
            )
    one = {name: value.per(BATCH * BATCHES) for name, value in times.items()}
    text = f"an augmented slice of {size[0]} x {size[1]}, on one core"
    return [timing.versus(text, one["ours"], "MONAI's DataLoader", one["MONAI"], limit=LIMIT)]
