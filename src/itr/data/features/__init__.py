"""What frozen teachers make of shards: written once by `itr features`, read by row while training."""
