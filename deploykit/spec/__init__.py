"""ModelSpec: everything that the runtime must know about a network, in one value; import its names from here."""

from deploykit.spec.input import Dynamic, Fit, InputSpec
from deploykit.spec.json_values import read_value, worded
from deploykit.spec.keypoints import COCO_KEYPOINTS, KeypointSpec
from deploykit.spec.model import CHECKPOINT_SUFFIXES, METADATA_KEY, SPEC_VERSION, ModelSpec, Source, Task
from deploykit.spec.output import DenseOutput, NmsOutputs, PoseFusion, PoseObjectRows, RawDetections, Span
from deploykit.spec.thresholds import Thresholds

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "COCO_KEYPOINTS",
    "METADATA_KEY",
    "SPEC_VERSION",
    "DenseOutput",
    "Dynamic",
    "Fit",
    "InputSpec",
    "KeypointSpec",
    "ModelSpec",
    "NmsOutputs",
    "PoseFusion",
    "PoseObjectRows",
    "RawDetections",
    "Source",
    "Span",
    "Task",
    "Thresholds",
    "read_value",
    "worded",
]
