"""Released checkpoints: what there is, and how it is downloaded."""
