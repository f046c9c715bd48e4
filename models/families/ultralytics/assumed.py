"""What a network of the ultralytics package computes with and neither its tensors nor its description tell."""

from __future__ import annotations

from torch import nn

from deploykit.models.families.ultralytics.blocks.c2f import SPPF
from deploykit.models.families.ultralytics.heads.oriented import Oriented
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.registry import ReferenceModel
from deploykit.models.yolo_graph.from_checkpoint import untold

__all__ = ["untold_of"]

POOLING = (
    "SPPF's first convolution has an activation, as all releases of the package build it but 8.4.0 to 8.4.140: no "
    "tensor tells; the package's own .pt file does"
)


def untold_of(model: ReferenceModel, *, described: bool) -> tuple[str, ...]:
    """What is assumed of a network whose file has no pickled modules, a sentence each.

    Args:
        model: the network.
        described: its file has the description of its layers.
    """
    whose = model.name if model.name.replace("-", "_") in variants() else model.family
    said = [untold(model.module, whose)]
    if any(isinstance(m, SPPF) and type(m.cv1.act) is not nn.Identity for m in model.module.modules()):
        said.append(POOLING)
    if not described and any(isinstance(m, Oriented) for m in model.module.modules()):
        said.append(f"its angles are computed as {model.family} does it: no tensor tells")
    return tuple(said)
