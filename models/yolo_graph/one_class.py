"""What the score of a detector of one class is, which no tensor tells.

YOLOv7's main branch does not train the class of such a network, and takes the objectness alone for its score (facts of
WongKinYiu/yolov7, ``utils/loss.py`` and ``utils/general.py``; the code is ours). YOLOv5 multiplies the two, and so do
the projects that descend from it, YOLOv7's branches for keypoints among them. Which of them wrote a file shows in the
pickled model: YOLOv7's main branch leaves ``traced`` on it, and YOLOv5 since 5.0 and its descendants ``inplace``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.layers.anchor_head import Detect, IDetect, Keypoint
from deploykit.models.layers.pose_object import PoseObject
from deploykit.models.registry import ReferenceModel
from deploykit.spec import RawDetections

__all__ = ["with_score_of_one_class"]

OBJECTNESS = (
    "its score is the objectness alone: YOLOv7's main branch does not train the class of a network of one class"
)
PRODUCT = "its score is objectness times class, as in YOLOv5"


def with_score_of_one_class(
    model: ReferenceModel, head: Detect, checkpoint: Checkpoint | None, *, yolov7: bool, published: bool
) -> ReferenceModel:
    """Return the model with the score that its project takes, and a note where that is not the usual product.

    Args:
        model: as its family reads it: the score is the product.
        head: its head; of several classes, of keypoints and of pose objects nothing changes.
        checkpoint: where it is from; None: it was built by its name.
        yolov7: the family is YOLOv7, which tells where the file does not.
        published: the layers are those of a published variant of the family, which leaves no doubt.
    """
    if head.num_classes != 1 or isinstance(head, (Keypoint, PoseObject)):
        return model
    model = replace(model, choices=(*model.choices, "score"))
    asked = checkpoint.loading.score if checkpoint else None
    marks = _marks(checkpoint)
    marked = "traced" in marks or "inplace" in marks
    implicit = isinstance(head, IDetect)
    alone = asked == "obj" if asked else "traced" in marks if marked else yolov7 or implicit
    if alone:
        output = replace(cast(RawDetections, model.spec.output), cls_counts=False)
        model = replace(model, spec=replace(model.spec, output=output))
    if asked:
        return replace(model, notes=(*model.notes, f"its score is {asked} (--score)"))
    if marked or published or implicit:
        return replace(model, notes=(*model.notes, OBJECTNESS)) if alone else model
    said, project, other = (OBJECTNESS, "YOLOv5", "'obj*cls'") if alone else (PRODUCT, "YOLOv7's main branch", "obj")
    return model.assuming(f"{said}; nothing in the file tells it from {project}, for which there is --score {other}")


def _marks(checkpoint: Checkpoint | None) -> frozenset[str]:
    """Return the names of the attributes of the pickled model: of what has the description, a wrapper's copy too."""
    modules = checkpoint.modules if checkpoint else ()
    return frozenset(name for module in modules if "yaml" in module.attributes for name in module.attributes)
