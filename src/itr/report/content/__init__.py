"""What a report says: figures and examples of each run."""
