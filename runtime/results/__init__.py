"""Results: what was found, and how it is drawn."""
