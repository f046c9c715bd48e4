"""Category numbers of COCO results: those of COCO itself, or of a model's own classes."""

from __future__ import annotations

from collections.abc import Sequence

from deploykit.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES

__all__ = ["coco_category_ids"]

OTHER_NAMES = {
    "aeroplane": "airplane", "diningtable": "dining table", "hair dryer": "hair drier", "motorbike": "motorcycle",
    "pottedplant": "potted plant", "sofa": "couch", "television": "tv", "tvmonitor": "tv",
}  # fmt: skip
"""What other projects' lists call some of COCO's classes (PASCAL VOC's words, as in Darknet's coco.names)."""

IDS = dict(zip(COCO_CLASSES, COCO_CATEGORY_IDS, strict=True))


def coco_category_ids(classes: Sequence[str]) -> tuple[int, ...] | None:
    """Return COCO's category number of each class, 1 to 90, if the classes are COCO's 80; else None.

    Case, ``_`` and ``-`` are ignored, and the words of PASCAL VOC are known. The order does not matter.
    """
    names = [" ".join(name.replace("_", " ").replace("-", " ").split()).casefold() for name in classes]
    ids = [IDS.get(OTHER_NAMES.get(name, name)) for name in names]
    found = tuple(i for i in ids if i is not None)
    return found if sorted(found) == sorted(COCO_CATEGORY_IDS) and len(ids) == len(found) else None
