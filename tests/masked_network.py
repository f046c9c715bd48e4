"""A small network whose objects have masks of prototypes, with seeded weights that find something."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.ultralytics.heads.segment import Segment
from deploykit.models.layers.conv import Conv, fill_biases
from deploykit.models.registry import ReferenceModel
from deploykit.spec import Fit, InputSpec, ModelSpec, RawDetections

CLASSES, MASKS = ("cat", "dog", "fox"), 4
SIDE = 64
FIRST = 4 + len(CLASSES)
"""The column of the first coefficient."""


class MaskedNetwork(nn.Module):
    """Images ``(B, 3, H, W)`` to rows ``(B, N, 4 + classes + masks)`` and prototypes ``(B, masks, H / 4, W / 4)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 8, 3, 2), Conv(8, 16, 3, 2))
        self.fine = Conv(16, 16, 3, 2)
        self.coarse = Conv(16, 24, 3, 2)
        self.head = Segment(len(CLASSES), (16, 24), num_masks=MASKS, proto_width=8)
        self.head.set_stride((8, 16))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(self.stem(images))
        rows, prototypes = self.head(fine, self.coarse(fine))
        return rows, prototypes


def masked_model(*, seed: int = 0) -> ReferenceModel:
    """The network as a model; it finds some objects in noise and in photographs."""
    torch.manual_seed(seed)
    network = MaskedNetwork()
    randomise(network)
    with torch.no_grad():
        fill_biases([level[-1] for level in network.head.cv3], 0.5)
        for level in network.head.cv4:  # masks differ from object to object, and are neither empty nor whole
            level[-1].weight.mul_(6)
            level[-1].bias.zero_()
        last = network.head.proto.cv3.bn
        last.running_mean.zero_()
        last.weight.mul_(20)
        last.bias.zero_()
    output = RawDetections(obj=None, cls=(4, FIRST), coefficients=(FIRST, FIRST + MASKS), prototypes="prototypes")
    canvas = InputSpec(size=(SIDE, SIDE), fit=Fit(stride=16))
    return ReferenceModel("masked", "tests", network.eval(), ModelSpec("instances", canvas, output, CLASSES))
