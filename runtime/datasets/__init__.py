"""Annotated data sets on disk: COCO's JSON, YOLO's data.yaml and label files."""
