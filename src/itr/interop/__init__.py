"""Models of other programs, read into ours and written for others."""
