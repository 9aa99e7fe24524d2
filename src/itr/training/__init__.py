"""Training steps: optimizer, compilation, and losses that fit into memory."""
