"""The detections of a network that needs no NMS, from all of its rows: the definition, in numpy.

The ``count`` cells whose best class scores highest are taken (or all, where there are fewer), and among the pairs of
such a cell and a class as many of the highest scores, the highest first. At equal ones the earlier row comes first,
then the lower class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np

from deploykit.export.nms.layouts import detections_layout, rows_in
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.chosen_rows import chosen_layout
from deploykit.runtime.parity.differences import class_scores
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.parity.masked_rows import MaskedRows
from deploykit.spec import EndToEndRows, ModelSpec, Output, RawDetections

__all__ = ["as_rows", "best_detections", "chosen_reference"]


def best_detections(rows: Array, layout: RawDetections, count: int) -> tuple[Array, Array]:
    """Choose among the rows of one image ``(N, columns)``.

    Returns:
        The detections, of at most ``count`` rows in the columns of
        :func:`deploykit.runtime.parity.chosen_rows.chosen_layout`; and the row that each is from.
    """
    scores, count = class_scores(rows, layout), min(count, len(rows))
    cells = np.argsort(-scores.max(1), kind="stable")[:count]
    pairs = np.argsort(-scores[cells].ravel(), kind="stable")[:count]
    cell, label = cells[pairs // scores.shape[1]], pairs % scores.shape[1]
    box = rows[cell, slice(*layout.box)]
    if layout.angle is None:
        half = box[:, 2:] / 2
        box = np.concatenate((box[:, :2] - half, box[:, :2] + half), 1)
    others = [rows[cell, slice(*span)] for span in (layout.angle, layout.keypoints) if span]
    return np.concatenate((box, scores[cell, label][:, None], label[:, None], *others), 1), cell


def chosen_reference(expected: ReferenceOutputs, output: EndToEndRows, count: int) -> ReferenceOutputs:
    """Return the detections in reference values that are rows."""
    layout = rows_in(expected.layout)

    def chosen(values: Array) -> Array:
        if layout.prototypes is None:
            return best_detections(values, layout, count)[0]
        masked = MaskedRows.unpacked(values, layout)
        found, cells = best_detections(masked.rows, layout, count)
        return replace(masked, rows=found, coefficients=masked.coefficients[cells]).packed()

    return _each(expected, chosen, chosen_layout(output))


def as_rows(expected: ReferenceOutputs, spec: ModelSpec) -> ReferenceOutputs:
    """Return detections as rows from which NMS gives them again, and anything else as it is.

    ``spec`` has the classes and keypoints.
    """
    if not expected.layout.nms_inside:
        return expected
    chosen = cast(EndToEndRows, expected.layout)
    layout = detections_layout(replace(spec, output=chosen))

    def converted(values: Array) -> Array:
        masked = None if chosen.prototypes is None else MaskedRows.unpacked(values, chosen)
        found = values if masked is None else masked.rows
        rows = np.zeros((len(found), layout.columns), found.dtype)
        rows[:, :4] = found[:, :4]
        if layout.angle is None:
            rows[:, :2], rows[:, 2:4] = (found[:, :2] + found[:, 2:4]) / 2, found[:, 2:4] - found[:, :2]
        else:
            rows[:, slice(*layout.angle)] = found[:, 6:7]
        rows[np.arange(len(rows)), 4 + found[:, 5].astype(np.int64)] = found[:, 4]
        if chosen.keypoints is not None and layout.keypoints is not None:
            points = np.ones((len(rows), (layout.keypoints[1] - layout.keypoints[0]) // 3, 3))
            given = found[:, slice(*chosen.keypoints)]
            points[..., : chosen.kpt_dims] = given.reshape(*points.shape[:2], chosen.kpt_dims)
            rows[:, slice(*layout.keypoints)] = points.reshape(len(rows), -1)
        return rows if masked is None else replace(masked, rows=rows).packed()

    return _each(expected, converted, layout)


def _each(expected: ReferenceOutputs, convert: Callable[[Array], Array], layout: Output) -> ReferenceOutputs:
    """Convert the values of every image."""
    rows = {
        reference: {label: convert(values) for label, values in by_label.items()}
        for reference, by_label in expected.rows.items()
    }
    return replace(expected, rows=rows, layout=layout)
