"""Backends: a module for each way to run a network."""
