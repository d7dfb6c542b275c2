"""CHASPPRAU-Net of paper A (Saeed et al., Diagnostics 2023, 13, 2658): binary spine segmentation.

    spinejax train --config=configs/chasppraunet.py --config.data.root=DIR --workdir=runs/a

Published on VerSe'20 and '19 (Table 5): Dice 93.72 and 94.58 %. The report says why these numbers
cannot be compared directly. Arguments: `debug` (minutes on a laptop).

Sweeps: `saeed2023_table3`, `_table5`, `_table9` and `_table11` of the paper, and `attention`, three
readings of the paper's attention and none.
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common, saeed2023, sweeps
from spinejax.configs.sweeps import Unit


def model(widths: tuple[int, ...] = (24, 48, 96, 192), dropout: float = 0.3) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.chasppraunet` says what they mean."""
    return dict(
        name="chasppraunet",
        widths=widths,
        attention="dot_product",
        attention_key_size=16,
        pyramid="chaspp",
        root_rates=(6,),
        branch_rates=(1, 2, 3),
        stages=2,
        mid_div=4,
        chaspp_per_pool=1,
        residual=True,
        norm="group",
        dropout=dropout,
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


def sweep_attention() -> list[Unit]:
    """Yield each kind of attention on the skips, and none."""
    return sweeps.axis("model.attention", ("dot_product", "gate", "residual", "none"))


def _augmented(on: bool) -> Unit:
    return Unit("", {"augment.enabled": on})


def sweep_saeed2023_table3() -> list[Unit]:
    """Yield Table 3: both data sets, four normalisations, no augmentation."""
    return saeed2023.table(3, saeed2023.DATASETS, saeed2023.NORMALISATIONS, [_augmented(False)])


def sweep_saeed2023_table5() -> list[Unit]:
    """Yield Table 5: Table 3 with augmentation."""
    return saeed2023.table(5, saeed2023.DATASETS, saeed2023.NORMALISATIONS, [_augmented(True)])


def sweep_saeed2023_table9() -> list[Unit]:
    """Yield Table 9: the best normalisation without augmentation and with it."""
    stages = [
        Unit(f"augment={on}", {"augment.enabled": on == "on"}, {"Experiments": printed})
        for on, printed in (("off", "Image Normalization"), ("on", "Data Augmentation"))
    ]
    return saeed2023.table(9, saeed2023.DATASETS, stages)


def sweep_saeed2023_table11() -> list[Unit]:
    """Yield Table 11: the networks of its rows that can be built, on VerSe'19 as in the paper.

    The other works trained their networks on scans of their own; here all see the same scans.
    """
    networks = [
        Unit(name, {"config": file}, {"Methodology": printed, **more})
        for name, file, printed, more in (
            ("vnet", "vnet.py", "3D V-Net", {}),
            ("unet", "unet.py", "U-Net", {}),
            ("unet3d", "unet3d.py", "3D U-Net", {}),
            ("pcnn", "pcnn.py:net=pcnn", "PCNN", {}),
            ("apcnn", "pcnn.py:net=apcnn", "APCNN", {}),
            ("mlpnn", "mlpnn.py", "MLPNN", {}),
            ("mlpnn1f", "mlpnn.py:features=1", "MLPNN1F", {}),
            ("chasppraunet", "chasppraunet.py", "CHASPPRAU-Net", {}),
            # The DSC in this row is that of vertebrae in Table 8.
            ("mrunet", "mrunet.py", "3D MRU-Net", {"scores": "vertebrae"}),
        )
    ]
    return saeed2023.table(11, networks, [Unit("", {"data.edition": "verse19"})])
