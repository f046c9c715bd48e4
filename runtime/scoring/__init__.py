"""Metrics: what no library computes from given overlaps."""
