"""`itr data`: show what shards contain, and verify them."""
