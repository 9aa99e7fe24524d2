"""Published checkpoints of other programs, read into models of ours."""
