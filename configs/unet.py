"""The plain 2D U-Net that paper A compares with in Table 11 (Kim et al., 2020).

    spinejax train --config=configs/unet.py --config.data.root=DIR --workdir=runs/unet

1,941,105 parameters. Table 11 prints Dice 90.40 %, on 14 private scans: no target for VerSe.
Arguments: `debug` (minutes on a laptop).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common


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
    """Return the experiment: paper A's data and training with this network."""
    args = common.parse_arg(arg, debug=False)
    config = common.base("unet", model())
    if args.debug:
        config.model.widths = (8, 16, 32)
        config.data.size = (64, 64)
        config.train.steps = 8
        config.train.batch_size = 4
    return config
