"""Shards: written by `prepare`, read by `pipeline`, served to a run by `datamodule`."""
