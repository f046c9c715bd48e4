"""The error of a network's outputs, of numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from deploykit.export.outputs import export_adapter_of
from deploykit.runtime.arrays import Array
from deploykit.spec import ModelSpec

__all__ = ["output_error"]


def output_error(spec: ModelSpec, *outputs: Mapping[str, Array]) -> float:
    """Return the error of the second outputs, where the first ones are exact."""
    exact, found = ({name: torch.from_numpy(value.copy()) for name, value in each.items()} for each in outputs)
    return float(export_adapter_of(spec).error(exact, found))
