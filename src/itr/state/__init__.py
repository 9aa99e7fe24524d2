"""What a checkpoint says about its model, besides weights."""
