"""From output tensors to objects: decode, NMS, masks, fusion of poses."""
