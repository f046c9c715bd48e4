"""An export in the layout and with the metadata of the ultralytics package, so that its consumers take our file.

The package exports rows as ``(B, 4 + classes + extras, N)`` under the name ``output0``, prototypes of masks as
``output1``, and the probabilities of a classifier; its metadata are texts of Python values. Facts from the published
files and descriptions (AGPL-3.0); the code is ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from deploykit.errors import UsageError
from deploykit.export.options import OnnxOptions
from deploykit.export.outputs import export_adapter_of
from deploykit.models.registry import ReferenceModel
from deploykit.spec import ModelSpec

__all__ = ["in_package_layout", "package_metadata"]

TASKS = {
    "detect": "detect",
    "instances": "segment",
    "keypoints": "pose",
    "oriented": "obb",
    "classify": "classify",
}
"""Task -> what the package calls it."""

FIRST, SECOND = "output0", "output1"
LAYOUT = "--layout ultralytics"


class _ColumnsFirst(nn.Module):
    """Rows ``(B, N, columns)`` as ``(B, columns, N)``; what else the network gives stays as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = self.network(images)
        if isinstance(found, Tensor):
            return found.transpose(1, 2)
        return (found[0].transpose(1, 2), *found[1:])


class _Probabilities(nn.Module):
    """The logits of a classifier after the softmax."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits.softmax(1)


ARRANGED = {"columns first": _ColumnsFirst, "softmax": _Probabilities}


def in_package_layout(model: ReferenceModel, options: OnnxOptions) -> ReferenceModel:
    """The same model with its outputs as the package lays them out.

    Raises:
        UsageError: the package has no such output.
    """
    if options.nms != "none":
        raise UsageError(f"{LAYOUT} goes with --nms none: the package's own rows after NMS are of another kind")
    packaged = export_adapter_of(model.spec).packaged(FIRST, SECOND)
    if packaged is None or model.spec.task not in TASKS:
        raise UsageError(
            f"{LAYOUT} is of classifiers and of detectors without an objectness, as YOLOv8 and later ones are; "
            f"{model.name} gives {model.spec.output.describe(model.spec)}"
        )
    arranged = ARRANGED.get(packaged.arrangement)
    module = model.module if arranged is None else arranged(model.module).eval()
    return replace(model, spec=replace(model.spec, output=packaged.output), module=module)


def package_metadata(spec: ModelSpec, options: OnnxOptions) -> dict[str, str]:
    """The metadata that the package's own consumers read, as texts of Python values; no times and no versions of it.

    ``spec`` is of the exported file.
    """
    arguments = {
        "batch": spec.input.batch,
        "half": spec.precision == "fp16",
        "int8": spec.precision == "int8",
        "dynamic": spec.input.dynamic != "none",
        "simplify": options.simplify,
        "opset": spec.opset,
        "nms": False,
    }
    packaged = export_adapter_of(spec).packaged(FIRST, SECOND)
    values: dict[str, Any] = {
        "description": f"{spec.source.model}, exported and verified by deploykit",
        "stride": spec.input.fit.stride,
        "task": TASKS[spec.task],
        "batch": spec.input.batch,
        "imgsz": list(spec.input.size),
        "names": dict(enumerate(spec.classes)),
        "args": arguments,
        "channels": spec.input.channels,
        "end2end": spec.output.nms_inside,
        **(packaged.facts if packaged else {}),
    }
    return {key: value if isinstance(value, str) else repr(value) for key, value in values.items()}
