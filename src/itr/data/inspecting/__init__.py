"""`itr data`: what shards hold, and whether all of it can be used."""
