"""Image bytes to tensors: decoding, and the transforms of training and evaluation."""
