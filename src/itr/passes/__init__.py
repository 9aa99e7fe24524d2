"""Long passes over all shards that can be resumed: teacher features and dense captions."""
