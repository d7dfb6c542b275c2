"""MultiResUNet (Ibtehaz and Rahman, 2020), which paper B compares with in Table 3.

    spinejax summarize --config=configs/multiresunet.py

7,262,750 numbers as published: 7,238,228 parameters and 24,522 running statistics. Table 3 prints
Dice 84.9 %, on 5 scans of the MICCAI CSI data; paper B says neither how nor how long it trained.
Arguments: `protocol=paper`, data and training of paper B, instead of `own`, this project's; `debug`
(minutes on a laptop).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common, qadri2021


def model(widths: tuple[int, ...] = (32, 64, 128, 256, 512)) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.multiresunet` says what they mean."""
    return dict(
        name="multiresunet",
        widths=widths,
        in_channels=3,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, protocol=common.OWN, debug=False)
    config = common.base("multiresunet", model())
    qadri2021.set_protocol(config, args.protocol)
    if args.debug:
        config.model.widths = (8, 16, 32)
        config.data.size = (64, 64)
        config.train.steps = 8
        config.train.batch_size = 4
    return config
