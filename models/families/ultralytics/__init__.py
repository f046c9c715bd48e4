"""The ultralytics-format families: YOLOv3u, YOLOv5u, YOLOv8 to YOLOv10, YOLO11, YOLO12, YOLO26."""
