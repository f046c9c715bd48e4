"""Predictors: images in, results out."""
