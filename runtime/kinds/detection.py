"""Adapters of detection outputs: candidate rows, pose objects, and detections after NMS."""

from __future__ import annotations

import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np

from deploykit.errors import SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.placing import CanvasImage
from deploykit.runtime.kinds.wanted import labels_of
from deploykit.runtime.options import PredictOptions, given_options
from deploykit.runtime.outputs import OutputAdapter
from deploykit.runtime.parity.differences import Difference, row_differences
from deploykit.runtime.parity.masked_rows import MaskedRows, best_masks, mask_difference
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.postprocess.checks import check_finite, check_labels, check_probabilities, check_rows
from deploykit.runtime.postprocess.decode import decoded
from deploykit.runtime.postprocess.detections import (
    NetworkDetections,
    decode_nms,
    decode_poses,
    decode_rows,
    to_source,
)
from deploykit.runtime.postprocess.masks import assembled, pasted
from deploykit.runtime.postprocess.nms import Choice
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.detection import Result
from deploykit.spec import ModelSpec, NmsOutputs, Output, PoseObjectRows, RawDetections, RowOutput, Span, Thresholds

__all__ = [
    "ChosenDetections", "DetectionAdapter", "NmsAdapter", "PoseAdapter", "RowAdapter", "RowValues", "prototypes_in",
]  # fmt: skip

LOG = logging.getLogger(__name__)

O = TypeVar("O", bound=Output)  # noqa: E741  (the field's letter for an output)
METER = "deploykit.runtime.evaluate.detection:DetectionMeter"


class DetectionAdapter(OutputAdapter[O]):
    """Objects of one image: boxes, and keypoints or masks if the network has them.

    ``refuses``: options of detectors that this kind does not take -> why, and what to do.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"conf", "iou", "max_det", "multi_label", "classes", "agnostic"})
    refuses: ClassVar[Mapping[str, str]] = {}
    result_type = Result
    stage = "letterbox"
    gives = "objects in source pixels"
    meters: ClassVar[Mapping[str, Any]] = dict.fromkeys(("detect", "instances", "keypoints", "oriented"), METER)

    def __init__(self, spec: ModelSpec, options: PredictOptions | None = None) -> None:
        """See :class:`OutputAdapter`."""
        super().__init__(spec, options)
        for name in given_options(self.options):
            if name in self.refuses:
                raise UsageError(f"{name}: {self.refuses[name]}")
        self.thresholds = self._thresholds()
        wanted = None if self.options.classes is None else labels_of(self.options.classes, spec)
        self.choice = Choice(self.options.multi_label, wanted, self.options.agnostic)

    @abstractmethod
    def objects(
        self, outputs: Mapping[str, Array], slot: int, size: tuple[int, int] | None = None
    ) -> NetworkDetections:
        """Return the objects of image ``slot`` in network pixels.

        ``size`` is (height, width) of the network's input; None: the spec's.

        Raises:
            SpecError, BackendError: an output does not match the spec.
        """

    def check_input(self) -> None:
        """See :meth:`OutputAdapter.check_input`: boxes come back from a canvas that shows the whole image."""
        kind = self.spec.input.fit.kind
        if kind not in ("letterbox", "resize"):
            raise SpecError(f"detection needs the fit letterbox or resize, but the spec's fit is {kind!r}")

    def decode(self, outputs: Mapping[str, Array], slot: int, shown: CanvasImage) -> Callable[..., ImageResult]:
        """See :meth:`OutputAdapter.decode`."""
        assert shown.letterbox is not None  # by letterbox or resize
        found = self.objects(outputs, slot, shown.letterbox.canvas)
        boxes, keypoints, rotated = to_source(found, shown.letterbox)
        masks: Array | None = None
        use: Array | slice = slice(None)
        if found.masks is not None:  # pasted over the boxes they were computed for, which may extend into the border
            masks = pasted(found.masks, shown.letterbox.to_source(found.boxes), shown.source)
        elif found.coefficients is not None and found.prototypes is not None:
            unclipped = shown.letterbox.to_source(found.boxes)
            masks, use = assembled(found.coefficients, found.prototypes, unclipped, shown.letterbox)
        return partial(
            Result,
            boxes[use],
            found.scores[use],
            found.labels[use],
            keypoints=None if keypoints is None else keypoints[use],
            masks=masks,
            rotated=None if rotated is None else rotated[use],
            classes=self.spec.classes,
            keypoint_spec=self.spec.keypoints,
            keypoint_threshold=self.thresholds.keypoint,
            truncated=found.candidates > self.thresholds.pre_nms_topk,
        )

    def offers(self) -> dict[str, dict[str, Any]]:
        """See :meth:`OutputAdapter.offers`: the best of the objects suppress the others, so a higher confidence leaves
        out the others alone."""
        found: dict[str, dict[str, Any]] = {name: {} for name in self.takes if name not in self.refuses}
        return {**found, "conf": {"filter": True}}

    @property
    def _is_only(self) -> bool:
        return False  # rows are found by their name

    @property
    def _points(self) -> int:
        return len(self.spec.keypoints.names) if self.spec.keypoints else 0

    def _thresholds(self) -> Thresholds:
        """Return the spec's thresholds, changed by the options."""
        asked: dict[str, Any] = {
            name: value for name in ("conf", "iou", "max_det") if (value := getattr(self.options, name)) is not None
        }
        try:
            return dataclasses.replace(self.spec.thresholds, **asked)
        except SpecError as e:
            raise UsageError(str(e)) from e


