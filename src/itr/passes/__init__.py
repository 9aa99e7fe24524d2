"""Long, resumable passes over all shards: teacher features and dense captions."""
