"""Parity of raw outputs: tolerances, reference values and differences."""
