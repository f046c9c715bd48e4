"""Image input and video output: sources, letterbox, resize, tiles, video writer."""
