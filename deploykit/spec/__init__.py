"""ModelSpec: everything that the runtime must know about a network, in one value; import its names from here."""

from deploykit.spec.anchor_heads import AnchorHeads
from deploykit.spec.dense_output import DenseOutput
from deploykit.spec.end_to_end import EndToEndRows
from deploykit.spec.input import Dynamic, Fit, InputSpec
from deploykit.spec.json_values import json_safe, json_value, read_value
from deploykit.spec.keypoints import COCO_KEYPOINTS, KeypointSpec
from deploykit.spec.model import CHECKPOINT_SUFFIXES, ENGINE_SUFFIXES, METADATA_KEY, SPEC_VERSION, ModelSpec, Source
from deploykit.spec.nms_outputs import NmsOutputs
from deploykit.spec.output import OUTPUTS, Output, OutputTensor, Span, SpecLike, register_output
from deploykit.spec.rows import PoseFusion, PoseObjectRows, RawDetections, RowOutput
from deploykit.spec.thresholds import Thresholds

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "COCO_KEYPOINTS",
    "ENGINE_SUFFIXES",
    "METADATA_KEY",
    "OUTPUTS",
    "SPEC_VERSION",
    "AnchorHeads",
    "DenseOutput",
    "Dynamic",
    "EndToEndRows",
    "Fit",
    "InputSpec",
    "KeypointSpec",
    "ModelSpec",
    "NmsOutputs",
    "Output",
    "OutputTensor",
    "PoseFusion",
    "PoseObjectRows",
    "RawDetections",
    "RowOutput",
    "Source",
    "Span",
    "SpecLike",
    "Thresholds",
    "json_safe",
    "json_value",
    "read_value",
    "register_output",
]
