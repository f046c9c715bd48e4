"""Postprocessing of output tensors into objects: decoding, NMS, masks, pose fusion."""
