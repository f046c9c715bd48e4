"""From a reference model to an artefact that is verified equal to it."""

if __name__ != "deploykit.export":
    raise ImportError("import deploykit.export, not export: the top-level folder is source, not a package")
