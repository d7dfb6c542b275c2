"""CHASPPRAU-Net trained on phantoms alone, to be used on real CT.

    spinejax train --config=configs/phantom_to_real.py --workdir=runs/phantom_to_real
    spinejax predict --workdir=runs/phantom_to_real --input=CT.nii.gz --output=out

The training step draws every slice anew, each of another synthetic person. It reads nothing from
disk and sees no patient. The ablation adds one thing at a time, at equal effort:

    --config=configs/phantom_to_real.py:step=anatomy       vertebrae in soft tissue
    --config=configs/phantom_to_real.py:step=distractors   + what is bright and not vertebra
    --config=configs/phantom_to_real.py:step=acquisition   + noise, blur, streaks, offsets
    --config=configs/phantom_to_real.py:step=intensity     + augmentation of intensities (default)

The default fits two CPU cores: pixels of 2 mm and half of the paper's channels. `:paper_size`, for
a GPU, has 1 mm and the paper's network and batch, and computes in bfloat16; parameters, statistics
of norms, logits and loss stay float32. `:plane=axial` and `:plane=coronal` see slices of other
planes; runs of several planes can be averaged. Arguments: also `debug` (seconds).
"""

from ml_collections import ConfigDict

from spinejax.configs import chasppraunet, common

SIZES = {
    "sagittal": ((80, 128), (192, 256)),
    "coronal": ((80, 128), (192, 256)),
    "axial": ((80, 80), (192, 192)),
}
"""Plane -> rows and columns of a slice, in pixels of 2 mm and, for `paper_size`, of 1 mm."""
STEPS = ("anatomy", "distractors", "acquisition", "intensity")


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, step=STEPS[-1], plane="sagittal", paper_size=False, debug=False)
    if args.step not in STEPS:
        raise ValueError(f"config argument step={args.step!r} must be one of {', '.join(STEPS)}")
    if args.plane not in SIZES:
        raise ValueError(f"config argument plane={args.plane!r} must be one of {', '.join(SIZES)}")
    reached, paper_size = STEPS.index(args.step), args.paper_size
    widths = (24, 48, 96, 192) if paper_size else (12, 24, 48, 96)
    config = common.base("phantom_to_real", chasppraunet.model(widths=widths, dropout=0.1))
    config.data.source = "phantom_stream"
    config.data.spine_free_fraction = 0.25
    config.data.plane = args.plane
    config.data.size = SIZES[args.plane][paper_size]
    config.data.normalise = "sym"
    # A bone window: marrow is often within 50 HU of discs and muscle.
    config.data.preprocess.update(clamp_hu=(-200.0, 600.0), spacing_mm=1.0 if paper_size else 2.0)
    config.data.phantom.update(
        cases=0,
        distractors=reached >= 1,
        acquisition=reached >= 2,
        # Crops of annotated scans, and TotalSegmentator, label vertebrae that the scan's edge cuts.
        label_cut=True,
        min_extent_mm=60.0,
        max_extent_mm=700.0,
    )
    # The defaults are VerSe's shares, and VerSe collected variants. A network that sees a sixth
    # lumbar vertebra in every fifth person mistakes the sacrum of others for one.
    config.data.phantom.rates.update(l6=0.08, sacralised=0.05)
    # Every sample is another person in another pose: augmentation changes intensities only.
    config.augment.update(
        geometry=reached >= 3,
        intensity=reached >= 3,
        scale=(1.0, 1.0),
        rotation_deg=0.0,
        flip_probability=0.0,
        shift_hu=40.0,
        gain=0.2,
        noise_hu=15.0,
    )
    config.train.steps = 100_000 if paper_size else 4000
    config.train.batch_size = 32 if paper_size else 8
    config.train.compute_dtype = "bfloat16" if paper_size else "float32"
    config.train.checkpoint_every_steps = 200
    config.optim.learning_rate = 3e-3
    config.optim.ema_decay = 0.99
    # On phantoms 0.35 and 0.5 are equally good; on real scans outlines at 0.5 are a little tight.
    config.predict.update(search="coarse", threshold=0.35, fill_holes=True, drop_islands=True)
    if args.debug:
        config.model.widths = (4, 8)
        config.data.size = (32, 32)
        config.train.steps = 4
        config.train.batch_size = 2
    return config
