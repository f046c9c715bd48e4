"""The forms of other projects' detectors: from the shapes of a network's outputs to a kind of output.

Each form takes what is known and returns a :class:`Form`, or None if the network is not of that form. A number that no
shape and no metadata tells is looked for in one run on noise (:class:`deploykit.runtime.foreign.probe.Probe`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.foreign.metadata import ExportFacts
from deploykit.runtime.foreign.probe import Probe
from deploykit.runtime.session import TensorInfo

__all__ = ["Form", "Known", "find_form"]

LEVELS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
"""The strides of heads that are known: three levels, four (P6), and four from P2."""

FOUR = (
    ("num_dets", "det_boxes", "det_scores", "det_classes"),
    ("num_dets", "boxes", "scores", "labels"),
    ("num_detections", "detection_boxes", "detection_scores", "detection_classes"),
)
"""Names of the four outputs of networks with NMS inside: count, boxes, scores, labels."""


@dataclass(frozen=True)
class Known:
    """What is known of a network: its outputs as declared, the metadata, its input size and a run on noise."""

    declared: tuple[TensorInfo, ...]
    facts: ExportFacts
    size: tuple[int, int]
    probe: Probe

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs, in their order."""
        return tuple(info.name for info in self.declared)

    def first(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.probe.shape(self.outputs[0])

    @property
    def prototypes(self) -> int:
        """How many maps the second of two outputs has, if it is one of prototypes of masks; else 0."""
        shape = self.probe.shape(self.outputs[1]) if len(self.outputs) == 2 else ()
        return shape[1] if len(shape) == 4 and self.facts.task in ("", "segment") else 0

    @property
    def angles(self) -> int:
        """How many columns of angles there are: the last one, of oriented boxes."""
        return 1 if self.facts.task == "obb" else 0

    @property
    def keypoint_shape(self) -> tuple[int, int] | None:
        """K and the values of each keypoint of a network of poses; None: it has none."""
        return self.facts.keypoint_shape if self.facts.task in ("", "pose") else None

    @property
    def keypoint_columns(self) -> int:
        """How many columns of a row are of keypoints."""
        shape = self.keypoint_shape
        return shape[0] * shape[1] if shape else 0

    def keypoints(self, start: int) -> dict[str, Any]:
        """The fields of an output whose keypoints begin at column ``start``; none without them."""
        shape = self.keypoint_shape
        return {"keypoints": [start, start + self.keypoint_columns], "kpt_dims": shape[1]} if shape else {}

    def masks(self, stop: int) -> dict[str, Any]:
        """The fields of an output whose last columns, up to ``stop``, are coefficients of masks; none without them."""
        count = self.prototypes
        return {"coefficients": [stop - count, stop], "prototypes": self.outputs[1]} if count else {}

    def rows(self) -> Array:
        """The rows of the first output for noise, ``(N, columns)``, of the first image."""
        found: Array = self.probe.outputs[self.outputs[0]][0]
        return found

    def levels(self, rows: int, per_cell: int) -> tuple[int, ...] | None:
        """The strides whose grids have that many rows."""
        return next((s for s in LEVELS if per_cell * _cells(self.size, s) == rows), None)


@dataclass(frozen=True)
class Form:
    """A kind of output as JSON has it, and what goes with it.

    ``input``: what differs from RGB, 0..1, letterboxed. ``classes`` is how many there are (None: unknown).
    ``assumed`` and ``unknown`` are sentences; ``unknown`` by the field of the spec that has to be filled in.
    """

    output: dict[str, Any]
    classes: int | None
    keypoints: tuple[int, int] | None = None
    input: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    unknown: dict[str, str] = field(default_factory=dict)


def find_form(known: Known) -> Form | None:
    """Return the form of a detector's outputs, or None if it is none of those that are known."""
    if not known.outputs:
        return None
    return next(
        (form for find in (_four, _listed, _maps, _columns_first, _chosen, _rows) if (form := find(known))), None
    )


def _four(known: Known) -> Form | None:
    """Count, boxes, scores and labels, as TensorRT's EfficientNMS names them."""
    names = next((names for names in FOUR if set(names) <= set(known.outputs)), None)
    if names is None:
        return None
    dets, boxes, scores, labels = names
    output = {"kind": "nms", "num_dets": dets, "boxes": boxes, "scores": scores, "labels": labels}
    shape = known.probe.shape(boxes)
    if len(shape) != 3:
        return None
    assumed = ("boxes are two corners in network pixels, as TensorRT's EfficientNMS gives them",)
    return Form({**output, "num_candidates": None}, None, thresholds={"max_det": shape[1]}, assumed=assumed)


def _listed(known: Known) -> Form | None:
    """Rows of the whole batch: the number of the image, box, class and score (YOLOv7's end-to-end export)."""
    shape = known.first()
    if len(known.outputs) != 1 or len(shape) != 2 or shape[1] != 7:
        return None
    output = {"kind": "end-to-end", "name": known.outputs[0], "image": 0, "box": [1, 5], "label": 5, "score": 6}
    return Form(output, None, assumed=("its seven columns are image, x1, y1, x2, y2, class, score, as YOLOv7's are",))


def _maps(known: Known) -> Form | None:
    """The maps of an anchor head, before the decode."""
    shapes = [known.probe.shape(name) for name in known.outputs]
    if len(shapes) not in (3, 4) or any(len(shape) not in (4, 5) for shape in shapes):
        return None
    sides = [shape[2:4] for shape in shapes]
    strides = [known.size[0] // side[0] for side in sides if side[0]]
    order = sorted(range(len(strides)), key=strides.__getitem__)
    if len(strides) != len(shapes) or [strides[i] for i in order] not in [list(levels) for levels in LEVELS]:
        return None
    anchors, columns = (shapes[0][1], shapes[0][4]) if len(shapes[0]) == 5 else (3, shapes[0][1] // 3)
    if columns < 6 or (len(shapes[0]) == 4 and shapes[0][1] % 3):
        return None
    output: dict[str, Any] = {
        "kind": "anchor-heads",
        "outputs": [known.outputs[i] for i in order],
        "strides": [strides[i] for i in order],
        "num_columns": columns,
    }
    values = np.concatenate([known.probe.outputs[name].reshape(-1) for name in known.outputs])
    if values.min() >= 0.0 and values.max() <= 1.0:
        output["sigmoid"] = True
    unknown = {}
    if known.facts.anchors and [len(level) for level in known.facts.anchors] == [2 * anchors] * len(order):
        output["anchors"] = [list(level) for level in known.facts.anchors]
    else:
        unknown["output.anchors"] = (
            f"width and height in pixels of the {anchors} anchors of each level, finest first: [[w, h, w, h, ...], "
            "...]; they are in the description of the model (its yaml), and no tensor of this file tells"
        )
    assumed = (*_decoding_of_maps(output), *_score_of_one(columns - 5))
    return Form(output, columns - 5, assumed=assumed, unknown=unknown)


def _decoding_of_maps(output: dict[str, Any]) -> tuple[str, ...]:
    done = "after the sigmoid" if output.get("sigmoid") else "before the sigmoid"
    return (f"its maps are those of a YOLOv5 or YOLOv7 head, {done}",)


def _columns_first(known: Known) -> Form | None:
    """``(B, 4 + classes + ..., N)`` without objectness: YOLOv8 and its successors."""
    shape = known.first()
    if len(shape) != 3 or known.facts.chosen or known.levels(shape[2], 1) is None:
        return None
    columns, further = shape[1], known.keypoint_columns + known.prototypes + known.angles
    classes = _count(known.facts, columns - 4 - further)
    output: dict[str, Any] = {"kind": "rows", "name": known.outputs[0], "columns_first": True, "obj": None}
    if known.angles:
        output["angle"] = [columns - 1, columns]
    return _with_columns(known, output, 4, columns, classes)


def _chosen(known: Known) -> Form | None:
    """``(B, M, 6 + ...)``: two corners, score, class, keypoints; of oriented boxes cx, cy, w, h first, angle last."""
    shape = known.first()
    few = len(shape) == 3 and shape[2] >= 6 and shape[1] <= 1000
    if not few or not (known.facts.chosen or (shape[2] == 6 and _is_chosen(known.probe.outputs[known.outputs[0]]))):
        return None
    if shape[2] != 6 + known.keypoint_columns + known.prototypes + known.angles:
        return None
    output: dict[str, Any] = {"kind": "end-to-end", "name": known.outputs[0]}
    output |= {**known.keypoints(6), **known.masks(shape[2])}
    if known.angles:
        output["angle"] = 6
    assumed = () if known.facts.origin else ("its six columns are x1, y1, x2, y2, score, class",)
    classes = len(known.facts.names) if known.facts.names else None
    limits = {"iou": 1.0, "max_det": shape[1]}
    return Form(output, classes, known.keypoint_shape, thresholds=limits, assumed=assumed)


def _is_chosen(rows: Array) -> bool:
    """Whether the last two columns look like a score and a class."""
    scores, labels = rows[..., 4], rows[..., 5]
    return bool(((scores >= 0) & (scores <= 1)).all() and (labels == np.rint(labels)).all() and (labels >= 0).all())


def _rows(known: Known) -> Form | None:
    """``(B, N, 5 + classes)`` with objectness: YOLOv5, YOLOv7 (three anchors per cell), YOLOX, YOLOv6 (one)."""
    shape = known.first()
    if len(shape) != 3 or shape[2] < 6:
        return None
    anchors, free = known.levels(shape[1], 3), known.levels(shape[1], 1)
    if anchors is None and free is None:
        return None
    columns = shape[2]
    classes = _count(known.facts, columns - 5 - known.keypoint_columns - known.prototypes)
    output: dict[str, Any] = {"kind": "rows", "name": known.outputs[0]}
    form = _with_columns(known, output, 5, columns, classes)
    if form is None or known.facts.origin:
        return form
    if anchors is not None:
        prepared = "images are prepared as YOLOv5's and YOLOv7's: RGB, divided by 255, letterboxed"
        assumed = (*form.assumed, *_score_of_one(form.classes), prepared)
        return Form(form.output, form.classes, form.keypoints, assumed=assumed, unknown=form.unknown)
    assert free is not None
    return _of_one_anchor(form, known.rows(), free)


def _score_of_one(classes: int | None) -> tuple[str, ...]:
    """What is assumed of the score of one class, of which no output tells."""
    if classes != 1:
        return ()
    return ("its score is objectness times class; YOLOv7's main branch takes the objectness alone (cls_counts: false)",)


YOLOX_INPUT = {"colour": "bgr", "scale": 1.0, "fit": {"anchor": "top-left", "rounding": "floor"}}


def _of_one_anchor(form: Form, rows: Array, strides: Sequence[int]) -> Form:
    """YOLOv6, whose objectness is 1, or YOLOX, whose boxes may be undecoded."""
    if (rows[:, 4] == 1).all():
        assumed = (*form.assumed, "it is a YOLOv6, because every objectness is 1: RGB, divided by 255, letterboxed")
        return Form(form.output, form.classes, assumed=assumed, unknown=form.unknown)
    if (rows[:, 2:4] <= 0).any():
        output = {**form.output, "decode": "yolox", "strides": list(strides)}
        told = (
            "it is a YOLOX without its decode, because widths are below 0: BGR, 0 to 255, letterboxed to the top left"
        )
        return Form(output, form.classes, input=YOLOX_INPUT, assumed=(*form.assumed, told), unknown=form.unknown)
    asked = "bgr and scale 1.0 for YOLOX since 0.1.1, rgb and scale 0.00392156862745098 for others"
    return Form(form.output, form.classes, assumed=form.assumed, unknown={**form.unknown, "input.colour": asked})


def _with_columns(known: Known, output: dict[str, Any], start: int, columns: int, classes: int | None) -> Form | None:
    """A form with the columns of classes and keypoints from ``start``; None: they do not add up."""
    further = known.keypoint_columns + known.prototypes + known.angles
    if classes is not None and classes >= 1 and start + classes + further == columns:
        output |= {"cls": [start, start + classes], **known.keypoints(start + classes), **known.masks(columns)}
        return Form(output, classes, known.keypoint_shape)
    if known.facts.names is not None:
        return None  # more columns than the metadata explains
    values = known.rows().T[:, start:] if output.get("columns_first") else known.rows()[:, start:]
    if (values < 0).any() or (values > 1).any():
        unknown = {
            "classes": f"the class names; not all columns from {start} on are probabilities: some are no classes",
            "output.cls": f"the columns of the classes, [{start}, {start} + their number]; add those of keypoints",
        }
        return Form(output, None, unknown=unknown)
    output["cls"] = [start, columns]
    counted = f"columns {start} to {columns - 1} are classes, because all are probabilities on noise"
    return Form(output, columns - start, assumed=(counted,))


def _count(facts: ExportFacts, otherwise: int) -> int | None:
    return len(facts.names) if facts.names is not None else (otherwise if facts.origin else None)


def _cells(size: tuple[int, int], strides: Sequence[int]) -> int:
    return sum((size[0] // s) * (size[1] // s) for s in strides)
