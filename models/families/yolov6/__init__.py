"""YOLOv6: all generations."""
