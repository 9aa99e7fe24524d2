"""What a training run does around its steps."""
