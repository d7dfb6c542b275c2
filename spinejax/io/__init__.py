"""Scans and label maps in and out: their formats, centroids, file names, grids that differ."""
