"""CHASPPRAU-Net of paper A (Saeed et al., Diagnostics 2023, 13, 2658): binary spine segmentation.

    spinejax train --config=configs/chasppraunet.py --config.data.root=DIR --workdir=runs/a

Published on VerSe'20 and '19 (Table 5): Dice 93.72 and 94.58 %; see the report for why those cannot
be compared directly. Arguments: `debug` (minutes on a laptop).
"""

from ml_collections import ConfigDict

from configs import common


def model(widths: tuple[int, ...] = (24, 48, 96, 192)) -> dict:
    """Return the network's fields; what the paper leaves open has a field and a default."""
    return dict(
        name="chasppraunet",
        widths=widths,
        attention="dot_product",  # "dot_product" | "gate" | "residual" | "none"
        # Keys and values are pooled to at most this many pixels a side; 32 doubles the time of a
        # step on a CPU.
        attention_key_size=16,
        pyramid="chaspp",  # "chaspp" | "aspp" | "none"
        root_rates=(6,),
        branch_rates=(1, 2, 3),
        stages=2,
        mid_div=4,
        chaspp_per_pool=1,
        residual=True,
        norm="group",  # "group" | "batch" | "none"
        dropout=0.3,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the paper's experiment."""
    args = common.parse_arg(arg, debug=False)
    config = common.base("chasppraunet", model())
    if args.debug:
        config.model.widths = (8, 16, 32, 64)
        config.data.size = (64, 64)
        config.train.steps = 8
        config.train.batch_size = 4
    return config
