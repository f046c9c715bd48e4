"""What a mistyped or foreign word on the command line was probably meant to be."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path

FOREIGN: dict[str, tuple[str, ...]] = {
    "annotations": ("--data",),
    "bf16": ("--precision bf16",),
    "batch-size": ("--batch",),
    "calibration": ("--calib",),
    "classes": ("--classes", "--num-classes"),
    "conf-thres": ("--conf",),
    "confidence": ("--conf",),
    "cuda": ("--device", "--provider"),
    "dest": ("--out",),
    "end2end": ("--nms graph",),
    "engine": ("--format tensorrt", "--model"),
    "file": ("--model",),
    "fp16": ("--precision fp16",),
    "fp8": ("--precision fp8",),
    "gpu": ("--device", "--provider"),
    "half": ("--precision fp16",),
    "hide-conf": ("--no-conf",),
    "hide-labels": ("--no-labels",),
    "image": ("--source", "--sample"),
    "images": ("--source", "--sample"),
    "img-size": ("--img",),
    "imgsz": ("--img",),
    "include": ("--format",),
    "input": ("--source", "--model", "--weights"),
    "input-size": ("--img",),
    "int8": ("--precision int8",),
    "iou-thres": ("--iou",),
    "iterations": ("--runs",),
    "iters": ("--runs",),
    "line-thickness": ("--line-width",),
    "load-engine": ("--model", "--engine"),
    "label-maps": ("--maps",),
    "mask": ("--maps",),
    "masks": ("--maps", "--mask-values"),
    "max-shapes": ("--profile",),
    "min-shapes": ("--profile",),
    "model": ("--model", "--weights", "--engine"),
    "name": ("--out",),
    "nms-thres": ("--iou",),
    "onnx": ("--model", "--weights"),
    "opset-version": ("--opset",),
    "opt-shapes": ("--profile",),
    "output": ("--out",),
    "output-dir": ("--out",),
    "path": ("--model", "--source"),
    "project": ("--out",),
    "save": ("--out",),
    "save-crop": ("--crops",),
    "save-dir": ("--out",),
    "save-engine": ("--out",),
    "save-json": ("--coco", "--detections", "--json"),
    "save-mask": ("--maps",),
    "save-masks": ("--maps",),
    "score-thr": ("--conf",),
    "shape": ("--img",),
    "silent": ("--quiet",),
    "size": ("--img",),
    "source": ("--source", "--sample"),
    "test": ("--source", "--sample"),
    "thr": ("--conf",),
    "threshold": ("--conf",),
    "top-k": ("--top",),
    "txt": ("--save-txt",),
    "use-fp16": ("--precision fp16",),
    "vid-stride": ("--every",),
    "video": ("--source",),
    "view-img": ("--show",),
    "weights": ("--model", "--weights"),
    "workers": ("--threads",),
}
"""What users of other tools type (without dashes, words joined by one) -> what it is here: the first that a command
has."""

FOREIGN_VALUES: dict[str, tuple[str, ...]] = {
    "engine": ("tensorrt",),
    "float16": ("fp16",),
    "float32": ("fp32",),
    "half": ("fp16",),
    "jetson": ("tensorrt-10",),
    "orin": ("tensorrt-10",),
    "ort": ("onnxruntime",),
    "plan": ("tensorrt",),
    "rtx": ("tensorrt-rtx",),
    "trt": ("tensorrt", "tensorrt-10"),
    "true": ("graph", "batch"),
}
"""What users of other tools give as a value -> what it is here: the first that an option has."""

FOREIGN_TOPICS = {
    "calibration": "images",
    "engine": "engines",
    "fp16": "precision",
    "int8": "precision",
    "jetson": "engines",
    "tensorrt": "engines",
    "trt": "engines",
}
"""A word that help is asked about -> the topic that it is part of."""

FOREIGN_COMMANDS = {
    "benchmark": "bench",
    "build": "export",
    "check": "doctor",
    "checks": "doctor",
    "convert": "export",
    "demo": "predict",
    "diff": "compare",
    "download": "fetch",
    "env": "doctor",
    "evaluate": "eval",
    "infer": "predict",
    "inference": "predict",
    "info": "inspect",
    "list": "models",
    "profile": "bench",
    "ptq": "quantize",
    "quantise": "quantize",
    "run": "predict",
    "show": "inspect",
    "test": "eval",
    "track": "predict",
    "val": "eval",
    "validate": "eval",
    "version": "--version",
}
"""What other tools call a command -> its name here."""

TASKS = {"classify", "detect", "keypoints", "obb", "pose", "segment"}
"""What other tools name before the command; here the model's file says it."""

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".mp4", ".png", ".webp"}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like ``word``; None if none is like it."""
    known = list(known)
    if len(word) >= 3 and (begun := [each for each in known if each.startswith(word)]):
        return min(begun, key=len)
    found = get_close_matches(word.lower(), known, n=1, cutoff=0.76)
    return found[0] if found else None


def option_for(typed: str, known: Collection[str]) -> str | None:
    """Return what the command has for an option that it does not know, such as ``--precision fp16`` for ``--half``.

    Args:
        typed: the option as typed, with its dashes or without them.
        known: the options of the command, with their dashes.
    """
    name = _plain(typed)
    long = {each.removeprefix("--"): each for each in known if each.startswith("--")}
    if name in long:
        return long[name]
    joined = {each.replace("-", ""): options for each, options in FOREIGN.items()}
    for option in joined.get(name.replace("-", ""), ()):
        if option.split()[0] in known:
            return option
    meant = nearest(name, long)
    return None if meant is None else long[meant]


def value_for(typed: str, known: Iterable[str]) -> str | None:
    """Return what an option has for a value that it does not know, such as ``tensorrt`` for ``engine``."""
    known = list(known)
    foreign = (value for value in FOREIGN_VALUES.get(typed.lower(), ()) if value in known)
    return next(foreign, None) or nearest(typed, known)


def _plain(typed: str) -> str:
    """Return an option's name in lower case, without its dashes and its value, its words joined by dashes."""
    return typed.partition("=")[0].lstrip("-").replace("_", "-").lower()


def command_for_file(word: str) -> str:
    """Return the command line that a file alone was probably meant to be; empty: the word is no file."""
    from deploykit.runtime.files import exists

    suffix = Path(word).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return f"deploykit predict MODEL {word}"
    is_file = is_model_file(word) or (exists(Path(word)) and Path(word).is_file())
    return f"deploykit inspect {word}" if is_file else ""


def command_for(word: str, known: Collection[str]) -> str:
    """Return the command line that begins with a mistyped or foreign name of a command; empty: none is like it."""
    meant = FOREIGN_COMMANDS.get(word.lower(), "")
    if not (meant in known or meant.startswith("--")):
        meant = nearest(word, known) or ""
    return f"deploykit {meant}" if meant else ""


def is_model_file(word: str) -> bool:
    """Whether a word looks like the file of a model."""
    from deploykit.spec import CHECKPOINT_SUFFIXES, ENGINE_SUFFIXES

    return Path(word).suffix.lower() in (".onnx", *ENGINE_SUFFIXES, *CHECKPOINT_SUFFIXES)
