"""The pipeline of paper A: CHASPPRAU-Net finds the spine, 3D MRU-Net names its vertebrae.

    spinejax train --config=configs/cascade.py --config.data.root=VERSE --workdir=runs/cascade
    spinejax predict --workdir=runs/cascade --input=CT.nii.gz --output=out

The first network is trained in the folder of the run, the second in its folder `vertebrae`; fields
of the second are those under `vertebrae`, e.g. `--config.vertebrae.train.epochs=300`. Two runs that
were trained apart are joined by `--workdir=SPINE --vertebrae=VERTEBRAE` (paper A, sections 3.1, 3.8
and 4.3). The second sees the mask of the first as a second channel, in the mask's box.

Arguments: `phantom` trains both on phantoms alone, at the size of a laptop, `debug` takes a few
steps.
"""

from collections.abc import Collection

from ml_collections import ConfigDict

from spinejax.configs import chasppraunet, common, mrunet, phantom_to_real

SHARED = (
    "root", "labels", "edition", "exclude_gl", "split", "test_fraction", "val_fraction", "folds",
    "fold",
)  # fmt: skip
"""Fields of `data` that both networks have from the first: they see the same scans."""
PHANTOMS = ("region", "min_extent_mm", "max_extent_mm", "label_cut")
"""And of `data.phantom`, besides all rates: they learn from phantoms of one kind."""
OFTEN = dict(t13=0.08, l6=0.12, no_t12=0.08, no_l5=0.04)
"""The second one's own rates with `phantom`: what is rare must be seen to be told apart, and how
rare it is, the costs of the decoder say."""


def join(first: ConfigDict, second: ConfigDict, own: Collection[str] = ()) -> ConfigDict:
    """Return the config of a pipeline; the second network keeps its `own` rates of phantoms."""
    for name in SHARED:
        second.data[name] = first.data.get_ref(name)
    here, there = first.data.phantom, second.data.phantom
    for name in PHANTOMS:
        there[name] = here.get_ref(name)
    for name in set(here.rates) - set(own):
        there.rates[name] = here.rates.get_ref(name)
    second.seed = first.get_ref("seed")
    second.data.cube.spine_prior = "channel"
    # A hip that is taken for a vertebra shifts every name.
    first.predict.drop_islands = True
    first.vertebrae = second
    return first


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, phantom=False, debug=False)
    if args.phantom:
        config = phantom_to_real.get_config("debug" if args.debug else None)
        second = phantom_vertebrae()
        if args.debug:
            second.data.cube.size = (16, 16, 16)
            second.train.steps = 2
    else:
        config = chasppraunet.get_config("debug" if args.debug else None)
        second = mrunet.get_config("debug" if args.debug else None)
    config.name = "cascade"
    return join(config, second, own=OFTEN if args.phantom else ())


def phantom_vertebrae() -> ConfigDict:
    """Return MRU-Net on phantoms alone: coarse cubes as high as half a spine."""
    config = mrunet.base("phantom_vertebrae", mrunet.model(dropout=0.0))
    config.data.source = "phantom_stream"
    config.data.phantom.cases = 0
    config.data.phantom.rates.update(OFTEN)
    config.data.preprocess.clamp_hu = (-200.0, 600.0)
    config.data.normalise = "sym"
    # What names a vertebra is its place in the spine, which a wide view shows, and outlines are
    # those of the first network: coarse voxels, smoothed against aliasing.
    config.data.preprocess.spacing_mm = 6.0
    config.data.preprocess.smoothing_sigma_mm = 2.5
    config.data.cube.size = (16, 16, 64)
    # Wide where the grid is coarse, which costs least, shallow where it is fine.
    config.model.width_multiplier = 1.0
    config.model.depths = (1, 1, 2, 2, 1)
    config.model.residual = False
    config.model.decoder_widths = (192, 96, 32, 16)
    # Coarse cubes do not show the joints between vertebrae.
    config.loss.offset_weight = 1.0
    config.augment.flip_probability = 0.0
    config.augment.scale = (1.0, 1.0)
    config.augment.rotation_deg = 0.0
    config.augment.shift_hu = 40.0
    config.augment.gain = 0.2
    config.augment.noise_hu = 5.0
    config.train.steps = 18000
    config.train.batch_size = 2
    config.train.checkpoint_every_steps = 500
    config.optim.learning_rate = 4e-3
    config.optim.ema_decay = 0.995
    config.predict.overlap = 0.5
    config.predict.shifts = 2  # the vertebrae of a neck are two to three voxels high
    config.predict.margin_mm = 60.0  # training cubes show what lies around the spine
    config.predict.batch_size = 2
    return config
