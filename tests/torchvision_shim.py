"""Lets torchvision's Python code import beside a torch whose build its binary does not fit. For tests and benchmarks.

torchvision registers fake kernels of its operators when it is imported, and that fails where its own binary did not
load. Declaring the operators first is enough to build models; they compute nothing here.
"""

from __future__ import annotations

from typing import Any

import torch

_KEPT: list[torch.library.Library] = []  # the declarations end with the object


def install() -> None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms``, unless something has."""
    if _KEPT or hasattr(torch.ops.torchvision, "nms"):
        return
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # kept for as long as the process
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)
