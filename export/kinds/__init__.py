"""The adapters of the kinds of output that deploykit exports, found by :data:`deploykit.export.outputs.ADAPTERS`."""
