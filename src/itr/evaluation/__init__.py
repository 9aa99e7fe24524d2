"""Embeddings of a split to exact ranks and recalls."""
