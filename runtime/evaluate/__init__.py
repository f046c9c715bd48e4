"""Evaluation of models on annotated images."""
