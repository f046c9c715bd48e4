"""TensorRT engines on a GPU, both flavours."""
