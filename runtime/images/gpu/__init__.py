"""Images and videos decoded on an NVIDIA GPU, where that is asked for."""
