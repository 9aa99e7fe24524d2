"""Read published third-party checkpoints into itr models."""
