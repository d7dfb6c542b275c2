"""3D MRU-Net of paper A (Saeed et al., Diagnostics 2023, 13, 2658): every vertebra by its name.

    spinejax summarize --config=configs/mrunet.py

1,227,307 parameters. Published on VerSe'20 and '19 (Table 8): Dice 93.89 and 95.19 %. The paper
does not say what it averages. Table 11 prints 1,245,155 parameters and does not name the network.

Arguments: `table=8` (default), 4, 6 or 7 sets the paper's stage. Table 4 has normalisation only, 6
adds augmentation, 7 residual blocks, 8 dropout. The rows of a table are
`--config.data.normalise=hu`, `zscore`, `unit` and `sym`. `protocol=paper`, data and training as the
paper has them (`configs/saeed2023.py`), instead of `own`, this project's. `debug` (minutes on a
laptop).

Sweeps: `saeed2023_table4`, `_table6`, `_table7`, `_table8` and `_table10` of the paper. Their units
are pipelines (`configs/cascade.py`), as in section 5: after the spine's segmentation, this network
names the vertebrae. With the argument `alone=true` it is trained and scored on whole scans.
`protocol` is "paper" unless given.
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax import schema
from spinejax.configs import common, saeed2023
from spinejax.configs.sweeps import Sweep, Unit
from spinejax.schema import SECOND


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
        views="joint",
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
    """Return the experiment."""
    args = common.parse_arg(arg, protocol=common.OWN, table=8, debug=False)
    stage = saeed2023.stage(args.table)
    config = base("mrunet", model(stage.residual, stage.dropout))
    saeed2023.set_protocol(config, args.protocol)
    config.augment.update(saeed2023.augmented(stage.augment, args.protocol))
    if args.debug:
        debug(config)
        config.model.depths = (1, 1, 1, 1, 1)
        config.model.decoder_widths = (16, 16, 8, 8)
    return config


def _units(number: int, protocol: str, alone: bool, *parts: Sweep) -> list[Unit]:
    """Return the units of a table; `parts` give the stage as the argument `table`."""
    units = saeed2023.table(number, saeed2023.DATASETS, *parts)
    return [_of_stage(unit, protocol, alone) for unit in units]


def _of_stage(unit: Unit, protocol: str, alone: bool) -> Unit:
    fields = dict(unit.overrides)
    file = "mrunet.py" if alone else "cascade.py"
    config = f"{file}:protocol={protocol},table={fields.pop('table')}"
    both = {} if alone else {f"{SECOND}.{key}": fields[key] for key in fields if key in _BOTH}
    return unit._replace(overrides={"config": config, **fields, **both})


_BOTH = ("data.normalise",)  # `cascade.join` has both networks see the same scans


def _stage(table: int, name: str = "", printed: str = "") -> Unit:
    return Unit(name, {"table": table}, {"Experiments": printed} if printed else {})


def sweep_saeed2023_table4(protocol: str = common.PAPER, alone: bool = False) -> list[Unit]:
    """Yield Table 4: both data sets, four normalisations, nothing added."""
    return _units(4, protocol, alone, saeed2023.NORMALISATIONS, [_stage(4)])


def sweep_saeed2023_table6(protocol: str = common.PAPER, alone: bool = False) -> list[Unit]:
    """Yield Table 6: Table 4 with augmentation."""
    return _units(6, protocol, alone, saeed2023.NORMALISATIONS, [_stage(6)])


def sweep_saeed2023_table7(protocol: str = common.PAPER, alone: bool = False) -> list[Unit]:
    """Yield Table 7: Table 6 with residual blocks."""
    return _units(7, protocol, alone, saeed2023.NORMALISATIONS, [_stage(7)])


def sweep_saeed2023_table8(protocol: str = common.PAPER, alone: bool = False) -> list[Unit]:
    """Yield Table 8: Table 7 with dropout."""
    return _units(8, protocol, alone, saeed2023.NORMALISATIONS, [_stage(8)])


def sweep_saeed2023_table10(protocol: str = common.PAPER, alone: bool = False) -> list[Unit]:
    """Yield Table 10: the best normalisation at each of these stages."""
    stages = [
        _stage(4, "normalised", "Image Normalization"),
        _stage(6, "augmented", "Data Augmentation"),
        _stage(7, "residual", "Residual Blocks"),
        _stage(8, "dropout", "Dropout Regularization"),
    ]
    return _units(10, protocol, alone, stages)
