"""Scans and label maps in and out: NIfTI, MetaImage, centroids, file names, grids that differ."""
