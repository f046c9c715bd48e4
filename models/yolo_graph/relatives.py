"""Models that look like ours and are not: each is refused by its own name, before its layers are looked at."""

from __future__ import annotations

import re

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint

MAX_KIND = 80  # characters of a class' name in a message
_PACKAGE = "a model of the ultralytics package, which is YOLOv8 and later, or YOLOv5 with another head"

CLASSES = {
    "SegmentationModel": "a YOLOv5 model that segments",
    "ClassificationModel": "a YOLOv5 model that classifies",
    "Darknet": "a model of a Darknet description (YOLOv3, YOLOv4, YOLOR)",
}
"""What the class of a pickled model of ``models.`` says."""

NAMES: tuple[tuple[str, str], ...] = (
    (r"module_list\.[0-9]+\.(Conv2d|BatchNorm2d|conv|batch_norm)", CLASSES["Darknet"]),
    (r"down1\.conv1\.conv\.0\.weight", "a YOLOv4 of the pytorch-YOLOv4 project"),
    (r"model\.[0-9]+\.one2one_cv[23]\.", "a YOLOv10, or a later model without NMS"),
    (r"model\.[0-9]+\.cv[67]\.[0-9]\.", "a YOLOv9 in training, with its auxiliary branch"),
    (r"model\.[0-9]+\.proto\.", "a YOLO model that segments"),
    (r"model\.[0-9]+\.dfl\.conv\.weight", "a YOLO model with the head of YOLOv8 and later (YOLOv9 has it too)"),
)
"""What the names of the tensors say, where they are all that there is: the first that fits."""


def refuse_relatives(checkpoint: Checkpoint) -> None:
    """Raise an error that names the model, if it is one of these.

    Raises:
        CheckpointError: it is.
    """
    kind = checkpoint.modules[0].kind if checkpoint.modules else ""
    what = CLASSES.get(kind.rpartition(".")[2], "") if kind.startswith("models.") else ""
    if kind.startswith("ultralytics."):
        what = _PACKAGE
    if not what and not checkpoint.yaml:
        patterns = ((re.compile(pattern), said) for pattern, said in NAMES)
        what = next((said for p, said in patterns if any(p.match(key) for key in checkpoint.state_dict)), "")
    if what:
        named = f" ({kind[:MAX_KIND]})" if kind else ""
        raise CheckpointError(
            f"{checkpoint.path} is {what}{named}; deploykit does not have it; deploykit models lists what can be loaded"
        )
