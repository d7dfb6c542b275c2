"""OP-convNet of paper B (Qadri et al., IEEE Access 2021, 9): vertebrae by overlapping patches.

    spinejax train --config=configs/opconvnet.py --config.data.root=DIR --workdir=runs/b

Published on 5 of the 15 scans of the MICCAI CSI data (Tables 2 and 3): patch accuracy 98.8 %, Dice
89.9 %. The recipe is the paper's, on the scans' own axial pixels, which are 0.31 to 0.45 mm there;
for coarser scans give `--config.data.preprocess.mode=resample` and a spacing.

Where the paper leaves something open or contradicts itself, this config decides:

* Padding: the feature maps keep their size in the text, but not in Table 1. The config follows the
  table (`model.paddings`), whose sizes need the pool strides 2, 1, 1 (`model.pool_strides`).
* fc_1 is printed as 256 x 1024 with the learnables of 1024 x 1024, which the config has.
* Dropout is "on fc4 and fc5". Here it follows fc_1 and fc_2, rate 0.5 (`model.dropout`), each after
  a ReLU that the table does not list (`model.fc_relu`).
* "Gaussian" initial weights have no printed width; here it is sqrt(2 / fan-in) (`model.init_std`).
* Training has 30 epochs as in the text, not 120 as in figure 11 (`train.epochs`), and keeps the
  lowest validation loss (`train.best`). L2 is for weights, not for biases.
* A patch has the label of its majority, but classifies one pixel, in row and column n // 2. Slices
  are padded by half a patch (`predict.padding`). `data.patches.label_rule=centre` trains for that
  pixel.
* Values outside 100 to 1500 HU become 0, the others are divided by 1500
  (`data.preprocess.intensity`; "clamp" clips instead). The Gaussian has 3x3 pixels, sigma 0.7.
* Augmentation rotates by up to 15 degrees and shifts by up to 4 pixels (`augment`).
* Morphology is an opening with a radius of 0.5 mm within slices, then no piece below 1 ml, and no
  cavities (`predict`). An opening with a radius below the pixel size does nothing.
* In the paper 80 % of all patches train; here scans are split (`data.patches.split_unit`).
* "BF-score" is printed with the formula of F1 from precision and sensitivity. The report has both:
  the boundary F1 as `bf_score`, the formula as `f1_pre_sen`.
* Table 2 counts patches, Table 3 pixels. Both are evaluated, patches at the stride of training.

`net=padbn` first pretrains each hidden layer as a restricted Boltzmann machine, in the folders
`rbm_1`, `rbm_2` and `rbm_3` of the run, then trains the classifier. The under-sampled patches of
the classifier are also those of the pretraining, which does not see their labels. With
`--config.train.init_from=runs/b/rbm_3` another classifier begins with that pretraining.

Arguments: `net=opconvnet` (default), the classifiers of Table 2, `vgg`, `resnet`, `densenet`, or
that of Table 3, `padbn`; `protocol=paper`, the only one here; `debug` (minutes on a laptop).

Sweeps: `random_search` (also `spinejax search`), `qadri2021_table2` and `qadri2021_table3`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from spinejax import schema
from spinejax.configs import common, qadri2021, search
from spinejax.configs.sweeps import Unit

# Network -> its fields: Table 1, the classifiers of Table 2, then one of Table 3 alone. The paper
# does not name the variants; the networks' modules say why these were chosen.
NETS: dict[str, dict[str, Any]] = {
    "opconvnet": dict(
        widths=(64, 128, 256),
        kernels=(3, 3, 3),
        strides=(2, 1, 1),
        paddings=("valid", "valid", "same"),
        pools=(3, 3, 2),
        pool_strides=(2, 1, 1),
        fc_widths=(1024, 256),
        fc_relu=True,
        dropout=0.5,
        init_std=0.0,
    ),
    "vgg": dict(
        depths=(1, 1, 2, 2, 2),
        widths=(64, 128, 256, 512, 512),
        fc_widths=(512, 512),
        dropout=0.5,
        norm="none",
    ),
    "resnet": dict(
        depths=(3, 3, 3),
        widths=(16, 32, 64),
        block="basic",
        shortcut="pad",
        stem="3x3",
        norm="batch",
    ),
    "densenet": dict(
        depths=(16, 16, 16),
        growth=12,
        stem="3x3",
        dropout=0.0,
        norm="batch",
    ),
    "padbn": dict(
        widths=(1000, 500, 250),
        init_std=0.01,
        rbm=0,
        rbm_share=0.3,
    ),
}
# Smaller fields of each, for `debug`.
TINY = {
    "opconvnet": dict(widths=(8, 16, 32), fc_widths=(32, 16)),
    "vgg": dict(depths=(1, 1), widths=(8, 16), fc_widths=(16,)),
    "resnet": dict(depths=(1, 1), widths=(8, 16)),
    "densenet": dict(depths=(2, 2), growth=4),
    "padbn": dict(widths=(32, 16)),
}

# `spinejax search`: learning rate, momentum, weight decay and batch size (section IV).
sweep_random_search = search.random_search


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the paper's experiment."""
    args = common.parse_arg(arg, net="opconvnet", protocol=common.PAPER, debug=False)
    common.check_protocol(args.protocol, (common.PAPER,))
    if args.net not in NETS:
        raise ValueError(f"net={args.net!r} is unknown; choose from {', '.join(NETS)}")
    config = common.base(args.net, dict(name=args.net, **NETS[args.net]), schema.PATCHES)
    qadri2021.recipe(config)
    if args.debug:
        config.train.steps = 8
        config.train.batch_size = 32
        config.model.update(TINY[args.net])
    return config


def _classifiers(table: str, printed: Mapping[str, str]) -> list[Unit]:
    return [
        Unit(net, {"config": f"opconvnet.py:net={net}"}, {"table": table, "Models": words})
        for net, words in printed.items()
    ]


_TABLE_2 = {
    "opconvnet": "OP-convNet (Proposed)",
    "vgg": "VGG net [44]",
    "resnet": "ResNet [46]",
    "densenet": "DenseNet [56]",
}


def sweep_qadri2021_table2() -> list[Unit]:
    """Yield Table 2: the four classifiers of patches."""
    return _classifiers("qadri2021_table2", _TABLE_2)


def sweep_qadri2021_table3() -> list[Unit]:
    """Yield Table 3: its networks that can be built, on the same scans, with paper B's recipe."""
    table = "qadri2021_table3"
    networks = [
        Unit(
            name, {"config": f"{name}.py:protocol={protocol}"}, {"table": table, "Models": printed}
        )
        for name, protocol, printed in (
            ("unet", common.PAPER_B, "UNet [47]"),
            ("dtvnet", common.PAPER, "D-TVNet [57]"),
            ("spineparsenet", common.PAPER, "SpineParseNet [31]"),  # of cubes: vertebrae by name
            ("saunet", common.PAPER, "SAU-Net [58]"),
            ("multiresunet", common.PAPER, "MultiResuNet [59]"),
        )
    ]
    return [*networks, *_classifiers(table, {**_TABLE_2, "padbn": "PaDBN Model [7]"})]
