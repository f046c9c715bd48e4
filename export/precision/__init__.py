"""Lower precision as passes over a graph."""
