"""Results of predictions, and how to draw them."""
