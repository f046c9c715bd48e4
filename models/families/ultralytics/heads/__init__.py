"""Heads of the ultralytics families: boxes, keypoints, masks, oriented boxes, classes.

Facts from the published model descriptions (the original is AGPL-3.0); the code is ours.
"""
