"""What keeps a training run in order, and stops it well when it is not."""
