"""The blocks of the ultralytics-format families."""
