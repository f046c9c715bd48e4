"""Parity of raw outputs: tolerance, what is expected, and differences."""
