"""The adapters of the kinds of output that deploykit knows, found by :data:`deploykit.runtime.outputs.ADAPTERS`."""
