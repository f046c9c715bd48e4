"""Reference models in PyTorch, and the safe reader of their checkpoints."""

if __name__ != "deploykit.models":
    raise ImportError("import deploykit.models, not models: the top-level folder is source, not a package")
