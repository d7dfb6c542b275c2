"""Training: state, optimiser, step, devices, checkpoints, logs and the loop."""
