"""TensorRT engines: built from ONNX files, verified, and described by a record."""
