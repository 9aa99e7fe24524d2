"""Outputs of frozen towers: computed once before training, kept in files, and read by row in every epoch."""
