"""Embeddings of shards, folders of images and lines of text, and the files that store them."""
