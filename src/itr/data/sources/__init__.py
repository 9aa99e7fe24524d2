"""Where shards come from: one file a source, each with a function that `itr prepare` calls."""
