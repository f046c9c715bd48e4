"""What the metadata of other projects' ONNX files says.

YOLOv5 (GPL/AGPL-3.0) writes ``stride`` and ``names``; the ultralytics package (AGPL-3.0) also ``task``, ``imgsz``,
``args``, ``version`` and, of poses, ``kpt_shape`` and ``kpt_names``. Values are the text of a Python or JSON value.
Facts from the published files and descriptions.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deploykit.strict_json import parse_json

__all__ = ["ExportFacts", "read_facts"]

MAX_TEXT = 1_000_000  # characters of a value: the names of tens of thousands of classes

Origin = Literal["ultralytics", "yolov5", ""]


@dataclass(frozen=True)
class ExportFacts:
    """The facts of a file's metadata; None, or empty: it does not say.

    ``origin`` is the project whose keys these are. ``keypoint_shape`` is (K, values of each). ``chosen``: the network
    chooses its detections itself. ``anchors``: pixels, width and height in turn, per level. ``notes`` say what of the
    metadata could not be used as it is.
    """

    origin: Origin = ""
    version: str = ""
    task: str = ""
    names: tuple[str, ...] | None = None
    stride: int | None = None
    size: tuple[int, int] | None = None
    keypoint_shape: tuple[int, int] | None = None
    keypoint_names: tuple[str, ...] | None = None
    chosen: bool = False
    anchors: tuple[tuple[float, ...], ...] | None = None
    notes: tuple[str, ...] = ()


def read_facts(metadata: Mapping[str, str]) -> ExportFacts:
    """Read the facts of an ONNX file's metadata; what is not understood is left out."""
    values = {key: _value(text) for key, text in metadata.items()}
    names, notes = _names(values.get("names"))
    args = values.get("args")
    args = args if isinstance(args, dict) else {}
    origin: Origin = ""
    if "task" in values and ("version" in values or "imgsz" in values):
        origin = "ultralytics"
    elif names and "stride" in values:
        origin = "yolov5"
    stride = values.get("stride")
    return ExportFacts(
        origin,
        version=str(values.get("version", "")),
        task=str(values.get("task", "")),
        names=names,
        stride=int(stride) if isinstance(stride, (int, float)) and 1 <= stride <= 1024 else None,
        size=_pair(values.get("imgsz")),
        keypoint_shape=_pair(values.get("kpt_shape")),
        keypoint_names=_keypoint_names(values.get("kpt_names")),
        chosen=values.get("end2end") is True or values.get("nms") is True or args.get("nms") is True,
        anchors=_anchors(values.get("anchors")),
        notes=notes,
    )


def _value(text: str) -> Any:
    """The value that a text is of, or the text; nothing in it is executed."""
    if len(text) > MAX_TEXT:
        return text
    for read in (parse_json, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
    return text


def _names(value: Any) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Class names in order from a list, or from a dictionary of numbers, which may be text, to names; and notes."""
    if isinstance(value, dict):
        try:
            numbered = {int(key): name for key, name in value.items()}
        except (TypeError, ValueError):
            return None, ("the class names of its metadata are not numbered: left out",)
        first = min(numbered, default=0)
        if sorted(numbered) != list(range(first, first + len(numbered))) or first not in (0, 1):
            return None, ("the numbers of its class names have gaps: left out",)
        notes = ("its class names are numbered from 1: the first is class 0 here",) if first else ()
        return tuple(str(numbered[key]) for key in sorted(numbered)) or None, notes
    if isinstance(value, (list, tuple)) and value and all(isinstance(name, (str, int)) for name in value):
        return tuple(map(str, value)), ()
    return None, ()


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(type(side) is int for side in value):
        return None
    return (value[0], value[1]) if all(1 <= side <= 65536 for side in value) else None


def _keypoint_names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, dict):  # by class; all classes have the same keypoints
        value = next(iter(value.values()), None)
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(name, str) for name in value):
        return None
    return tuple(value)


def _anchors(value: Any) -> tuple[tuple[float, ...], ...] | None:
    """Anchors per level, as pairs or one after the other."""
    levels = []
    for level in value if isinstance(value, (list, tuple)) else ():
        flat: list[Any] = []
        for item in level if isinstance(level, (list, tuple)) else ():
            flat += item if isinstance(item, (list, tuple)) else [item]
        if not flat or len(flat) % 2 or not all(isinstance(side, (int, float)) and side > 0 for side in flat):
            return None
        levels.append(tuple(map(float, flat)))
    return tuple(levels) or None
