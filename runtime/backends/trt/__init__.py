"""TensorRT engines on a GPU, for both flavours of TensorRT."""
