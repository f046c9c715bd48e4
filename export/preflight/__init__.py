"""Preflight: which runtimes take an ONNX file, before anything is deployed."""
