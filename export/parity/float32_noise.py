"""What float32 costs a network by itself, where its parity check fails.

Some trained networks magnify rounding: a YOLOX-nano does, thousands of times, at cells in the padding that score
nothing. Then no implementation in float32 is within the limits, PyTorch's own neither. So where a check fails, PyTorch
in float32 is held against the same float64 reference; if it is beyond the limits too, an artefact may be off as far.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from deploykit.export.parity.compare import check_expected
from deploykit.export.parity.nms import check_detections
from deploykit.export.sessions.torch_module import TorchSession
from deploykit.models.families.vitdet.mask_rcnn import with_thresholds
from deploykit.runtime.parity.expected import Expected
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import ModelSpec, NmsOutputs

__all__ = ["MOST", "eased", "float32_share"]

ROOM = 2.0  # two roundings of one network are about as large, and not at the same places
MOST = 50.0  # times the limits, 0.05 px and 0.0005: beyond this it is no rounding


def float32_share(expected: Expected, folded: nn.Module, spec: ModelSpec) -> float:
    """The largest share of its limit that any value of the folded model uses in PyTorch in float32.

    Args:
        expected: rows in float64; of a network with NMS inside, all that it ranks.
        folded: the module, in float32.
        spec: of what PyTorch gives: raw rows, any batch.
    """
    session, name = TorchSession(folded, spec), "PyTorch float32"
    if isinstance(spec.output, NmsOutputs):
        opened = TorchSession(with_thresholds(folded, replace(spec.thresholds, conf=0.0)), spec)
        parity = check_detections(expected, name, session, spec, opened=opened)
    else:
        parity = check_expected(expected, name, session, replace(spec, output=expected.layout))
    return max((d.used for d in parity.differences), default=0.0)


def eased(limits: Tolerance, share: float, *, scores: bool = False) -> Tolerance | None:
    """Limits for a network of which PyTorch in float32 uses ``share`` of ``limits``; None: those hold as they are.

    They grow by twice the share, and by :data:`MOST` at most; with ``scores`` that of the probabilities of classes and
    masks too, which follow from such values alone. Rows that score are where a network magnifies less.
    """
    if share <= 1.0 or not math.isfinite(share):
        return None
    factor = min(ROOM * share, MOST)
    return replace(
        limits,
        pixels=limits.pixels * factor,
        relative=limits.relative * factor,
        probability=limits.probability * factor,
        dense=limits.dense * factor,
        max_score=limits.max_score * (factor if scores else 1.0),
    )
