"""`itr prepare`: from what a source finds to shards, whole or not at all."""
