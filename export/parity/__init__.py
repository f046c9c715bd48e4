"""Parity: verification that an artefact gives the numbers of its source model."""