R = TypeVar("R", bound=RowOutput)


class RowValues(DetectionAdapter[R]):
    """Comparison of candidate rows by their columns, in pixels."""

    def compared(self) -> RawDetections:
        """See :meth:`OutputAdapter.compared`: rows in pixels, with the prototypes of their masks if there are any."""
        layout = self.output.as_rows()
        return dataclasses.replace(layout.pixel_layout(), prototypes=layout.prototypes)

    def check_values(self, outputs: Mapping[str, Array], images: int) -> None:
        """See :meth:`OutputAdapter.check_values`: NaN is an error anywhere, other values where they can be in a result.

        Infinity may be in a row, because half precision overflows in the sides of boxes; NMS leaves such a row out.
        """
        found, layout = self.tensor_in(outputs, "the network"), self.output.as_rows()
        if found.dtype.kind != "f" or len(found) < images:
            raise SpecError(
                f"the output {layout.name!r} must be float rows of {images} image{'s' * (images != 1)}, "
                f"the network gives {found.dtype} {found.shape}"
            )
        found = found.swapaxes(1, 2) if layout.columns_first else found
        if layout.prototypes is not None and layout.prototypes in outputs:
            check_finite(outputs[layout.prototypes][:images], layout.prototypes)
        infinite = check_rows(found[:images], layout.name)
        for rows in found[:images]:
            used = rows
            if layout.obj is not None:  # no score is over its objectness, so the other rows are not in a result
                objectness = np.ascontiguousarray(rows[:, layout.obj[0]], np.float32)
                check_probabilities(objectness, "objectness", layout.name)
                used = rows[objectness > np.float32(self.thresholds.conf)]
            check_probabilities(used[:, slice(*layout.cls)], "scores", layout.name)
            if layout.keypoints is not None and layout.kpt_dims == 3:
                start, stop = layout.keypoints
                check_probabilities(used[:, start + 2 : stop : 3], "keypoint visibilities", layout.name)
            if infinite and not np.isfinite(used[used[:, slice(*layout.cls)].max(1) > self.thresholds.conf]).all():
                LOG.warning("the network gives infinity in some rows of %r: NMS leaves these rows out", layout.name)

    def values(self, outputs: Mapping[str, Array], fed: tuple[int, ...], name: str) -> Array:
        """See :meth:`OutputAdapter.values`."""
        layout, canvas = self.output.as_rows(), (fed[2], fed[3])
        rows = decoded(self.tensor_in(outputs, name), layout, canvas)
        if layout.prototypes is None or layout.coefficients is None:
            return rows
        maps = prototypes_in(outputs, layout.prototypes, (len(rows), layout.coefficients), name)
        columns = layout.pixel_layout().columns
        return np.stack(
            [
                MaskedRows(each[:, :columns], each[:, slice(*layout.coefficients)], part, canvas).packed()
                for each, part in zip(rows, maps, strict=True)
            ]
        )

    def differences(
        self, names: tuple[str, str, str], expected: list[Array], found: list[Array], limits: Tolerance
    ) -> list[Difference]:
        """See :meth:`OutputAdapter.differences`."""
        layout = self.compared()
        if layout.prototypes is None:
            return row_differences(names, expected, found, layout, limits)
        a, b = ([MaskedRows.unpacked(each, layout) for each in side] for side in (expected, found))
        rows = row_differences(names, [x.rows for x in a], [x.rows for x in b], layout, limits)
        best = [best_masks(x.rows, layout) for x in a]
        masks = [[(x.coefficients[i], x.prototypes) for x, i in zip(side, best, strict=True)] for side in (a, b)]
        return [*rows, mask_difference(names, masks[0], masks[1], limits)]


def prototypes_in(outputs: Mapping[str, Array], output: str, sides: tuple[int, Span], name: str) -> Array:
    """Return the prototypes of a run: of so many images, one for each of the columns of coefficients.

    Raises:
        SpecError: there are none, or others.
    """
    maps, images, count = outputs.get(output), sides[0], sides[1][1] - sides[1][0]
    if maps is None or maps.ndim != 4 or maps.shape[:2] != (images, count):
        found = "nothing" if maps is None else str(maps.shape)
        raise SpecError(f"the output {output!r} must be ({images}, {count}, height, width), {name} gives {found}")
    return maps


