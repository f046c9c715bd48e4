"""FCN-32s, 16s, 8s and ParseNet."""
