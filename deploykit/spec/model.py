"""ModelSpec: everything that the runtime must know about a network, in one value.

Export writes it into the artefact (ONNX ``metadata_props``, key :data:`METADATA_KEY`) and beside an engine; the runtime
reads it nowhere else. Standard library only: the torch side and the torch-free side both import this file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from deploykit.errors import SpecError
from deploykit.spec.anchor_heads import AnchorHeads
from deploykit.spec.checks import SPACES, check_range, check_text
from deploykit.spec.dense_output import DenseOutput
from deploykit.spec.end_to_end import EndToEndRows
from deploykit.spec.input import InputSpec
from deploykit.spec.json_values import LATER, json_value, read_value
from deploykit.spec.keypoints import KeypointSpec
from deploykit.spec.nms_outputs import NmsOutputs
from deploykit.spec.output import Output, OutputTensor, register_output
from deploykit.spec.rows import PoseObjectRows, RawDetections
from deploykit.spec.thresholds import Thresholds
from deploykit.strict_json import JsonError, parse_json

__all__ = ["CHECKPOINT_SUFFIXES", "ENGINE_SUFFIXES", "METADATA_KEY", "SPEC_VERSION", "ModelSpec", "Source"]

CHECKPOINT_SUFFIXES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".safetensors", ".tar", ".th")
"""What the names of checkpoints end in."""
ENGINE_SUFFIXES = (".trt", ".engine", ".plan")
"""What the names of TensorRT engines end in: three names of one format. The first is written by default."""

METADATA_KEY = "deploykit"
SPEC_VERSION = 1
MOST_OPSET = 1000

for known in (RawDetections, AnchorHeads, PoseObjectRows, NmsOutputs, EndToEndRows, DenseOutput):
    register_output(known)


@dataclass(frozen=True)
class Source:
    """Where a network came from: the model's name, its checkpoint's SHA-256, and what wrote the artefact."""

    model: str = ""
    sha256: str = ""
    deploykit: str = ""

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            check_text(f"the source's {name}", text)


@dataclass(frozen=True)
class ModelSpec:
    """What the runtime must know about a network; travels inside the ONNX file and beside the engine.

    ``task`` is one of those of the output's kind. ``assumptions``: what the network computes with and no tensor of its
    checkpoint told, a sentence each; a comparison with the checkpoint cannot find a wrong one.
    """

    task: str
    input: InputSpec
    output: Output
    classes: tuple[str, ...] = ()
    keypoints: KeypointSpec | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    precision: Literal["fp32", "fp16", "bf16", "int8", "fp8"] = "fp32"
    opset: int = 18
    source: Source = field(default_factory=Source)
    version: int = SPEC_VERSION
    assumptions: tuple[str, ...] = field(default=(), metadata=LATER)

    def __post_init__(self) -> None:
        if self.task not in self.output.tasks:
            known = ", ".join(self.output.tasks)
            raise SpecError(
                f"spec.task must be one of {known}, for an output of kind {self.output.kind!r}, got {self.task!r}"
            )
        for i, text in enumerate(self.classes):
            check_text(f"the name of class {i}", text, allowed=SPACES)
        check_range("opset", self.opset, 1, MOST_OPSET)
        self.output.check(self)

    @property
    def output_tensors(self) -> tuple[OutputTensor, ...]:
        """The network's output tensors, in their order."""
        return self.output.tensors(self)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(tensor.name for tensor in self.output_tensors)

    @property
    def assumption_notes(self) -> tuple[str, ...]:
        """The assumptions as notes for people."""
        return tuple(f"assumed: {text}" for text in self.assumptions)

    def to_json(self) -> str:
        """The spec as one line of JSON with sorted keys: equal specs give equal bytes."""
        return json.dumps(json_value(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> ModelSpec:
        """Read what :meth:`to_json` wrote, or a hand-written spec that leaves out what has a default.

        Raises:
            SpecError: not JSON, of a newer version, or with a field that is unknown, of another type or without sense.
        """
        try:
            data = parse_json(text)
        except JsonError as e:
            raise SpecError(f"a model spec is JSON, but this does not parse: {e}") from e
        return ModelSpec.from_dict(data)

    @staticmethod
    def from_dict(data: Any) -> ModelSpec:
        """Read a spec from parsed JSON.

        Raises:
            SpecError: see :meth:`from_json`.
        """
        if not isinstance(data, dict):
            raise SpecError(f"a model spec is a JSON object, got {type(data).__name__}")
        version = data.get("version", SPEC_VERSION)
        if not isinstance(version, int) or not 1 <= version <= SPEC_VERSION:
            raise SpecError(
                f"the spec has version {version!r:.80}, this deploykit reads up to {SPEC_VERSION}: update deploykit"
            )
        spec = read_value(ModelSpec, data, "spec")
        assert isinstance(spec, ModelSpec)
        return spec
