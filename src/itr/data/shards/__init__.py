"""Shards: their schema and location, and how they are written and read as bytes."""
