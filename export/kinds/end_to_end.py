"""The export adapter of detections that a network has chosen itself, one row each."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from deploykit.errors import UsageError
from deploykit.export.kinds.detection import keypoint_facts
from deploykit.export.matching import Matching
from deploykit.export.outputs import ExportAdapter, Packaged
from deploykit.export.parity.detections import mask_overlaps
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.chosen_rows import Pairs, chosen_layout, pairs_of
from deploykit.runtime.parity.masked_rows import MASKS, MaskedRows
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.postprocess.detections import NetworkDetections
from deploykit.spec import EndToEndRows, RawDetections

__all__ = ["EndToEndExport"]


class EndToEndExport(ExportAdapter[EndToEndRows]):
    """Detections, compared as sets with those of another network that chooses them itself."""

    meaning: ClassVar[str] = "columns"

    def match(
        self, names: tuple[str, str, str], expected: list[Array], found: list[Array], limits: Tolerance
    ) -> list[Matching]:
        """See :meth:`ExportAdapter.match`: how many detections both networks have chosen."""
        layout = chosen_layout(self.output)
        parts, scores, points, masks = [], [0.0], [0.0], [1.0]
        for values in zip(expected, found, strict=True):
            sides = [each if layout.prototypes is None else MaskedRows.unpacked(each, layout).rows for each in values]
            pairs = pairs_of(sides[0], sides[1], layout, limits)
            a, b = (side[place[pairs.judged]] for side, place in zip(sides, pairs.places, strict=True))
            parts.append(pairs)
            scores.append(float(np.abs(a[:, 4] - b[:, 4]).max(initial=0.0)))
            if layout.keypoints is not None:
                shape = (len(a), -1, layout.kpt_dims) if len(a) else (0, 1, layout.kpt_dims)
                one, other = (side[:, slice(*layout.keypoints)].reshape(shape)[..., :2] for side in (a, b))
                points.append(float(np.linalg.norm(one - other, axis=-1).max(initial=0.0)))
            if layout.prototypes is not None:
                masks.append(_least_overlap(values, pairs, layout, limits))
        counts = [sum(pairs.counts[side] for pairs in parts) for side in (0, 1)]
        return [
            Matching(
                *names,
                "detections",
                expected=counts[0],
                found=counts[1],
                matched=sum(int(pairs.judged.sum()) for pairs in parts),
                borderline=sum(int((side <= limits.probability).sum()) for pairs in parts for side in pairs.beyond),
                min_iou=1.0,
                max_score=float(np.max(scores)),
                max_keypoint=None if layout.keypoints is None else float(np.max(points)),
                limits=limits,
                min_mask=None if layout.prototypes is None else min(masks),
                moved=sum(pairs.moved for pairs in parts),
                exchanged=sum(pairs.exchanged for pairs in parts),
            )
        ]

    def packaged(self, first: str, second: str) -> Packaged | None:
        """See :meth:`ExportAdapter.packaged`: the same rows, of networks that give them image by image."""
        if self.output.image is not None:
            return None
        output = replace(self.output, name=first, prototypes=second if self.output.prototypes else None)
        return Packaged(output, facts=keypoint_facts(self.spec, self.output.kpt_dims))

    def rows_for_nms(self, mode: str) -> RawDetections:
        """See :meth:`ExportAdapter.rows_for_nms`."""
        raise UsageError(
            f"--nms {mode} needs raw rows, and this network chooses its detections itself and needs no NMS: leave "
            "--nms out, or take the other branch of a head that has two with --head one2many"
        )


def _least_overlap(values: tuple[Array, Array], pairs: Pairs, layout: EndToEndRows, limits: Tolerance) -> float:
    """The least IoU of the masks of pairs, of the best ones."""
    masked = [MaskedRows.unpacked(each, layout) for each in values]
    sides = [_objects(each, place[:MASKS]) for each, place in zip(masked, pairs.places, strict=True)]
    every = np.arange(len(sides[0].scores))
    return float(mask_overlaps(sides[0], every, sides[1], every, masked[0].canvas, limits).min(initial=1.0))


def _objects(masked: MaskedRows, places: Array) -> NetworkDetections:
    rows = masked.rows[places].astype(np.float32)
    labels = rows[:, 5].astype(np.int64)
    coefficients = masked.coefficients[places]
    return NetworkDetections(
        rows[:, :4], rows[:, 4], labels, None, len(rows), coefficients=coefficients, prototypes=masked.prototypes
    )
