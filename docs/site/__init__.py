"""Builds the documentation site: ``python -m docs.site``."""
