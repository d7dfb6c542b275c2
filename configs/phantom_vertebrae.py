"""The second network of `configs/cascade.py:phantom` alone: 3D MRU-Net, trained on phantoms.

    spinejax train --config=configs/phantom_vertebrae.py --workdir=runs/vertebrae
    spinejax predict --workdir=SPINE --vertebrae=runs/vertebrae --input=CT.nii.gz --output=out

Arguments: `debug` (a few steps).
"""

from ml_collections import ConfigDict

from spinejax.configs import cascade, common


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment."""
    args = common.parse_arg(arg, debug=False)
    both = cascade.get_config("phantom,debug" if args.debug else "phantom")
    # There, the fields that it shares with the first network are references.
    return both.copy_and_resolve_references().vertebrae
