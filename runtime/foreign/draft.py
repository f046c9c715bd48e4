"""A draft of a spec for an ONNX file that carries none: what its metadata, its shapes and one run tell.

What the file tells is taken, what is usual for its kind is an assumption that the spec states, and what has to be known
is left to be filled in: a draft with such a field is no spec yet.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deploykit.errors import SpecError
from deploykit.runtime.foreign.forms import Form, Known, find_form
from deploykit.runtime.foreign.metadata import ExportFacts, read_facts
from deploykit.runtime.foreign.probe import Probe
from deploykit.runtime.session import Session, TensorInfo
from deploykit.spec import COCO_KEYPOINTS, OUTPUTS, ModelSpec
from deploykit.spec.input import check_sizes

__all__ = ["FILL_IN", "SpecDraft", "draft_spec", "takes_images"]

FILL_IN = "fill in"
"""The key of an object that stands in a draft's JSON for a value to be filled in; its value says what is wanted."""

SIZE = (640, 640)  # where neither the network nor its metadata has one
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class SpecDraft:
    """A spec as JSON has it, in which fields may have to be filled in.

    ``unknown``: field -> what belongs there. ``notes``: what was noticed in the file.
    """

    data: dict[str, Any]
    unknown: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The draft as indented JSON; a field that is unknown holds ``{"fill in": what belongs there}``."""
        data = copy.deepcopy(self.data)
        for place, wanted in self.unknown.items():
            *parents, last = place.split(".")
            inner = data
            for name in parents:
                inner = inner.setdefault(name, {})
            inner[last] = {FILL_IN: wanted}
        return json.dumps(data, indent=2, ensure_ascii=False)

    def spec(self, name: str) -> ModelSpec:
        """Return the spec; ``name`` is the file's name in messages.

        Raises:
            SpecError: something is unknown. The message says what, and how to fill it in.
        """
        if self.unknown:
            raise SpecError(
                f"{name} carries no deploykit spec, and the file does not tell {' and '.join(self.unknown)}: export it "
                "with deploykit, or write a draft (deploykit inspect FILE --draft-spec), fill it in and pass it with "
                "--spec FILE (spec= in Python)"
            )
        return ModelSpec.from_json(json.dumps(self.data))


def draft_spec(session: Session, name: str) -> SpecDraft:
    """Draft the spec of a network that carries none; it may run once, on noise.

    Raises:
        SpecError: it does not take images, or images that take too much memory. BackendError: it failed on noise.
    """
    info = _image_input(session, name)
    facts = read_facts(session.metadata)
    usual = facts.size or SIZE
    size = (info.shape[2] or usual[0], info.shape[3] or usual[1])
    check_sizes(size, info.shape[0] or 1, info.shape[1] or 3)
    known = Known(session.outputs, facts, size, Probe(session, size))
    return _DRAFTS.get(facts.task, _undescribed)(info, known)


def _one_per_image(info: TensorInfo, output: TensorInfo) -> bool:
    """Whether an output is ``(batch, values)``, and not YOLOv7's list of detections, which has seven columns."""
    return len(output.shape) == 2 and output.shape[0] in (None, info.shape[0] or 1) and output.shape[1] not in (None, 7)


def _untold(info: TensorInfo, known: Known) -> SpecDraft:
    """A network whose metadata names no task."""
    flat = len(known.declared) == 1 and _one_per_image(info, known.declared[0])
    return (_classifier if flat else _detector)(info, known)


def _undescribed(info: TensorInfo, known: Known) -> SpecDraft:
    """The draft of a network whose outputs are of no form that is known; what it is for has to be filled in."""
    facts = known.facts
    data: dict[str, Any] = {"input": _input(info, known, {"stride": facts.stride or 32})}
    if facts.names:
        data["classes"] = list(facts.names)
    found = ", ".join(f"{output.name} {output}" for output in known.declared)
    told = f"; its metadata says that it is for the task {facts.task!r}" if facts.task else ""
    kinds = ", ".join(f"{kind} ({', '.join(output.tasks)})" for kind, output in OUTPUTS.items())
    unknown = {
        "task": f"what the network does{told}",
        "output": f"the kind of output and its fields (docs/spec.md): {kinds}; the network gives {found}",
    }
    return SpecDraft(data, unknown, facts.notes)


def takes_images(session: Session) -> bool:
    """Return whether a network has one input, of float images ``(batch, channels, height, width)``."""
    return len(session.inputs) == 1 and len(session.inputs[0].shape) == 4 and "float" in session.inputs[0].dtype


def _image_input(session: Session, name: str) -> TensorInfo:
    if not takes_images(session):
        found = ", ".join(f"{info.name} {info}" for info in session.inputs) or "none"
        raise SpecError(
            f"{name} carries no deploykit spec, and only networks with one input of images, float (batch, channels, "
            f"height, width), can do without; its inputs are: {found}"
        )
    return session.inputs[0]


