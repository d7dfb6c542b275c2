"""Spine CT segmentation and vertebra recognition in JAX and Flax."""

__version__ = "0.1.0"
