"""Images on their way in: sources, letterbox, resize, tiles, video out."""
