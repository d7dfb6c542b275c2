"""3D MRU-Net of paper A (Saeed et al., Diagnostics 2023, 13, 2658): every vertebra by its name.

    spinejax summarize --config=configs/mrunet.py

1,227,307 parameters. Published on VerSe'20 and '19 (Table 8): Dice 93.89 and 95.19 %. The paper
does not say what it averages. Table 11 prints 1,245,155 parameters and does not name the network.

Arguments: `table=8` (default), 4, 6 or 7 sets the paper's stage. Table 4 has normalisation only, 6
adds augmentation, 7 residual blocks, 8 dropout. The rows of a table are
`--config.data.normalise=hu`, `zscore`, `unit` and `sym`. `debug` (minutes on a laptop).

Sweeps: `saeed2023_table4`, `_table6`, `_table7`, `_table8` and `_table10` of the paper.
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax import schema
from spinejax.configs import common, saeed2023
from spinejax.configs.sweeps import Unit

# Table -> what the paper had added by then.
TABLES = {
    4: dict(augment=False, residual=False, dropout=0.0),
    6: dict(augment=True, residual=False, dropout=0.0),
    7: dict(augment=True, residual=True, dropout=0.0),
    8: dict(augment=True, residual=True, dropout=0.3),
}


def model(residual: bool = True, dropout: float = 0.3) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.mrunet` says what they mean."""
    return dict(
        name="mrunet",
        width_multiplier=0.35,
        stem_width=32,
        widths=(16, 24, 32, 64, 96),
        depths=(1, 2, 3, 4, 3),
        expansions=(1, 6, 6, 6, 6),
        strides=(1, 2, 2, 2, 1),
        decoder_widths=(88, 48, 24, 16),
        share_views=False,
        residual=residual,
        norm="group",
        dropout=dropout,
    )


def base(name: str, model: dict[str, Any]) -> ConfigDict:
    """Return an experiment with a network of cubes."""
    config = common.base(name, model, schema.CUBES)
    config.data.preprocess.spacing_mm = 2.0
    config.train.batch_size = 2
    return config


def debug(config: ConfigDict) -> None:
    """Make the data small."""
    config.data.cube.size = (32, 32, 32)
    config.train.steps = 8


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the paper's experiment."""
    args = common.parse_arg(arg, table=8, debug=False)
    if args.table not in TABLES:
        raise ValueError(
            f"table={args.table} is unknown; choose from {', '.join(map(str, TABLES))}"
        )
    fields: dict[str, Any] = dict(TABLES[args.table])
    augment = fields.pop("augment")
    config = base("mrunet", model(**fields))
    config.augment.enabled = augment
    if args.debug:
        debug(config)
        config.model.depths = (1, 1, 1, 1, 1)
        config.model.decoder_widths = (16, 16, 8, 8)
    return config


def _stage(table: int, name: str = "", printed: str = "") -> Unit:
    """Return the paper's stage at a table."""
    fields = TABLES[table]
    overrides = {
        "augment.enabled": fields["augment"],
        "model.residual": fields["residual"],
        "model.dropout": fields["dropout"],
    }
    return Unit(name, overrides, {"Experiments": printed} if printed else {})


def _normalisations(table: int) -> list[Unit]:
    return saeed2023.table(table, saeed2023.DATASETS, saeed2023.NORMALISATIONS, [_stage(table)])


def sweep_saeed2023_table4() -> list[Unit]:
    """Yield Table 4: both data sets, four normalisations, nothing added."""
    return _normalisations(4)


def sweep_saeed2023_table6() -> list[Unit]:
    """Yield Table 6: Table 4 with augmentation."""
    return _normalisations(6)


def sweep_saeed2023_table7() -> list[Unit]:
    """Yield Table 7: Table 6 with residual blocks."""
    return _normalisations(7)


def sweep_saeed2023_table8() -> list[Unit]:
    """Yield Table 8: Table 7 with dropout."""
    return _normalisations(8)


def sweep_saeed2023_table10() -> list[Unit]:
    """Yield Table 10: the best normalisation at each of these stages."""
    stages = [
        _stage(4, "normalised", "Image Normalization"),
        _stage(6, "augmented", "Data Augmentation"),
        _stage(7, "residual", "Residual Blocks"),
        _stage(8, "dropout", "Dropout Regularization"),
    ]
    return saeed2023.table(10, saeed2023.DATASETS, stages)
