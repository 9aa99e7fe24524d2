"""What shards are: their schema, where they are, how they are written and read as bytes."""
