"""The life of a training run: the command line, checkpoints, stopping, resuming, watching."""
