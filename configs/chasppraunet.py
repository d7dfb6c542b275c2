"""CHASPPRAU-Net of paper A (Saeed et al., Diagnostics 2023, 13, 2658): binary spine segmentation.

    spinejax train --config=configs/chasppraunet.py --config.data.root=DIR --workdir=runs/a

Published on VerSe'20 and '19 (Table 5): Dice 93.72 and 94.58 %. The report says why these numbers
cannot be compared directly. Arguments: `protocol=paper`, data and training as the paper has them
(`configs/saeed2023.py`), instead of `own`, this project's; `debug` (minutes on a laptop).

Sweeps: `saeed2023_table3`, `_table5`, `_table9` and `_table11` of the paper; `attention`, three
readings of the paper's attention and none; `networks`, other networks of slices with this config's
data and training. All but `attention` have the argument `protocol`, "paper" unless given.
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common, saeed2023, sweeps
from spinejax.configs.sweeps import Sweep, Unit


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
    """Return the experiment."""
    args = common.parse_arg(arg, protocol=common.OWN, debug=False)
    config = common.base("chasppraunet", model())
    saeed2023.set_protocol(config, args.protocol)
    if args.debug:
        config.model.widths = (8, 16, 32, 64)
        config.data.size = (64, 64)
        config.train.steps = 8
        config.train.batch_size = 4
    return config


def sweep_attention() -> list[Unit]:
    """Yield each kind of attention on the skips, and none."""
    return sweeps.axis("model.attention", ("dot_product", "gate", "residual", "none"))


def sweep_networks(protocol: str = common.PAPER) -> list[Unit]:
    """Yield this network and others of slices, all with this config's data and training."""
    own = Unit("model=chasppraunet", {"model": f"chasppraunet.py:protocol={protocol}"})
    others = sweeps.axis("model", ("unet", "dtvnet", "saunet", "multiresunet"))
    recipe = Unit("", {"config": f"chasppraunet.py:protocol={protocol}"})
    return sweeps.product([own, *others], [recipe])


def _units(number: int, protocol: str, *parts: Sweep) -> list[Unit]:
    config = Unit("", {"config": f"chasppraunet.py:protocol={protocol}"})
    return saeed2023.table(number, saeed2023.DATASETS, *parts, [config])


def _augmented(on: bool, protocol: str, name: str = "", printed: str = "") -> Unit:
    switches = saeed2023.augmented(on, protocol)
    fields = {f"augment.{key}": value for key, value in switches.items()}
    return Unit(name, fields, {"Experiments": printed} if printed else {})


def sweep_saeed2023_table3(protocol: str = common.PAPER) -> list[Unit]:
    """Yield Table 3: both data sets, four normalisations, no augmentation."""
    return _units(3, protocol, saeed2023.NORMALISATIONS, [_augmented(False, protocol)])


def sweep_saeed2023_table5(protocol: str = common.PAPER) -> list[Unit]:
    """Yield Table 5: Table 3 with augmentation."""
    return _units(5, protocol, saeed2023.NORMALISATIONS, [_augmented(True, protocol)])


def sweep_saeed2023_table9(protocol: str = common.PAPER) -> list[Unit]:
    """Yield Table 9: the best normalisation without augmentation and with it."""
    stages = [
        _augmented(False, protocol, "augment=off", "Image Normalization"),
        _augmented(True, protocol, "augment=on", "Data Augmentation"),
    ]
    return _units(9, protocol, stages)


def sweep_saeed2023_table11(protocol: str = common.PAPER) -> list[Unit]:
    """Yield Table 11: the networks of its rows that can be built, on VerSe'19 as in the paper.

    The other works trained their networks on scans of their own; here all see the same scans.
    """
    with_protocol = f":protocol={protocol}"
    networks = [
        Unit(name, {"config": file}, {"Methodology": printed, **more})
        for name, file, printed, more in (
            ("vnet", f"vnet.py{with_protocol}", "3D V-Net", {}),
            ("unet", f"unet.py{with_protocol}", "U-Net", {}),
            # Classifiers of patches have paper B's recipe.
            ("redundant_labels", "redundant_labels.py", "CNN", {}),
            ("padbn", "opconvnet.py:net=padbn", "PaDBN", {}),
            ("unet3d", f"unet3d.py{with_protocol}", "3D U-Net", {}),
            # Their recipe is that of their own work.
            ("pcnn", "pcnn.py:net=pcnn", "PCNN", {}),
            ("apcnn", "pcnn.py:net=apcnn", "APCNN", {}),
            ("mlpnn", "mlpnn.py", "MLPNN", {}),
            ("mlpnn1f", "mlpnn.py:features=1", "MLPNN1F", {}),
            ("chasppraunet", f"chasppraunet.py{with_protocol}", "CHASPPRAU-Net", {}),
            # The DSC in this row is that of vertebrae in Table 8.
            ("mrunet", f"mrunet.py{with_protocol}", "3D MRU-Net", {"scores": "vertebrae"}),
        )
    ]
    return saeed2023.table(11, networks, [Unit("", {"data.edition": "verse19"})])
