"""The pipeline of paper A: CHASPPRAU-Net finds the spine, 3D MRU-Net names its vertebrae.

    spinejax train --config=configs/cascade.py --config.data.root=VERSE --workdir=runs/cascade
    spinejax predict --workdir=runs/cascade --input=CT.nii.gz --output=out

The first network is trained in the folder of the run, the second in its folder `vertebrae`. The
fields of the second are in the block `vertebrae`, e.g. `--config.vertebrae.train.epochs=300`. Two
runs that were trained apart are joined by `--workdir=SPINE --vertebrae=VERTEBRAE` (paper A,
sections 3.1, 3.8 and 4.3). The second network sees the scan within the box of the first network's
mask, and the mask as a second channel.

Arguments: `protocol=paper`, data and training as the paper has them, instead of `own`, this
project's; `table=8` (default), 4, 6 or 7, the paper's stage (`configs/mrunet.py`); `phantom` trains
both on phantoms alone, at the size of a laptop; `debug` takes a few steps.
"""

from collections.abc import Collection

from ml_collections import ConfigDict

from spinejax.configs import chasppraunet, common, mrunet, phantom_to_real, saeed2023

SHARED = (
    "root", "labels", "edition", "exclude_gl", "split", "split_seed", "test_fraction",
    "val_fraction", "folds", "fold",
)  # fmt: skip
"""Fields of `data` that the second network takes from the first: both see the same scans."""
PHANTOMS = ("region", "min_extent_mm", "max_extent_mm", "label_cut")
"""Fields of `data.phantom` that it takes, beside the rates: both see phantoms of one kind."""
OFTEN = dict(t13=0.08, l6=0.12, no_t12=0.08, no_l5=0.04)
"""The second network's own rates with `phantom`. It learns variants only if it sees them often; the
decoder's costs hold their true frequencies."""


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
    # A model holds both networks. The second may begin with another one, or with random weights.
    second.train.init_from = first.train.get_oneway_ref("init_from")
    second.data.cube.spine_prior = "channel"
    # A hip that is mistaken for a vertebra shifts every name.
    first.predict.drop_islands = True
    first.vertebrae = second
    return first


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, protocol=common.OWN, table=8, phantom=False, debug=False)
    common.check_protocol(args.protocol)
    if args.phantom and (args.protocol, args.table) != (common.OWN, 8):
        raise ValueError("phantom has data and stages of its own; leave out protocol and table")
    debug = "debug" if args.debug else None
    if not args.phantom:
        words = [f"protocol={args.protocol}", *([debug] if debug else [])]
        first = chasppraunet.get_config(",".join(words))
        stage = saeed2023.stage(args.table)
        first.augment.update(saeed2023.augmented(stage.augment, args.protocol))
        config = join(first, mrunet.get_config(",".join([*words, f"table={args.table}"])))
    else:
        second = phantom_vertebrae()
        if args.debug:
            second.data.cube.size = (16, 16, 16)
            second.train.steps = 2
        config = join(phantom_to_real.get_config(debug), second, own=OFTEN)
    config.name = "cascade"
    return config


def phantom_vertebrae() -> ConfigDict:
    """Return MRU-Net on phantoms alone: coarse cubes as high as half a spine."""
    config = mrunet.base("phantom_vertebrae", mrunet.model(dropout=0.0))
    config.data.source = "phantom_stream"
    config.data.phantom.cases = 0
    config.data.phantom.rates.update(OFTEN)
    config.data.normalise = "sym"
    # A wide view shows a vertebra's place in the spine, which names it, and outlines come from the
    # first network. So voxels are coarse, smoothed against aliasing.
    config.data.preprocess.update(clamp_hu=(-200.0, 600.0), spacing_mm=6.0, smoothing_sigma_mm=2.5)
    config.data.cube.size = (16, 16, 64)
    # Wide where the grid is coarse, which costs least; shallow where it is fine.
    config.model.update(
        width_multiplier=1.0,
        depths=(1, 1, 2, 2, 1),
        residual=False,
        decoder_widths=(192, 96, 32, 16),
    )
    # Coarse cubes do not show the joints between vertebrae.
    config.loss.offset_weight = 1.0
    config.augment.update(
        flip_probability=0.0,
        scale=(1.0, 1.0),
        rotation_deg=0.0,
        shift_hu=40.0,
        gain=0.2,
        noise_hu=5.0,
    )
    config.train.steps = 18000
    config.train.checkpoint_every_steps = 500
    config.optim.learning_rate = 4e-3
    config.optim.ema_decay = 0.995
    config.predict.update(
        overlap=0.5,
        shifts=2,  # vertebrae of the neck are two to three voxels high
        margin_mm=60.0,  # training cubes show what lies around the spine
        batch_size=2,
    )
    return config
