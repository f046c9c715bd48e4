"""A kind of output that deploykit does not know: how many things an image shows."""
