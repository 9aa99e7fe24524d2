"""Features of frozen teachers: written once by `itr features`, read by row during training."""
