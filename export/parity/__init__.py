"""Parity: whether an artefact gives the numbers of the model it was made from."""
