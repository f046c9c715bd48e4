"""Attributes that other tools have, and what they are here: the message of an AttributeError names the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PREDICTOR_NAMES", "RESULT_NAMES", "missing_attribute"]

RESULT_NAMES = {
    "cls": "labels",
    "conf": "scores",
    "names": "classes",
    "obb": "rotated or corners",
    "orig_img": "image",
    "orig_shape": "size",
    "path": "name",
    "plot": "draw()",
    "save_crop": "crops(), or deploykit predict --crops",
    "save_txt": "to_yolo(), or deploykit predict --save-txt",
    "show": "draw(), or deploykit predict --show",
    "speed": "timings",
    "to_json": "to_dict()",
    "tojson": "to_dict()",
    "verbose": "summary()",
    "xy": "keypoints[..., :2]",
    "xyxy": "boxes",
}
PREDICTOR_NAMES = {
    "benchmark": "deploykit bench",
    "export": "deploykit.export_onnx(path)",
    "info": "deploykit inspect",
    "names": "classes",
    "predict": "model(image), or model.stream(source) for folders, videos and cameras",
    "to": "deploykit.load(path, device=...)",
    "val": "deploykit.evaluate(path, data)",
}


def missing_attribute(owner: object, name: str, meant: Mapping[str, str]) -> Any:
    """Return what ``__getattr__`` returns: nothing.

    Raises:
        AttributeError: always; it names what ``meant`` has for ``name``. That of a property is raised as it was.
    """
    if name in meant:
        text = f"{type(owner).__name__!r} object has no attribute {name!r}: use {meant[name]}"
        raise AttributeError(text, name=name, obj=owner)
    return object.__getattribute__(owner, name)
