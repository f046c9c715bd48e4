"""The ONNX graph: traced, simplified, finished."""
