"""Run an exported model on images: no torch, no onnx."""

if __name__ != "deploykit.runtime":
    raise ImportError("import deploykit.runtime, not runtime: the top-level folder is source, not a package")
