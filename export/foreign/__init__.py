"""ONNX files of other projects, converted to a lower precision and verified against themselves."""
