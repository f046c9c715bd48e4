"""Released checkpoints: the table of them, and their download."""
