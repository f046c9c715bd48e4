"""ModelSpec: everything that the runtime must know about a network, in one value.

Export writes it into the artefact (ONNX ``metadata_props``, key :data:`METADATA_KEY`) and beside an engine; the runtime
reads it nowhere else. Standard library only: the torch side and the torch-free side both import this file.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from deploykit.errors import SpecError
from deploykit.spec.input import InputSpec
from deploykit.spec.json_values import read_value
from deploykit.spec.keypoints import KeypointSpec
from deploykit.spec.output import DenseOutput, NmsOutputs, PoseObjectRows, RawDetections
from deploykit.spec.thresholds import Thresholds

__all__ = ["CHECKPOINT_SUFFIXES", "METADATA_KEY", "SPEC_VERSION", "ModelSpec", "Source", "Task"]

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pkl", ".safetensors")
"""What the names of checkpoints end in."""

METADATA_KEY = "deploykit"
SPEC_VERSION = 1

Task = Literal["detect", "keypoints", "instances", "classify", "segment", "restore", "features"]


@dataclass(frozen=True)
class Source:
    """Where a network came from: the model's name, its checkpoint's SHA-256, and what wrote the artefact."""

    model: str = ""
    sha256: str = ""
    deploykit: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """What the runtime must know about a network; travels inside the ONNX file and beside the engine."""

    task: Task
    input: InputSpec
    output: RawDetections | PoseObjectRows | NmsOutputs | DenseOutput
    classes: tuple[str, ...] = ()
    keypoints: KeypointSpec | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    precision: Literal["fp32", "fp16", "bf16", "int8", "fp8"] = "fp32"
    opset: int = 18
    source: Source = field(default_factory=Source)
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        if isinstance(self.output, NmsOutputs) and (self.keypoints is None) != (self.output.keypoints is None):
            raise SpecError("a spec has keypoint names and a keypoint output, or neither")
        if (self.task == "instances") != (isinstance(self.output, NmsOutputs) and self.output.masks is not None):
            raise SpecError("a spec of the task instances has an output of masks, and no other has")
        if isinstance(self.output, PoseObjectRows):
            _check_poses(self.output, self.classes, self.keypoints)
        if not isinstance(self.output, RawDetections):
            return
        rows = self.output
        if self.classes and len(self.classes) != rows.cls[1] - rows.cls[0]:
            raise SpecError(f"{len(self.classes)} class names for {rows.cls[1] - rows.cls[0]} class columns")
        if (self.keypoints is None) != (rows.keypoints is None):
            raise SpecError("a spec has keypoint names and keypoint columns, or neither")
        if self.keypoints and rows.keypoints:
            width = rows.keypoints[1] - rows.keypoints[0]
            if width != len(self.keypoints.names) * rows.kpt_dims:
                expected = f"{len(self.keypoints.names)} x {rows.kpt_dims}"
                raise SpecError(f"{width} keypoint columns do not hold {expected} values")

    @property
    def dense_axes(self) -> int:
        """How many axes one dense output has: 2 where it is of the image, 4 where it is of its pixels."""
        return 2 if self.task in ("classify", "features") else 4

    def to_json(self) -> str:
        """The spec as one line of JSON with sorted keys: equal specs give equal bytes."""
        return json.dumps(_written(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> ModelSpec:
        """Read what :meth:`to_json` wrote, or a hand-written spec that leaves out what has a default.

        Raises:
            SpecError: not JSON, of a newer version, or with a field that is unknown or of another type.
        """
        try:
            data = json.loads(text)
        except ValueError as e:
            raise SpecError(f"a model spec is JSON, but this does not parse: {e}") from e
        if not isinstance(data, dict):
            raise SpecError(f"a model spec is a JSON object, got {type(data).__name__}")
        version = data.get("version", SPEC_VERSION)
        if not isinstance(version, int) or version > SPEC_VERSION:
            raise SpecError(
                f"the spec has version {version!r}, this deploykit reads up to {SPEC_VERSION}: update deploykit"
            )
        spec = read_value(ModelSpec, data, "spec")
        assert isinstance(spec, ModelSpec)
        return spec


def _check_poses(rows: PoseObjectRows, classes: tuple[str, ...], keypoints: KeypointSpec | None) -> None:
    if len(classes) > 1:
        raise SpecError(f"pose objects are of one class, the person; its keypoints are no classes: got {len(classes)}")
    if keypoints is None or len(keypoints.names) != rows.num_keypoints:
        raise SpecError(f"pose objects of {rows.num_keypoints} keypoints need as many keypoint names")


def _written(value: Any) -> Any:
    """A value as JSON has it, without the later fields that have their defaults."""
    if isinstance(value, tuple):
        return [_written(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {f.name: _written(v) for f, v in fields if not (f.metadata.get("later") and v == f.default)}
