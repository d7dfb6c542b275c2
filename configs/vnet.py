"""V-Net (Milletari et al., 2016), the network of [44] in paper A's Table 11, in MRU-Net's place.

    spinejax summarize --config=configs/vnet.py

65,176,139 parameters for one channel and 27 classes.

Arguments: `protocol=paper`, data and training as paper A has them, instead of `own`, ours;
`debug` (minutes on a laptop).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common, mrunet, saeed2023


def model(
    widths: tuple[int, ...] = (16, 32, 64, 128, 256), depths: tuple[int, ...] = (1, 2, 3, 3, 3)
) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.vnet` says what they mean."""
    return dict(
        name="vnet",
        widths=widths,
        depths=depths,
        norm="none",
        dropout=0.0,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment: MRU-Net's data and training with this network."""
    args = common.parse_arg(arg, protocol=common.OWN, debug=False)
    config = mrunet.base("vnet", model())
    saeed2023.set_protocol(config, args.protocol)
    if args.debug:
        mrunet.debug(config)
        config.model.widths = (8, 16, 32)
        config.model.depths = (1, 1, 1)
    return config
