"""The pulse-coupled networks of [48] in paper A's Table 11 (Zareie et al., 2018), without training.

    spinejax train --config=configs/pcnn.py --config.data.root=DIR --workdir=runs/apcnn --evaluate

There are no parameters to train: the first command writes the run at once and scores its test
split, the scans on which the other networks are tested. `spinejax predict` and `export` take the
run, too. The blocks `augment`, `loss`, `optim` and `train` of the config have no effect.

Table 11 prints Dice 65.7 % for PCNN and 95 % for APCNN, on 17 scans of its own authors: no target
for VerSe. Both networks segment bright tissue, and here they see the whole scan, so that ribs,
pelvis and contrast medium count as errors. Pieces away from the line of the spine are dropped
(`predict.drop_islands`). The window of 100 to 500 HU is a choice. It begins above soft tissue:
else the threshold that separates most may be that between air and body. It ends within cortical
bone, so that linking does not depend on the brightest voxel of a scan.

Arguments: `net=apcnn` (default), parameters set for each image, or `net=pcnn`, the same parameters
for all images; `debug` (coarse voxels).
"""

from typing import Any

from ml_collections import ConfigDict

from spinejax.configs import common

# Network -> its fields; `spinejax.models.pcnn` says what they mean.
NETS: dict[str, dict[str, Any]] = {
    "apcnn": {},
    "pcnn": dict(beta=0.05, decay=0.2, iterations=8),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment: paper A's scans with this network."""
    args = common.parse_arg(arg, net="apcnn", debug=False)
    if args.net not in NETS:
        raise ValueError(f"net={args.net!r} is unknown; choose from {', '.join(NETS)}")
    config = common.base(args.net, dict(name=args.net, **NETS[args.net]))
    config.data.normalise = "unit"
    config.data.preprocess.clamp_hu = (100.0, 500.0)
    config.predict.drop_islands = True
    if args.debug:
        config.data.preprocess.spacing_mm = 4.0
    return config
