"""Small networks with seeded weights that find something: objects with masks of prototypes, and with keypoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.ultralytics.heads.detect import FreeDetect
from deploykit.models.families.ultralytics.heads.pose import FreePose
from deploykit.models.families.ultralytics.heads.segment import Segment
from deploykit.models.layers.conv import Conv, fill_biases
from deploykit.models.registry import ReferenceModel
from deploykit.spec import Fit, InputSpec, KeypointSpec, ModelSpec, RawDetections

CLASSES, MASKS = ("cat", "dog", "fox"), 4
KEYPOINTS = ("left eye", "right eye", "nose", "left mouth", "right mouth")
CHANNELS = (16, 24)
SIDE = 64
CANVAS = InputSpec(size=(SIDE, SIDE), fit=Fit(stride=16))
FIRST = 4 + len(CLASSES)
"""The column of the first coefficient."""


class SmallNetwork(nn.Module):
    """Images ``(B, 3, H, W)`` to what a head gives for two levels of features."""

    def __init__(self, head: FreeDetect) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 8, 3, 2), Conv(8, 16, 3, 2))
        self.fine = Conv(CHANNELS[0], CHANNELS[0], 3, 2)
        self.coarse = Conv(*CHANNELS, 3, 2)
        self.head = head
        self.head.set_stride((8, 16))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        fine = self.fine(self.stem(images))
        return cast("Tensor | tuple[Tensor, Tensor]", self.head(fine, self.coarse(fine)))


@torch.no_grad()
def _seeded(make: Callable[[], FreeDetect], seed: int) -> SmallNetwork:
    torch.manual_seed(seed)
    network = SmallNetwork(make())
    randomise(network)
    fill_biases([network.get_submodule(f"head.cv3.{level}.2") for level in range(2)], 0.5)
    return network.eval()


@torch.no_grad()
def masked_model(*, seed: int = 0, maps: int = MASKS) -> ReferenceModel:
    """Rows ``(B, N, 4 + classes + maps)`` and prototypes ``(B, maps, H / 4, W / 4)``.

    Masks differ from object to object; few are empty or whole.
    """
    network = _seeded(lambda: Segment(len(CLASSES), CHANNELS, num_masks=maps, proto_width=8), seed)
    for level in range(2):
        network.get_parameter(f"head.cv4.{level}.2.weight").mul_(6)
        network.get_parameter(f"head.cv4.{level}.2.bias").zero_()
    network.get_buffer("head.proto.cv3.bn.running_mean").zero_()
    network.get_parameter("head.proto.cv3.bn.weight").mul_(20)
    network.get_parameter("head.proto.cv3.bn.bias").zero_()
    output = RawDetections(obj=None, cls=(4, FIRST), coefficients=(FIRST, FIRST + maps), prototypes="prototypes")
    return ReferenceModel("masked", "tests", network, ModelSpec("instances", CANVAS, output, CLASSES))


def posed_model(*, seed: int = 0) -> ReferenceModel:
    """Rows of one class with keypoints of x and y alone."""
    network = _seeded(lambda: FreePose(1, CHANNELS, kpt_shape=(len(KEYPOINTS), 2)), seed)
    output = RawDetections(obj=None, cls=(4, 5), keypoints=(5, 5 + 2 * len(KEYPOINTS)), kpt_dims=2)
    spec = ModelSpec("keypoints", CANVAS, output, ("face",), KeypointSpec(KEYPOINTS))
    return ReferenceModel("posed", "tests", network, spec)
