"""The 3D U-Net that paper A compares with in Table 11 (Cicek et al., 2016), in MRU-Net's place.

    spinejax summarize --config=configs/unet3d.py

It has 19,072,123 parameters for one channel, 27 classes and group norms. The published 19,069,955
are for three channels and classes.

Arguments: `protocol=paper`, data and training as paper A has them, instead of `own`, ours;
`debug` (minutes on a laptop).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common, mrunet, saeed2023


def model(widths: tuple[int, ...] = (64, 128, 256, 512)) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.unet3d` says what they mean."""
    return dict(
        name="unet3d",
        widths=widths,
        norm="group",
        dropout=0.0,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment: MRU-Net's data and training with this network."""
    args = common.parse_arg(arg, protocol=common.OWN, debug=False)
    config = mrunet.base("unet3d", model())
    saeed2023.set_protocol(config, args.protocol)
    if args.debug:
        mrunet.debug(config)
        config.model.widths = (8, 16, 32)
    return config
