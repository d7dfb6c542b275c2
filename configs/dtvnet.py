"""D-TVNet (Lyu et al., 2021), which paper B compares with in Table 3.

    spinejax train --config=configs/dtvnet.py --config.data.root=DIR --workdir=runs/dtvnet

Only the abstract could be had: `spinejax.models.dtvnet` says what was chosen. The loss is cross
entropy and Dice of the mask, and half the cross entropy of its contour. Table 3 prints Dice
86.7 %, on 5 scans of the MICCAI CSI data. Arguments: `protocol=paper`, data and training of paper
B, instead of `own`, this project's; `debug` (minutes on a laptop).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common, qadri2021


def model(widths: tuple[int, ...] = (32, 64, 128, 256, 512)) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.dtvnet` says what they mean."""
    return dict(
        name="dtvnet",
        widths=widths,
        norm="group",
        dropout=0.0,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, protocol=common.OWN, debug=False)
    config = common.base("dtvnet", model())
    qadri2021.set_protocol(config, args.protocol)
    config.loss.auxiliary_weight = 0.5
    if args.debug:
        config.model.widths = (8, 16, 32)
        config.data.size = (64, 64)
        config.train.steps = 8
        config.train.batch_size = 4
    return config
