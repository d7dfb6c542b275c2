"""Label maps of real spines, and what the tests of their vertebrae share."""

import numpy as np

from spinejax import labels
from spinejax.inference.instances import find_instances
from spinejax.inference.sequence import label_instances

FILES = {
    "verse004": "verse/derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz",
    "verse014": "verse/derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
    "gl003": "verse/derivatives/sub-gl003/sub-gl003_dir-ax_seg-vert_msk.nii.gz",
    "totalsegmentator": "totalsegmentator/example_vertebrae_verse-ids.nii.gz",
}


def label_vertebrae(classes, spacing_mm, *, spine=None, beyond_mm=(0.0, 0.0), **how):
    """Instances of a label map, named."""
    found = find_instances(classes, spacing_mm, spine=spine, beyond_mm=beyond_mm)
    return label_instances(found, **how)


def ids_of(array):
    return tuple(sorted((int(i) for i in np.unique(array) if i), key=labels.order))


def dice(one, other):
    return {
        i: 2 * ((one == i) & (other == i)).sum() / ((one == i).sum() + (other == i).sum())
        for i in ids_of(other)
    }


def labelled(array, spacing, **how):
    return label_vertebrae(labels.to_contiguous(array), spacing, **how)


def repaired(broken, array, spacing, least):
    result = labelled(broken, spacing)
    assert result.record.labels == ids_of(array)
    scores = dice(result.array, array)
    assert min(scores.values()) > least, scores
    return result
