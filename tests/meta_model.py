"""Registered models that have shapes and a spec, but take no memory and cannot run."""

from __future__ import annotations

from functools import cache

import torch

from deploykit.models.registry import ReferenceModel, create_model

__all__ = ["meta_model"]


@cache
def meta_model(name: str, num_classes: int | None = None) -> ReferenceModel:
    with torch.device("meta"):
        return create_model(name, num_classes=num_classes)
