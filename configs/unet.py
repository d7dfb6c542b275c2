"""The plain 2D U-Net that paper A compares with in Table 11 (Kim et al., 2020).

    spinejax train --config=configs/unet.py --config.data.root=DIR --workdir=runs/unet

1,941,105 parameters. Table 11 prints Dice 90.40 %, on 14 private scans: no target for VerSe.
Arguments: `protocol=paper`, data and training of paper A, or `paper_b`, those of paper B's Table 3,
instead of `own`, this project's; `debug` (minutes on a laptop).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common, qadri2021, saeed2023


def model(widths: tuple[int, ...] = (16, 32, 64, 128, 256)) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.unet` says what they mean."""
    return dict(
        name="unet",
        widths=widths,
        in_channels=3,
        norm="none",
        dropout=0.0,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, protocol=common.OWN, debug=False)
    config = common.base("unet", model())
    common.check_protocol(args.protocol, (common.OWN, common.PAPER, common.PAPER_B))
    if args.protocol == common.PAPER_B:
        qadri2021.recipe(config)
    else:
        saeed2023.set_protocol(config, args.protocol)
    if args.debug:
        config.model.widths = (8, 16, 32)
        config.data.size = (64, 64)
        config.train.steps = 8
        config.train.batch_size = 4
    return config
