"""Launching sweeps: many runs on this machine or on Slurm. Importing it does not import jax."""
