"""From a checkpoint's tensors to a network."""
