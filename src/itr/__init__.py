"""Train, measure and use image-text retrieval."""
