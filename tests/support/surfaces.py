"""Random masks, and the distances between their surfaces by scipy."""

from scipy import ndimage


def blobs(rng, shape, spread=2.0):
    """A smooth random mask: several bodies of irregular outline, some cut by the border."""
    return ndimage.gaussian_filter(rng.standard_normal(shape), spread) > 0.02


def with_scipy(prediction, reference, spacing):
    """Both directed distance lists by scipy's erosion and exact distance transform."""
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return maps[1][edges[0]], maps[0][edges[1]]
