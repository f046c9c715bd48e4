"""Export adapters of detections: how the objects of two networks are matched, and whether NMS can follow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from deploykit.errors import UsageError
from deploykit.export.matching import Matching
from deploykit.export.nms.layouts import detections_layout, rows_in
from deploykit.export.outputs import ExportAdapter, Packaged, finite_or_infinite
from deploykit.export.parity.detections import RowMatcher, row_matcher
from deploykit.export.parity.nms import detections_as_rows
from deploykit.runtime.arrays import Array
from deploykit.runtime.kinds.detection import PoseAdapter
from deploykit.runtime.parity.masked_rows import MASKS
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.postprocess.detections import NetworkDetections
from deploykit.runtime.postprocess.pose_fusion import object_thresholds
from deploykit.runtime.session import Session
from deploykit.spec import AnchorHeads, ModelSpec, NmsOutputs, PoseObjectRows, RawDetections, RowOutput

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AnchorHeadExport", "NmsExport", "PoseExport", "RowExport", "keypoint_facts"]

MIN_SCORE = 0.05  # rows below this score belong to no detection
R = TypeVar("R", bound=RowOutput)


class _RowsExport(ExportAdapter[R]):
    """The base of the adapters of candidate rows."""

    meaning: ClassVar[str] = "columns"

    @abstractmethod
    def _matcher(self) -> RowMatcher:
        """Return the matcher of rows in pixels."""

    def match(
        self, names: tuple[str, str, str], expected: list[Array], found: list[Array], limits: Tolerance
    ) -> list[Matching]:
        """See :meth:`ExportAdapter.match`: matches detections, and the best rows if there are few detections."""
        return self._matcher().match(names, expected, found, limits)

    def error(self, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`ExportAdapter.error`.

        The error is the mean difference of scores plus the mean difference of box values and of keypoints, both
        relative to the box's longer side; of oriented boxes plus the mean sine of the turn between the two, which is
        0 for half a turn; of instances plus that of the logits of masks of prototypes, relative to their mean size. The
        means are over rows that score over 0.05 in either network, or over the best 100 rows if there are none; masks
        are those of the best 100 of them.
        """
        import torch

        layout = self.output.as_rows()
        a, b = (self._in_rows(side[layout.name]) for side in (expected, found))
        scores = [_best_scores(side, layout) for side in (a, b)]
        best = torch.maximum(*scores).detach()
        rows = (~(best <= MIN_SCORE)).nonzero()[:, 0]  # with those whose score is NaN
        if not len(rows):
            rows = torch.argsort(best, stable=True, descending=True)[:100]
        a, b = a[rows].double(), b[rows].double()
        box = slice(*layout.box)
        side = a[:, box][:, 2:].abs().amax(1, keepdim=True).clamp(min=1.0)
        error = (scores[0][rows] - scores[1][rows]).abs().mean() + ((a[:, box] - b[:, box]) / side).abs().mean()
        if layout.keypoints:
            points = torch.arange(*layout.keypoints)
            places = points[(points - layout.keypoints[0]) % layout.kpt_dims < 2]
            error = error + ((a[:, places] - b[:, places]) / side).abs().mean()
        if layout.angle:
            angle = layout.angle[0]
            error = error + (a[:, angle] - b[:, angle]).sin().abs().mean()
        if layout.prototypes is not None and layout.coefficients is not None:
            order = torch.argsort(best[rows], stable=True, descending=True)[:MASKS]
            span, maps = slice(*layout.coefficients), [side[layout.prototypes] for side in (expected, found)]
            image = rows[order] // (len(best) // len(maps[0]))
            logits = [_logits(side[order, span], image, part) for side, part in zip((a, b), maps, strict=True)]
            error = error + (logits[0] - logits[1]).abs().mean() / logits[0].abs().mean().clamp(min=1e-30)
        return finite_or_infinite(error)

    def _in_rows(self, values: Tensor) -> Tensor:
        """The rows of all images in one output, ``(rows, columns)``."""
        layout = self.output.as_rows()
        values = values.swapaxes(1, 2) if layout.columns_first else values
        return values.reshape(-1, layout.columns)


def keypoint_facts(spec: ModelSpec, dims: int) -> dict[str, Any]:
    """Return what the ultralytics package's metadata say of keypoints of so many values; empty: there are none."""
    if spec.keypoints is None:
        return {}
    names = list(spec.keypoints.names)
    return {"kpt_shape": [len(names), dims], "kpt_names": {label: names for label in range(len(spec.classes))}}


