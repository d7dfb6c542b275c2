"""D-TVNet (Lyu et al., 2021), which paper B compares with in Table 3.

    spinejax train --config=configs/dtvnet.py --config.data.root=DIR --workdir=runs/dtvnet

Only the abstract could be had: `spinejax.models.dtvnet` says what was chosen. The loss is cross
entropy and Dice of the mask, and half the cross entropy of its contour. Table 3 prints Dice
86.7 %, on 5 scans of the MICCAI CSI data. Arguments: `debug` (minutes on a laptop).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common


def model(widths: tuple[int, ...] = (32, 64, 128, 256, 512)) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.dtvnet` says what they mean."""
    return dict(
        name="dtvnet",
        widths=widths,
        norm="group",
        dropout=0.0,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment: paper A's data and training with this network and its contours."""
    args = common.parse_arg(arg, debug=False)
    config = common.base("dtvnet", model())
    config.loss.auxiliary_weight = 0.5
    if args.debug:
        config.model.widths = (8, 16, 32)
        config.data.size = (64, 64)
        config.train.steps = 8
        config.train.batch_size = 4
    return config
