"""Sessions that compute in torch: a module, and an ONNX graph."""
