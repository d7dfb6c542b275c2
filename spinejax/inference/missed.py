"""What the first step missed of vertebrae that the second step sees.

Where marrow is as dark as muscle, a network of slices follows the bright rim of a body and leaves
out the rest. A network of cubes sees the whole vertebra, if only coarsely.
"""

import numpy as np

from spinejax.inference.instances import Instances

ENOUGH = 0.8
"""A mask that covers this share of a vertebra is trusted: it has finer voxels. On 20 phantoms a
good mask covered 0.8 or more of all vertebrae, a bad one 0.7 or less of most."""

LEAST = 0.1
"""What the mask does not touch at all stays out: the first step is to find the spine."""


def missed_parts(instances: Instances, mask: np.ndarray) -> np.ndarray:
    """Return whole vertebrae of which the mask holds a part that is too small.

    Args:
        instances: of the second step, found without the mask.
        mask: (x, y, z) bool of the first step on the same grid.

    Returns:
        (x, y, z) bool, to be added to the mask.
    """
    count = len(instances.items) + 1
    whole = np.bincount(instances.array.ravel(), minlength=count)
    held = np.bincount(instances.array[mask], minlength=count)
    share = held / np.maximum(whole, 1)
    wanted = (share >= LEAST) & (share < ENOUGH)
    wanted[0] = False
    return wanted[instances.array]
