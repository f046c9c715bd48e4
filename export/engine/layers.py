"""The actual precision of an engine's layers, as TensorRT's engine inspector reports it on a GPU.

The inspector gives JSON with a format for each layer's tensors, such as ``Row major linear FP32`` or ``Channel major
FP16 format where C % 8 == 0``, if the engine was built with detailed verbosity (NVIDIA's developer guide, "Engine
Inspector"). Layers that TensorRT fuses into one kernel are not listed as convolutions. Without listed ones the record
keeps the precision of the parsed network.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

__all__ = ["precisions_in"]

COMPUTE = re.compile(r"conv|gemm|matrixmultiply|matmul|fullyconnected", re.IGNORECASE)
KINDS = (
    ("int8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("fp8", re.compile(r"\bfp8", re.IGNORECASE)),
    ("bf16", re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(fp16|half)\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(fp32|float)\b", re.IGNORECASE)),
)


def precisions_in(information: str) -> dict[str, int]:
    """Count the convolutions and matrix products by the type of their inputs; empty if the inspector lists none.

    Args:
        information: the inspector's JSON of a whole engine.
    """
    try:
        layers = json.loads(information)["Layers"]  # TensorRT's own text, which may repeat a name
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    found: Counter[str] = Counter()
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, dict) and _computes(layer):
            kind = _kind(layer)
            if kind:
                found[kind] += 1
    return dict(found.most_common())


def _computes(layer: dict[str, Any]) -> bool:
    return any(COMPUTE.search(str(layer.get(key, ""))) for key in ("LayerType", "ParameterType"))


def _kind(layer: dict[str, Any]) -> str:
    inputs = layer.get("Inputs")
    first = inputs[0] if isinstance(inputs, list) and inputs else None
    text = str(first.get("Format/Datatype", "")) if isinstance(first, dict) else ""
    return next((kind for kind, pattern in KINDS if pattern.search(text)), "")
