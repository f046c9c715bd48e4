"""Networks of the ultralytics package that deploykit does not build: they are refused by what they are.

Facts from the published model descriptions (AGPL-3.0); the code is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.families.ultralytics.description import ADVICE
from deploykit.models.signatures import layers_of

__all__ = ["refuse_relatives"]

WORLD, YOLOE, RTDETR = "YOLO-World, whose classes are texts", "YOLOE, whose classes are texts or images", "RT-DETR"
SEMANTIC, DEPTH = "a network that gives every pixel a class", "a network that estimates depth"
GHOST = "a network of ghost convolutions"

MODELS = {
    "WorldModel": WORLD, "YOLOEModel": YOLOE, "YOLOESegModel": YOLOE, "RTDETRDetectionModel": RTDETR,
    "SemanticModel": SEMANTIC, "SemanticSegmentationModel": SEMANTIC, "DepthModel": DEPTH,
    "DistillationModel": "a network together with its teacher",
}  # fmt: skip
"""Class of a pickled network -> what it is."""

LAYERS = {
    "WorldDetect": WORLD, "YOLOEDetect": YOLOE, "YOLOESegment": YOLOE, "YOLOESegment26": YOLOE,
    "RTDETRDecoder": RTDETR, "SemanticSegment": SEMANTIC, "Depth": DEPTH,
    "GhostConv": GHOST, "C3Ghost": GHOST, "GhostBottleneck": GHOST,
}  # fmt: skip
"""Layer of a description -> what a network with it is."""

QUANTIZED = (
    "is in the middle of training for int8 (its entry 'modelopt'): its layers are not those that its description "
    "names; finish the training and save the model without it"
)


def refuse_relatives(checkpoint: Checkpoint, kind: str, yaml: Mapping[str, Any]) -> None:
    """Refuse a network of the package that is not built; ``kind``: the dotted class of the pickled one, or empty.

    Raises:
        CheckpointError: it is one.
    """
    if checkpoint.metadata.get("modelopt") is not None:
        raise CheckpointError(f"{checkpoint.path} {QUANTIZED}")
    what, sign = MODELS.get(kind.rpartition(".")[2]), f"the class {kind}"
    for layer in sorted(layers_of(yaml) & LAYERS.keys()):
        what, sign = what or LAYERS[layer], f"the layer {layer}" if what is None else sign
    if what:
        raise CheckpointError(f"{checkpoint.path} is {what} ({sign}), which deploykit does not build: {ADVICE}")
