"""The folder of a run: config, checkpoints, state, metrics, curves."""
