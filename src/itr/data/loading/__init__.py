"""From shards to batches: the share of each process, decoding and tokenizing."""
