"""The adapter of the undecoded maps of an anchor head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploykit.errors import SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.kinds.detection import RowValues
from deploykit.runtime.postprocess.anchor_heads import rows_of_heads
from deploykit.runtime.postprocess.checks import check_finite, check_probabilities
from deploykit.runtime.postprocess.detections import NetworkDetections, decode_rows
from deploykit.runtime.session import TensorInfo
from deploykit.spec import AnchorHeads

__all__ = ["AnchorHeadAdapter"]


class AnchorHeadAdapter(RowValues[AnchorHeads]):
    """Maps of anchors, which are decoded to rows in pixels first."""

    def check_outputs(self, found: Sequence[TensorInfo]) -> None:
        """See :meth:`OutputAdapter.check_outputs`: every level is there, in one of its two forms."""
        by_name = {info.name: info for info in found}
        for name in self.output.outputs if found else ():
            if name not in by_name:
                raise SpecError(f"the spec names the output {name!r}, the network has {', '.join(map(repr, by_name))}")
            if len(by_name[name].shape) not in (4, 5):
                raise SpecError(
                    f"the spec says that output {name!r} is (batch, anchors, height, width, columns) or (batch, "
                    f"anchors * columns, height, width), the network gives {by_name[name]}"
                )

    def check_values(self, outputs: Mapping[str, Array], images: int) -> None:
        """See :meth:`OutputAdapter.check_values`: finite numbers, which are probabilities if the sigmoid is inside."""
        for name in self.output.outputs:
            check_finite(outputs[name][:images], name)
            if self.output.sigmoid:
                check_probabilities(outputs[name][:images], "values after the sigmoid", name)

    def objects(
        self, outputs: Mapping[str, Array], slot: int, size: tuple[int, int] | None = None
    ) -> NetworkDetections:
        """See :meth:`DetectionAdapter.objects`."""
        rows = rows_of_heads(outputs, self.output, slice(slot, slot + 1))
        layout, place = self.output.as_rows(), size or self.spec.input.size
        return decode_rows({layout.name: rows}, 0, layout, 0, self.thresholds, place, self.choice)

    def values(self, outputs: Mapping[str, Array], fed: tuple[int, ...], name: str) -> Array:
        """See :meth:`OutputAdapter.values`: the decoded rows."""
        return rows_of_heads(outputs, self.output, slice(None))
