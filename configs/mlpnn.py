"""The multi-layer perceptrons of [48] in paper A's Table 11 (Zareie et al., 2018).

    spinejax train --config=configs/mlpnn.py --config.data.root=DIR --workdir=runs/mlpnn

181 parameters with seven features of each pixel, 61 with one. Table 11 prints Dice 91.1 and 77.3 %,
on 17 scans of its own authors: no target for VerSe. A pixel's neighbourhood of 3 x 3 cannot tell
vertebrae from other bones.

Arguments: `features=7` (default, MLPNN) or 1 (MLPNN1F); `debug` (minutes on a laptop).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common

FEATURES = ("value", "mean", "deviation", "gradient", "median", "minimum", "maximum")


def model(features: tuple[str, ...] = FEATURES) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.mlpnn` says what they mean."""
    return dict(name="mlpnn", features=features, hidden=20)


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment: paper A's data and training with this network."""
    args = common.parse_arg(arg, features=7, debug=False)
    if args.features not in (1, len(FEATURES)):
        raise ValueError(f"features={args.features} is unknown; choose 7 or 1")
    config = common.base("mlpnn", model(FEATURES[: args.features]))
    # So few parameters need larger steps.
    config.optim.learning_rate = 1e-2
    if args.debug:
        config.data.size = (64, 64)
        config.train.steps = 8
        config.train.batch_size = 4
    return config
