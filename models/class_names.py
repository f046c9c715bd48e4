"""Class names of public data sets, and the statistics of their images (facts published with the data)."""

from __future__ import annotations

from deploykit.coco_classes import COCO_CLASSES
from deploykit.models.imagenet_classes import IMAGENET_CLASSES

__all__ = ["CIFAR10_CLASSES", "COCO_CLASSES", "IMAGENET_MEAN", "IMAGENET_STD", "VOC_CLASSES", "class_names"]

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
"""The 21 classes of PASCAL VOC's segmentation, in the order in which models count them."""

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
"""The 10 classes of CIFAR-10, in the order in which models count them."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Red, green and blue of ImageNet's images, of 0 to 1."""


def class_names(count: int, names: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The names that a checkpoint brought, if there are as many as classes; those of ImageNet for 1000; else numbers.

    Of networks that were published for ImageNet, and trained on something else by whoever brings names.
    """
    if names and len(names) == count:
        return names
    return IMAGENET_CLASSES if count == len(IMAGENET_CLASSES) else tuple(f"class {i}" for i in range(count))
