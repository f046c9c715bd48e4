"""Adapters of the built-in kinds of output, found by :data:`deploykit.runtime.outputs.ADAPTERS`."""
