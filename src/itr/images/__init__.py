"""Image files to tensors: decoding, and the transforms for training and evaluation."""
