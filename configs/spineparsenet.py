"""SpineParseNet (Pang et al., 2021), a 3D and a 2D network, which paper B compares with in Table 3.

    spinejax train --config=configs/spineparsenet.py --config.data.root=DIR --workdir=runs/parse

Its recipe, in so far as the public code says it: cross entropy of the classes and 0.3 times that of
the graph's logits, Adam with L2, 150 epochs with a fifth of the rate after each third. The
public code trains the 2D network after the 3D one, on whole slices, and strides within slices only.
Here both learn together, the 2D network sees the slices of a cube, and strides are equal along all
axes, as our voxels are. Table 3 prints Dice 87.3 %. `--config.model.refine_widths='()'` leaves the
2D network out. Arguments: `protocol=paper`, training of paper B, whose masks have no
names, so that the data stay VerSe's; `debug` (minutes on a laptop).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common, mrunet, qadri2021


def model(
    widths: tuple[int, ...] = (16, 32, 64, 128, 364),
    exit_widths: tuple[int, ...] = (512, 768, 768, 1024),
    refine_widths: tuple[int, ...] = (32, 64, 128, 256, 512),
) -> dict[str, Any]:
    """Return the network's fields; `spinejax.models.spineparsenet` says what they mean."""
    return dict(
        name="spineparsenet",
        widths=widths,
        exit_widths=exit_widths,
        skip_widths=(24, 64),
        decoder_widths=(128, 256),
        strides=(2, 2, 2),
        refine_widths=refine_widths,
        norm="group",
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment: MRU-Net's data with this network and its training."""
    args = common.parse_arg(arg, protocol=common.OWN, debug=False)
    config = mrunet.base("spineparsenet", model())
    config.loss.update(name="ce", auxiliary_weight=0.3)
    config.optim.update(
        learning_rate=1e-3,
        weight_decay=1e-4,
        schedule="step",
        decay_every_epochs=50.0,
        decay_factor=0.2,
    )
    config.train.epochs = 150.0
    qadri2021.set_protocol(config, args.protocol)
    if args.debug:
        mrunet.debug(config)
        config.model.update(
            widths=(4, 8, 8, 16, 16),
            exit_widths=(16, 16),
            skip_widths=(8, 8),
            decoder_widths=(16, 16),
            refine_widths=(4, 8, 8),
        )
    return config
