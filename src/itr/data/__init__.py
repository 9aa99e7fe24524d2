"""Shards: made by `preparing` of what `sources` find, read by `pipeline`, served to a run by `datamodule`."""