class RowExport(_RowsExport[RawDetections]):
    """Candidate rows of classes."""

    @property
    def decode(self) -> str:
        """See :class:`ExportAdapter`."""
        return f"{self.output.decode}, columns first" if self.output.columns_first else self.output.decode

    @property
    def scoring(self) -> str:
        """See :attr:`ExportAdapter.scoring`."""
        return self.output.score

    def rows_for_nms(self, mode: str) -> RawDetections:
        """See :meth:`ExportAdapter.rows_for_nms`."""
        if self.output.angle and mode == "plugin":
            raise UsageError("the node of --nms plugin is of upright boxes, and these are oriented: use --nms graph")
        return self.output

    def packaged(self, first: str, second: str) -> Packaged | None:
        """See :meth:`ExportAdapter.packaged`: columns first, of rows without an objectness."""
        if self.output.obj is not None or self.output.decode != "none":
            return None
        prototypes = second if self.output.prototypes else None
        output = replace(self.output, name=first, columns_first=True, prototypes=prototypes)
        return Packaged(output, "columns first", keypoint_facts(self.spec, self.output.kpt_dims))

    def _matcher(self) -> RowMatcher:
        return row_matcher(rows_in(self.compared()), self.spec)


class AnchorHeadExport(_RowsExport[AnchorHeads]):
    """The undecoded maps of an anchor head, compared as rows."""

    def rows_for_nms(self, mode: str) -> RawDetections:
        """See :meth:`ExportAdapter.rows_for_nms`."""
        raise UsageError(f"--nms {mode} needs decoded rows, and this network gives the maps of its head")

    def _matcher(self) -> RowMatcher:
        return row_matcher(self.output.as_rows(), self.spec)


class PoseExport(_RowsExport[PoseObjectRows]):
    """Candidate rows of persons and of keypoints as objects.

    The detections of both runs of NMS are matched. The fusion that follows is arithmetic on them, in source pixels.
    """

    def rows_for_nms(self, mode: str) -> RawDetections:
        """See :meth:`ExportAdapter.rows_for_nms`."""
        raise UsageError(
            f"--nms {mode} does not go with pose objects: persons and keypoint objects are fused after their NMS, in "
            "pixels of the source image, which a graph does not know; use --nms none"
        )

    def _matcher(self) -> RowMatcher:
        adapter, thresholds = PoseAdapter(self.spec), self.spec.thresholds

        def objects(rows: Array) -> NetworkDetections:
            return _with_objects(adapter.objects({self.output.name: rows[None]}, 0))

        return RowMatcher(self.output.as_rows(), objects, (thresholds, object_thresholds(self.output, thresholds)))


class NmsExport(ExportAdapter[NmsOutputs]):
    """Detections after NMS, compared in place of its rows."""

    meaning: ClassVar[str] = "columns"

    def compared(self) -> RawDetections:
        """See :meth:`ExportAdapter.compared`."""
        return detections_layout(self.spec)

    def reference_values(self, session: Session, image: Array, name: str) -> Array:
        """See :meth:`ExportAdapter.reference_values`."""
        return detections_as_rows(session, image, self.spec)


def _best_scores(rows: Tensor, layout: RawDetections) -> Tensor:
    """The score of the best class of each row; an objectness, which is no less than 0, changes no order."""
    factor, classes = layout.score_spans
    best = rows[:, slice(*classes)].amax(1)
    return best if factor is None else best * rows[:, factor[0]]


def _logits(coefficients: Tensor, image: Tensor, prototypes: Tensor) -> Tensor:
    """The logits of masks ``(n, cells)``: each object is in one image of ``prototypes (B, P, h, w)``."""
    import torch

    maps = prototypes.to(coefficients.dtype).flatten(2)
    return torch.cat([coefficients[image == slot] @ each for slot, each in enumerate(maps)])


def _with_objects(found: NetworkDetections) -> NetworkDetections:
    """Append the keypoint objects to the persons, as further classes."""
    objects = found.objects
    assert objects is not None
    assert found.keypoints is not None
    nowhere = np.zeros((len(objects.labels), *found.keypoints.shape[1:]), np.float32)
    return replace(
        found,
        boxes=np.concatenate((found.boxes, objects.boxes)),
        scores=np.concatenate((found.scores, objects.scores)),
        labels=np.concatenate((found.labels, objects.labels + 1)),
        keypoints=np.concatenate((found.keypoints, nowhere)),
    )
