"""Frozen uni-modal encoders whose embeddings supervise a method."""
