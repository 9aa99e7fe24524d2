"""From shards to training batches: shares of each process, decoding, tokenizing."""
