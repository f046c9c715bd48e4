"""YOLOX, its ti_lite forms and YOLOX-Pose."""
