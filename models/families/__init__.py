"""The families of models, a file or a folder each."""
