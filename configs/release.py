"""The networks of the packaged model `phantom`, trained on phantoms alone.

    make model        # every stage, then the file; a stage continues where it was interrupted
    spinejax train --config=configs/release.py:stage=sagittal --workdir=runs/model/sagittal

Each stage is a run in a folder of its own:

    stage=sagittal     CHASPPRAU-Net, which segments the spine in sagittal slices
    stage=longer       the same, which begins with the stage before it: add
                       --config.train.init_from=runs/model/sagittal
    stage=axial        the same in axial slices; neither this nor `longer` is in the file
    stage=vertebrae    MRU-Net, which names the vertebrae
    stage=outlines     a 3D U-Net, which outlines each named vertebra anew; not in the file yet

`debug` takes a few steps.
"""

from ml_collections import ConfigDict

from spinejax.configs import common, phantom_outlines, phantom_to_real, phantom_vertebrae

STEPS = {"sagittal": 7000, "longer": 4500, "axial": 7000, "vertebrae": 12000, "outlines": 4000}
"""Stage -> length of its training."""


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of a stage."""
    args = common.parse_arg(arg, stage="sagittal", debug=False)
    if args.stage not in STEPS:
        raise ValueError(f"config argument stage={args.stage!r} must be one of {', '.join(STEPS)}")
    makers = {"vertebrae": phantom_vertebrae, "outlines": phantom_outlines}
    make = makers.get(args.stage, phantom_to_real)
    words = ["debug"] * args.debug + ["plane=axial"] * (args.stage == "axial")
    config = make.get_config(",".join(words))
    config.name = f"release_{args.stage}"
    if args.stage == "longer":
        config.seed = 1  # other phantoms than those of the stage before it
        config.optim.learning_rate = 2e-3
    if not args.debug:
        config.train.steps = STEPS[args.stage]
    return config
