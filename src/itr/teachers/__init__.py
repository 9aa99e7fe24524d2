"""Frozen uni-modal encoders whose embeddings teach a method."""
