"""Checkpoints with random weights, as the original projects write them."""
