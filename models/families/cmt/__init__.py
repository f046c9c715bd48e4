"""CMT, and another network of that name."""
