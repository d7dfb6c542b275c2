"""The pipeline of paper A: CHASPPRAU-Net finds the spine, 3D MRU-Net names its vertebrae.

    spinejax train --config=configs/cascade.py --config.data.root=VERSE --workdir=runs/cascade
    spinejax predict --workdir=runs/cascade --input=CT.nii.gz --output=out

The first network is trained in the folder of the run, the second in its folder `vertebrae`; fields
of the second are those under `vertebrae`, e.g. `--config.vertebrae.train.epochs=300`. Two runs that
were trained apart are joined by `--workdir=SPINE --vertebrae=VERTEBRAE` (paper A, sections 3.1, 3.8
and 4.3). The second sees the mask of the first as a second channel, in the mask's box.

Arguments: `phantom` trains both on phantoms alone, at the size of a laptop, `debug` in seconds.
"""

from ml_collections import ConfigDict

from configs import chasppraunet, common, mrunet, phantom_to_real

SHARED = ("root", "labels", "exclude_gl", "split", "test_fraction", "val_fraction", "folds", "fold")
"""Fields of `data` that both networks have from the first: they see the same scans."""


VARIANTS = ("t13", "l6", "no_t12", "no_l5", "cervical_ribs", "sacralised")
"""Names of the rates of transitional anatomy in `data.phantom.rates`."""


def join(first: ConfigDict, second: ConfigDict) -> ConfigDict:
    """Return the config of a pipeline."""
    for name in SHARED:
        second.data[name] = first.data.get_ref(name)
    second.seed = first.get_ref("seed")
    second.data.cube.spine_prior = "channel"
    first.vertebrae = second
    return first


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, phantom=False, debug=False)
    if args.phantom:
        config = phantom_to_real.get_config("debug" if args.debug else None)
        second = phantom_vertebrae()
    else:
        config = chasppraunet.get_config("debug" if args.debug else None)
        second = mrunet.get_config("debug" if args.debug else None)
    config.name = "cascade"
    return join(config, second)


def phantom_vertebrae() -> ConfigDict:
    """Return MRU-Net on phantoms alone: coarse cubes that show most of a spine."""
    config = common.base("phantom_vertebrae", mrunet.model(dropout=0.1))
    mrunet.recipe(config)
    config.data.source = "phantom_stream"
    config.data.phantom.cases = 0
    config.data.phantom.label_cut = True
    config.data.preprocess.clamp_hu = (-200.0, 600.0)
    config.data.normalise = "sym"
    # What names a vertebra is its place in the spine: a wide view matters more than detail.
    config.data.preprocess.spacing_mm = 4.0
    config.data.preprocess.smoothing_sigma_mm = 1.7  # for a grid this coarse, against aliasing
    config.data.cube.size = (32, 32, 96)
    config.model.width_multiplier = 0.25
    config.model.decoder_widths = (64, 32, 16, 16)
    config.augment.flip_probability = 0.0
    config.augment.scale = (1.0, 1.0)
    config.augment.rotation_deg = 0.0
    config.augment.shift_hu = 60.0
    config.augment.gain = 0.2
    config.augment.noise_hu = 30.0
    config.train.steps = 3000
    config.train.batch_size = 2
    config.train.checkpoint_every_steps = 200
    config.optim.learning_rate = 3e-3
    config.optim.ema_decay = 0.99
    config.predict.overlap = 0.5
    config.predict.batch_size = 2
    return config
