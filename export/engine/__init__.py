"""TensorRT engines: built, and their record."""
