"""CrossFormer and its backbones."""
