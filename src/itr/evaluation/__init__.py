"""Exact ranks and recalls from the embeddings of a split."""
