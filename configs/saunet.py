"""SAU-Net of paper B's Table 3 (Zhang et al., MIDL 2020): a slice between its two neighbours.

    spinejax train --config=configs/saunet.py --config.data.root=DIR --workdir=runs/saunet

Table 3 prints DSC 89.8 %, on 15 scans of the MICCAI CSI data: no target for VerSe.
`spinejax.models.saunet` says what is published of the network and what was chosen.
Arguments: `debug` (minutes on a laptop).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common


def model(depths: tuple[int, ...] = (4, 4, 4, 4)) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.saunet` says what they mean."""
    return dict(name="saunet", depths=depths, growth=16, norm="group")


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment: paper A's data and training with this network."""
    args = common.parse_arg(arg, debug=False)
    config = common.base("saunet", model())
    config.data.neighbours = 1
    if args.debug:
        config.model.depths = (1, 1, 1)
        config.model.growth = 4
        config.data.size = (64, 64)
        config.train.steps = 8
        config.train.batch_size = 4
    return config
