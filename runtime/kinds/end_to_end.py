"""The adapter of detections that a network has chosen itself, one row each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deploykit.errors import BackendError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.kinds.detection import ChosenDetections, prototypes_in
from deploykit.runtime.parity.chosen_rows import chosen_differences, chosen_layout, chosen_rows
from deploykit.runtime.parity.differences import Difference
from deploykit.runtime.parity.masked_rows import MaskedRows
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.postprocess.checks import check_finite, check_labels, check_probabilities
from deploykit.runtime.postprocess.detections import NetworkDetections, with_prototypes
from deploykit.runtime.postprocess.rotated import hulls_of
from deploykit.spec import EndToEndRows

__all__ = ["EndToEndAdapter"]


class EndToEndAdapter(ChosenDetections[EndToEndRows]):
    """Rows of detections, per image or of the whole batch."""

    def check_values(self, outputs: Mapping[str, Array], images: int) -> None:
        """See :meth:`OutputAdapter.check_values`: finite rows, scores that are probabilities, labels that there are."""
        layout, rows = self.output, self.tensor_in(outputs, "the network")
        rows = (rows if layout.image is not None else rows[:images]).reshape(-1, rows.shape[-1])
        check_finite(rows, layout.name)
        if layout.prototypes is not None and layout.prototypes in outputs:
            check_finite(outputs[layout.prototypes][:images], layout.prototypes)
        check_probabilities(rows[:, layout.score], "scores", layout.name)
        check_labels(rows[rows[:, layout.score] > 0, layout.label], len(self.spec.classes), layout.name)
        if layout.keypoints is not None and layout.kpt_dims == 3:
            start, stop = layout.keypoints
            check_probabilities(rows[:, start + 2 : stop : 3], "keypoint visibilities", layout.name)

    def objects(
        self, outputs: Mapping[str, Array], slot: int, size: tuple[int, int] | None = None
    ) -> NetworkDetections:
        """See :meth:`DetectionAdapter.objects`: the best first, whatever their order in the output."""
        layout, rows = self.output, self.tensor_in(outputs, "the network")
        if layout.image is not None:
            rows = rows[rows[:, layout.image] == slot]
        elif slot < len(rows):
            rows = rows[slot]
        else:
            raise BackendError(f"output {layout.name!r} has {len(rows)} images, expected at least {slot + 1}")
        rows = rows.astype(np.float32)  # a copy: nothing in a result is a view of an output
        scores = rows[:, layout.score]
        best = np.argsort(-scores, kind="stable")
        wanted = scores > np.float32(self.thresholds.conf)
        if self.choice.classes is not None:
            wanted &= np.isin(rows[:, layout.label], self.choice.classes)
        kept = best[wanted[best]][: self.thresholds.max_det]
        keypoints = None
        if layout.keypoints is not None:
            values = rows[kept, slice(*layout.keypoints)]
            keypoints = np.ones((len(kept), self._points, 3), np.float32)
            keypoints[..., : layout.kpt_dims] = values.reshape(len(kept), self._points, layout.kpt_dims)
        labels = rows[kept, layout.label].astype(np.int64)
        boxes, rotated = rows[kept, slice(*layout.box)], None
        if layout.angle is not None:
            rotated = np.column_stack((boxes, rows[kept, layout.angle]))
            boxes = hulls_of(rotated)
        found = NetworkDetections(boxes, scores[kept], labels, keypoints, len(kept), rotated=rotated)
        if layout.coefficients is None:
            return found
        return with_prototypes(found, outputs, slot, rows[kept, slice(*layout.coefficients)], layout.prototypes)

    def compared(self) -> EndToEndRows:
        """See :meth:`OutputAdapter.compared`."""
        return chosen_layout(self.output)

    def values(self, outputs: Mapping[str, Array], fed: tuple[int, ...], name: str) -> Array:
        """See :meth:`OutputAdapter.values`: as many rows of each image as any has, empty ones last."""
        layout, rows = self.output, self.tensor_in(outputs, name)
        if layout.image is None and len(rows) != fed[0]:
            raise SpecError(f"a batch of {fed[0]} has as many outputs, {name} gives {rows.shape}")
        images = list(rows) if layout.image is None else [rows[rows[:, layout.image] == i] for i in range(fed[0])]
        most = max(map(len, images)) + (layout.image is not None)  # nothing tells when such a list is full
        images = [np.pad(each, ((0, most - len(each)), (0, 0))) for each in images]
        found = [chosen_rows(each, layout) for each in images]
        if layout.prototypes is None or layout.coefficients is None:
            return np.stack(found)
        maps = prototypes_in(outputs, layout.prototypes, (fed[0], layout.coefficients), name)
        return np.stack(
            [
                MaskedRows(part, each[:, slice(*layout.coefficients)], planes, (fed[2], fed[3])).packed()
                for part, each, planes in zip(found, images, maps, strict=True)
            ]
        )

    def differences(
        self, names: tuple[str, str, str], expected: list[Array], found: list[Array], limits: Tolerance
    ) -> list[Difference]:
        """See :meth:`OutputAdapter.differences`: detections are compared as sets."""
        return chosen_differences(names, expected, found, self.compared(), limits)

    @property
    def _is_only(self) -> bool:
        return self.output.prototypes is None
