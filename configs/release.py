"""The networks of the packaged model `phantom`, trained on phantoms alone.

    make model        # every stage, then the file; a stage continues where it was interrupted
    spinejax train --config=configs/release.py:stage=sagittal --workdir=runs/model/sagittal

Each stage is a run in a folder of its own:

    stage=sagittal     CHASPPRAU-Net, sagittal slices
    stage=axial        the same network, axial slices; begins with the weights of `sagittal`
    stage=coronal      the same network, coronal slices; begins with the weights of `sagittal`
    stage=vertebrae    MRU-Net, which names the vertebrae

A stage that begins with the weights of another one needs `--config.train.init_from=FOLDER`, which
`make model` gives. `debug` takes a few steps.
"""

from ml_collections import ConfigDict

from spinejax.configs import common, phantom_to_real, phantom_vertebrae

STEPS = {"sagittal": 7000, "axial": 3000, "coronal": 3000, "vertebrae": 12000}
"""Stage -> length of its training."""
SIZES = {"axial": (80, 80), "coronal": (80, 128)}
"""Rows and columns of the slices of the other planes: the spine and what lies next to it."""


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of a stage."""
    args = common.parse_arg(arg, stage="sagittal", debug=False)
    if args.stage not in STEPS:
        raise ValueError(f"config argument stage={args.stage!r} must be one of {', '.join(STEPS)}")
    make = phantom_vertebrae if args.stage == "vertebrae" else phantom_to_real
    config = make.get_config("debug" if args.debug else None)
    config.name = f"release_{args.stage}"
    if not args.debug:
        config.train.steps = STEPS[args.stage]
    if args.stage in SIZES:
        config.data.plane = args.stage
        config.data.size = (32, 32) if args.debug else SIZES[args.stage]
        # The weights are those of another plane: close to the goal, so the rate is lower.
        config.optim.learning_rate = 1.5e-3
    return config
