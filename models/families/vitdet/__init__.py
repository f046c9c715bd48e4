"""Detectors in two stages on vision transformers."""
