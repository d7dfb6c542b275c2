"""CNN with redundant labels (Vania et al., 2019), the network of [46] in paper A's Table 11.

    spinejax train --config=configs/redundant_labels.py --config.data.root=DIR --workdir=runs/r

Published (abstract; J. Computational Design and Engineering 6:224-232): a hybrid of CNN and FCN,
and more classes than needed, as a soft constraint. Table 11 prints Dice 94.28 %, on 32 scans of
SpineWeb: no target for VerSe.

Chosen here, since no more is known: OP-convNet with four classes, of deep background, background
near the bone, interior and edge of the bone (`data.redundant`), and cross entropy. The
probabilities of the two classes of bone add up to that of vertebra. Slices are sagittal and have
pixels of 1 mm, so that 32 pixels show the distances. Training is that of `opconvnet.py`. 1,682,692
parameters.

Arguments: `debug` (minutes on a laptop).
"""

from ml_collections import ConfigDict

from spinejax.configs import common, opconvnet


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, debug=False)
    config = opconvnet.get_config("debug" if args.debug else None)
    config.name = "redundant_labels"
    config.data.plane = "sagittal"
    config.data.preprocess.update(mode="resample", spacing_mm=1.0)
    config.data.patches.label_rule = "redundant"
    return config