def _input(info: TensorInfo, known: Known, fit: dict[str, Any]) -> dict[str, Any]:
    batch, channels, *sides = info.shape
    free = "shape" if sides == [None, None] else "batch" if batch is None else "none"
    channels = channels or 3
    plain = {} if channels == 3 else {"channels": channels, "mean": [0.0] * channels, "std": [1.0] * channels}
    return {"name": info.name, "size": list(known.size), "batch": batch or 1, "dynamic": free, **plain, "fit": fit}


def _detector(info: TensorInfo, known: Known) -> SpecDraft:
    facts, form = known.facts, find_form(known)
    if form is None:
        return _undescribed(info, known)
    stride = facts.stride or 32
    fit = {"stride": stride, "auto": None in info.shape[2:]}
    assumed = [*form.assumed]
    if facts.origin:
        assumed.append(f"images are prepared as {facts.origin} does: RGB, divided by 255, letterboxed")
    canvas = {**_input(info, known, fit), **form.input, "fit": {**fit, **form.input.get("fit", {})}}
    thresholds = {"iou": 0.7, **form.thresholds} if facts.origin == "ultralytics" else dict(form.thresholds)
    data: dict[str, Any] = {
        "task": _task(form),
        "input": canvas,
        "output": form.output,
        "thresholds": thresholds,
    }
    if facts.names:
        data["classes"] = list(facts.names)
    else:
        assumed.append("the file has no class names: results show the numbers of the classes")
    if form.keypoints:
        data["keypoints"], told = _keypoints(form.keypoints[0], facts)
        assumed += told
    data["assumptions"] = assumed
    return SpecDraft(data, dict(form.unknown), facts.notes)


def _task(form: Form) -> str:
    if form.keypoints:
        return "keypoints"
    return "instances" if "prototypes" in form.output else "oriented" if "angle" in form.output else "detect"


def _keypoints(count: int, facts: ExportFacts) -> tuple[dict[str, Any], list[str]]:
    if facts.keypoint_names and len(facts.keypoint_names) == count:
        return {"names": list(facts.keypoint_names)}, []
    if count == len(COCO_KEYPOINTS.names):
        spec = COCO_KEYPOINTS
        pairs = {"skeleton": spec.skeleton, "flip_pairs": spec.flip_pairs}
        data = {"names": list(spec.names), "sigmas": list(spec.sigmas)}
        return data | {key: [list(pair) for pair in value] for key, value in pairs.items()}, [
            "its 17 keypoints are COCO's, in COCO's order"
        ]
    return {"names": [f"keypoint {i}" for i in range(count)]}, [f"the file has no names of its {count} keypoints"]


def _classifier(info: TensorInfo, known: Known) -> SpecDraft:
    """Classes of an image. The ultralytics package's networks give probabilities; how they want images, its version
    tells (facts in docs/spec.md); of other networks no tensor tells it."""
    facts, name = known.facts, known.outputs[0]
    data: dict[str, Any] = {"task": "classify", "output": {"kind": "tensor", "name": name}}
    assumed, unknown = [], {}
    fit: dict[str, Any] = {"kind": "crop", "stride": 1, "resample": "bilinear"}
    canvas = _input(info, known, fit)
    if facts.origin == "ultralytics":
        data["output"]["probabilities"] = True
        if _version(facts.version) < (8, 1):
            canvas |= IMAGENET
            fit |= {"resample": "opencv", "crop_share": 1.0, "crop_first": True}
        else:
            fit["crop_share"] = 1.0
        assumed.append(f"images are prepared as version {facts.version or 'unknown'} of the ultralytics package does")
    elif facts.origin == "yolov5":
        canvas |= IMAGENET
        fit |= {"resample": "opencv", "crop_share": 1.0, "crop_first": True}
        assumed.append("images are prepared as YOLOv5's classifiers want them")
    else:
        unknown = {
            "input.mean": f"the mean of each channel after scaling; {IMAGENET['mean']} where trained on ImageNet",
            "input.std": f"the deviation of each channel; {IMAGENET['std']} where trained on ImageNet",
            "input.fit.crop_share": "the share of the shorter side that is seen: often 0.875 or 0.9",
        }
    data["input"] = canvas
    if facts.names:
        data["classes"] = list(facts.names)
    else:
        assumed.append("the file has no class names: results show the numbers of the classes")
    data["assumptions"] = assumed
    return SpecDraft(data, unknown, facts.notes)


def _version(text: str) -> tuple[int, ...]:
    found = re.findall(r"\d+", text)[:3]
    return tuple(map(int, found)) or (9,)


_DRAFTS: dict[str, Callable[[TensorInfo, Known], SpecDraft]] = {
    "": _untold,
    "classify": _classifier,
    "detect": _detector,
    "obb": _detector,
    "pose": _detector,
    "segment": _detector,
}
"""The task that a file's metadata names -> what drafts its spec."""