class RowAdapter(RowValues[RawDetections]):
    """Candidate rows of classes."""

    def objects(
        self, outputs: Mapping[str, Array], slot: int, size: tuple[int, int] | None = None
    ) -> NetworkDetections:
        """See :meth:`DetectionAdapter.objects`."""
        place = size or self.spec.input.size
        return decode_rows(outputs, slot, self.output, self._points, self.thresholds, place, self.choice)


class PoseAdapter(RowValues[PoseObjectRows]):
    """Candidate rows of persons and of keypoints as objects."""

    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("classes", "agnostic"), "the objects of this network are persons alone; leave it out"
    )

    def offers(self) -> dict[str, dict[str, Any]]:
        """See :meth:`OutputAdapter.offers`: a person that is left out takes part in the fusion no more."""
        return {**super().offers(), "conf": {}}

    def objects(
        self, outputs: Mapping[str, Array], slot: int, size: tuple[int, int] | None = None
    ) -> NetworkDetections:
        """See :meth:`DetectionAdapter.objects`."""
        return decode_poses(outputs, slot, self.output, self.thresholds)


class ChosenDetections(DetectionAdapter[O]):
    """Detections that the network has chosen; thresholds can only be stricter than its own."""

    refuses: ClassVar[Mapping[str, str]] = {
        "agnostic": "this network chooses its objects itself, within each class; export it with --nms none"
    }

    def offers(self) -> dict[str, dict[str, Any]]:
        """See :meth:`OutputAdapter.offers`: no IoU, and no threshold below the network's own."""
        found, own = super().offers(), self.spec.thresholds
        del found["iou"]
        if self.output.thresholds_inside:
            found["conf"]["minimum"], found["max_det"]["maximum"] = own.conf, own.max_det
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """See :meth:`OutputAdapter.notes`."""
        if self.choice.classes is None:
            return ()
        return (
            f"this network chooses at most {self.spec.thresholds.max_det} objects of all classes itself, and those of "
            "other classes are left out afterwards: an export with --nms none chooses among the wanted ones alone",
        )

    def _thresholds(self) -> Thresholds:
        own, changed = self.spec.thresholds, super()._thresholds()
        for name, possible in (("conf", changed.conf >= own.conf), ("max_det", changed.max_det <= own.max_det)):
            if self.output.thresholds_inside and not possible:
                fixed, wanted = getattr(own, name), getattr(changed, name)
                raise UsageError(
                    f"NMS is inside this network with {name} {fixed}, so {wanted} has no effect: export it again"
                )
        if changed.iou != own.iou:
            if not self.output.thresholds_inside:
                raise UsageError(f"this network chooses its detections itself: leave out the IoU of NMS, {changed.iou}")
            raise UsageError(f"NMS is inside this network with iou {own.iou}, got {changed.iou}: export it again")
        return changed


class NmsAdapter(ChosenDetections[NmsOutputs]):
    """Detections of a network with NMS inside, an output for each kind of value."""

    def objects(
        self, outputs: Mapping[str, Array], slot: int, size: tuple[int, int] | None = None
    ) -> NetworkDetections:
        """See :meth:`DetectionAdapter.objects`."""
        return decode_nms(outputs, slot, self.output, self._points, self.thresholds, self.choice.classes)

    def check_values(self, outputs: Mapping[str, Array], images: int) -> None:
        """See :meth:`OutputAdapter.check_values`: what is in the used slots; the others may hold anything."""
        names, classes = self.output, self.output.num_classes(self.spec)
        for slot in range(images):
            # Without a threshold: NaN is not over any, so it would be dropped without a word.
            found = decode_nms(outputs, slot, names, self._points, None)
            check_probabilities(found.scores, "scores", names.scores)
            if found.rotated is not None and names.angles is not None:
                check_finite(found.rotated[:, 4], names.angles)
            check_finite(found.boxes, names.boxes)
            check_labels(outputs[names.labels][slot, : len(found.scores)], classes, names.labels)
            if found.keypoints is not None and names.keypoints is not None:
                check_finite(found.keypoints, names.keypoints)
                check_probabilities(found.keypoints[..., 2], "keypoint visibilities", names.keypoints)
            if found.masks is not None and names.masks is not None:
                check_probabilities(found.masks, "masks", names.masks)
            if found.coefficients is not None and found.prototypes is not None:
                check_finite(found.coefficients, str(names.coefficients))
                check_finite(found.prototypes, str(names.prototypes))
