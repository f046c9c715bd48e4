"""The IR version of a file, and the oldest ONNX Runtime that loads it."""

from __future__ import annotations

import onnx
import onnx_ir as ir

__all__ = ["OLDEST_SUPPORTED", "lowest_ir_version", "oldest_runtime"]

OLDEST_SUPPORTED = (1, 20)
"""The oldest ONNX Runtime that deploykit itself runs with, as pyproject.toml says."""

_RUNTIMES = ((19, 9, (1, 15)), (20, 9, (1, 17)), (21, 10, (1, 18)), (22, 10, (1, 21)), (23, 11, (1, 23)))
"""The newest opset and IR version that a release of ONNX Runtime loads, and the release; tried with each of them."""


def lowest_ir_version(model: ir.Model) -> int:
    """The lowest IR version that a file with the model's opset may have.

    Types ask for nothing more: those that came with a newer IR version came with a newer opset, too.
    """
    opset = onnx.helper.make_opsetid("", model.opset_imports[""])
    return int(onnx.helper.find_min_ir_version_for([opset]))


def oldest_runtime(opset: int, ir_version: int) -> tuple[int, int]:
    """The oldest release of ONNX Runtime, from 1.15 on, that loads a file of this opset (up to 23) and IR version."""
    return next(release for most, newest, release in _RUNTIMES if opset <= most and ir_version <= newest)
