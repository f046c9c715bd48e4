"""Detections after NMS, which the network does itself."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from deploykit.errors import SpecError
from deploykit.spec.checks import check_name
from deploykit.spec.json_values import LATER
from deploykit.spec.output import Output, OutputTensor, SpecLike
from deploykit.spec.row_parts import check_angle, prototype_tensors

__all__ = ["NmsOutputs"]


@dataclass(frozen=True)
class NmsOutputs(Output):
    """Fixed-shape outputs after NMS, in network pixels (M = the thresholds' ``max_det``).

    ``num_dets (B,1) int32, boxes (B,M,4) xyxy, scores (B,M), labels (B,M) int32, keypoints (B,M,K,3),
    masks (B,M,S,S)`` (0..1, each over its box), ``angles (B,M)`` of oriented boxes, in radians as in
    :class:`deploykit.spec.RawDetections` (``boxes`` are then cx, cy, w, h), ``num_candidates (B,1) int32`` (None: an
    export by others, which does not count them); empty slots are zero. Or, in place of masks, ``coefficients (B,M,P)``
    and ``prototypes (B,P,h,w)``, which are those of :class:`deploykit.spec.RawDetections`.
    """

    tasks: ClassVar[tuple[str, ...]] = ("detect", "keypoints", "instances", "oriented")
    finds_objects: ClassVar[bool] = True
    nms_inside: ClassVar[bool] = True

    kind: Literal["nms"] = "nms"
    num_dets: str = "num_dets"
    boxes: str = "boxes"
    scores: str = "scores"
    labels: str = "labels"
    keypoints: str | None = None
    num_candidates: str | None = "num_candidates"
    masks: str | None = field(default=None, metadata=LATER)
    coefficients: str | None = field(default=None, metadata=LATER)
    prototypes: str | None = field(default=None, metadata=LATER)
    angles: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        for f in fields(self):
            if (name := getattr(self, f.name)) is not None:
                check_name(f"the name of the output {f.name}", name)

    @property
    def thresholds_inside(self) -> bool:
        """See :attr:`Output.thresholds_inside`: those of exports by others are unknown."""
        return self.num_candidates is not None

    @property
    def two_stages(self) -> bool:
        """See :attr:`Output.two_stages`: masks are of boxes that were chosen before."""
        return self.masks is not None

    @property
    def oriented(self) -> bool:
        """See :attr:`Output.oriented`."""
        return self.angles is not None

    def check(self, spec: SpecLike) -> None:
        """See :meth:`Output.check`: names and outputs of keypoints go together, instances have masks and oriented boxes
        angles."""
        if (spec.keypoints is None) != (self.keypoints is None):
            raise SpecError("a spec has keypoint names and a keypoint output, or neither")
        if (self.coefficients is None) != (self.prototypes is None):
            raise SpecError("a spec has an output of coefficients and one of prototypes, or neither")
        if (spec.task == "instances") != ((self.masks is not None) ^ (self.prototypes is not None)):
            raise SpecError(
                "a spec of the task instances has an output of masks, or coefficients and prototypes of them; no other "
                "has"
            )
        check_angle(self.angles, spec)

    def tensors(self, spec: SpecLike) -> tuple[OutputTensor, ...]:
        """See :meth:`Output.tensors`."""
        each, alone = ("batch", "detections"), ("batch", "one")
        points = [OutputTensor(self.keypoints, (*each, "keypoints", "values"))] if self.keypoints else []
        masks = [OutputTensor(self.masks, (*each, "mask_height", "mask_width"))] if self.masks else []
        if self.coefficients:
            masks.append(OutputTensor(self.coefficients, (*each, "coefficients")))
        return (
            OutputTensor(self.num_dets, alone, "int32", columns=1),
            OutputTensor(self.boxes, (*each, "values" if self.angles else "corners"), columns=4),
            OutputTensor(self.scores, each),
            OutputTensor(self.labels, each, "int32"),
            *points,
            *masks,
            *([OutputTensor(self.angles, each)] if self.angles else []),
            *([OutputTensor(self.num_candidates, alone, "int32", columns=1)] if self.num_candidates else []),
            *prototype_tensors(self.prototypes),
        )

    def describe(self, spec: SpecLike) -> str:
        """See :meth:`Output.describe`."""
        limits = spec.thresholds
        boxes = "cx cy w h and an angle in radians, " if self.angles else ""
        masks = f"; masks by the coefficients of the maps in {self.prototypes}" if self.prototypes else ""
        return (
            f"{boxes}after NMS, in network pixels: at most {limits.max_det} of an image, score over {limits.conf:g}, "
            f"overlap up to {limits.iou:g}, from the best {limits.pre_nms_topk} candidates{masks}"
        )

    def facts(self, spec: SpecLike) -> dict[str, Any]:
        """See :meth:`Output.facts`: its outputs say it."""
        return {}
