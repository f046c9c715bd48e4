"""Networks from the layer lists of the YOLO families."""
