"""Starting many runs: sweeps on this machine or on Slurm. Never imports jax."""
