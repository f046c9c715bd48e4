"""The checkpoints that the original projects released, in one table.

The sources were read in the projects' own repositories: WongKinYiu/yolov7, READMEs of the branches ``main``,
``pose``, ``mask``, ``u6`` and ``u7`` (all of release v0.1); ultralytics/yolov5, README and ``utils/downloads.py`` at
v6.2, v7.0 and later; meituan/YOLOv6, the READMEs at every tag and of its configurations. Megvii-BaseDetection/YOLOX,
README: the files of release 0.1.1rc0, and the older ones of the storage's release 0.0.1. The table lists only files
that one of these sources names. It leaves out YOLOv5's EfficientNet and ResNet files, the Darknet files (``*.weights``)
of YOLOv7's release, which nothing here reads, and the files of TexasInstruments/edgeai-yolox, whose README names none
of their addresses. The files of ultralytics/assets are the exception: their names and releases are those that the
package's users know, the publisher gives no digests, and none of these addresses was tried.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from deploykit.errors import NotFoundError

__all__ = ["CIRCULATING", "RELEASED", "Release", "released_file"]


@dataclass(frozen=True)
class Release:
    """One released checkpoint.

    Attributes:
        url: its official address.
        what: a short description.
        licence: who published it, and under which licence.
        sha256: the publisher's digest, 64 hexadecimal digits; None: the publisher gives none.
        built: whether deploykit can build the model; files of other models can be fetched and inspected.
        notice: what is said before the download; empty: nothing.
    """

    url: str
    what: str
    licence: str
    sha256: str | None = None
    built: bool = True
    notice: str = ""


_YOLOV7 = "https://github.com/WongKinYiu/yolov7/releases/download/v0.1/"
_YOLOV6 = "https://github.com/meituan/YOLOv6/releases/download/"
_YOLOV5 = "https://github.com/ultralytics/yolov5/releases/download/"
_YOLOX = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/"
_YOLOX_OLD = "https://github.com/Megvii-BaseDetection/storage/releases/download/0.0.1/"
_ASSETS = "https://github.com/ultralytics/assets/releases/download/"
_BY_YOLOX = "published by Megvii; the project is under Apache-2.0"
_BY_YOLOV7 = "published by the YOLOv7 authors under GPL-3.0"
_BY_YOLOV6 = "published by Meituan under GPL-3.0"
_BY_YOLOV5 = "published by Ultralytics under GPL-3.0; later versions of YOLOv5 are under AGPL-3.0"

_BY_ULTRALYTICS = "published by Ultralytics under AGPL-3.0"
_AGPL = (
    "these weights are published by Ultralytics under AGPL-3.0, which also has conditions for what is only used over a "
    "network; deploykit contains none of them, and the licence of deploykit does not cover them"
)

_DEPLOY, _TRAINING = "COCO detector, deploy graph", "COCO detector, training graph"
_CLASSIFIER, _INSTANCES = "ImageNet classifier", "COCO instance segmentation"

_YOLOV7_FILES: dict[str, tuple[str, bool]] = {
    **{f"yolov7{v}": (_DEPLOY, True) for v in ("-tiny", "", "x", "-w6", "-e6", "-d6", "-e6e")},
    **{f"yolov7{v}_training": (_TRAINING, True) for v in ("", "x", "-w6", "-e6", "-d6", "-e6e")},
    "yolov7-w6-pose": ("COCO persons with 17 keypoints", True),
    "yolov7-w6-person": ("persons without keypoints; yolov7-w6-pose was trained from it", True),
    "yolov7-mask": (f"{_INSTANCES} (branch mask)", False),
    "yolov7-seg": (f"{_INSTANCES} (branch u7)", False),
    "yolov7-seg-dev": (f"{_INSTANCES}, other losses and labels (branch u7)", False),
    "yolov7x-seg": (f"{_INSTANCES} (branch u7)", False),
    "yolov7-cls": (f"{_CLASSIFIER} (branch u7)", False),
    "yolov7-clsn": (f"{_CLASSIFIER} (branch u7)", False),
    "yolov7-u6": ("COCO detector without anchors (branch u6)", False),
}
_YOLOV5_FILES: dict[str, tuple[str, bool]] = {
    **{f"yolov5{size}{p6}": ("COCO detector", True) for p6 in ("", "6") for size in "nsmlx"},
    **{f"yolov5{size}-seg": (_INSTANCES, True) for size in "nsmlx"},
    **{f"yolov5{size}-cls": (_CLASSIFIER, True) for size in "nsmlx"},
}
_YOLOX_FILES = {
    **{name: (f"yolox_{name}", f"yolox_{name}") for name in ("nano", "s", "m", "l", "x")},
    "tiny": ("yolox_tiny", "yolox_tiny_32dot8"),
    "darknet53": ("yolox_darknet", "yolox_darknet53"),
}
"""Variant -> the name of its file in release 0.1.1rc0, and in 0.0.1."""
_TASKS = {
    "": "COCO detector",
    "-seg": _INSTANCES,
    "-pose": "COCO persons with 17 keypoints",
    "-obb": "DOTA detector of oriented boxes",
    "-cls": _CLASSIFIER,
}


def _of_the_package(names: Iterable[str], tag: str = "v8.3.0") -> dict[str, Release]:
    """Releases of ultralytics/assets; what a file is of follows from its name."""
    found = {}
    for name in names:
        task = next((end for end in _TASKS if end and end in name), "")
        found[name] = Release(f"{_ASSETS}{tag}/{name}.pt", _TASKS[task], _BY_ULTRALYTICS, notice=_AGPL)
    return found


_PACKAGE_FILES = {
    **_of_the_package(f"yolov8{size}{task}" for task in _TASKS for size in "nsmlx"),
    **_of_the_package(["yolov8x-pose-p6"]),
    **_of_the_package(f"yolov9{size}" for size in "tsmce"),
    **_of_the_package(f"yolov9{size}-seg" for size in "ce"),
    **_of_the_package(f"yolov10{size}" for size in "nsmblx"),
    **_of_the_package(f"yolo11{size}{task}" for task in _TASKS for size in "nsmlx"),
    **_of_the_package(f"yolo12{size}" for size in "nsmlx"),
    **_of_the_package((f"yolo26{size}{task}" for task in _TASKS for size in "nsmlx"), "v8.4.0"),
    **_of_the_package(f"yolov5{size}{p6}u" for p6 in ("", "6") for size in "nsmlx"),
    **_of_the_package(["yolov3u", "yolov3-sppu", "yolov3-tinyu"]),
}
_LEGACY = "COCO detector, as released with 0.0.1: --preprocessing legacy"

_YOLOV6_TAGS: dict[str, dict[str, tuple[str, bool]]] = {
    "0.4.0": {
        **{f"yolov6{size}{p6}": ("COCO detector", True) for p6 in ("", "6") for size in "nsml"},
        **{f"yolov6lite_{size}": ("COCO detector for phones", False) for size in "sml"},
        **{f"yolov6{size}_mbla": ("COCO detector with MBLA blocks", False) for size in "sm"},
        # The README lists these as the L and X models with MBLA blocks, despite their file names.
        **{f"yolov6{size}_base": ("COCO detector with MBLA blocks", False) for size in "lx"},
    },
    "0.3.0": {
        **{f"yolov6{size}{p6}": ("COCO detector", True) for p6 in ("", "6") for size in "nsml"},
        **{f"yolov6{size}_qa": ("COCO detector for quantisation (QARepVGG)", True) for size in "nsm"},
        **{f"yolov6{size}_base": ("COCO detector of plain convolutions", True) for size in "nsml"},
    },
    "0.2.0": {f"yolov6{size}": ("COCO detector", True) for size in ("n", "t", "s", "m", "l", "l_relu")},
    "0.1.0": {f"yolov6{size}": ("COCO detector", True) for size in "nts"},
}
"""Newest first: a name without a tag is the newest file of that name."""


def _yolov6_releases() -> dict[str, Release]:
    found: dict[str, Release] = {}
    for tag, files in _YOLOV6_TAGS.items():
        for file, (what, built) in files.items():
            name = file.replace("_", "-")
            older = name in found
            release = Release(f"{_YOLOV6}{tag}/{file}.pt", what, _BY_YOLOV6, built=built)
            if older:
                name, release = f"{name}@{tag}", replace(release, what=f"{what}, as released with {tag}")
            found[name] = release
    return found


_YOLOV6_FILES = _yolov6_releases()

RELEASED: dict[str, Release] = {
    **{
        name.replace("_", "-"): Release(f"{_YOLOV7}{name}.pt", what, _BY_YOLOV7, built=built)
        for name, (what, built) in _YOLOV7_FILES.items()
    },
    **{
        name: Release(f"{_YOLOV5}v7.0/{name}.pt", what, _BY_YOLOV5, built=built)
        for name, (what, built) in _YOLOV5_FILES.items()
    },
    **{name: release for name, release in _YOLOV6_FILES.items() if "@" not in name},
    **{
        f"{name}@{tag}": Release(f"{_YOLOV5}{tag}/{name}.pt", f"{what}, as released with {tag}", _BY_YOLOV5)
        for tag in ("v6.2", "v6.1")
        for name, (what, _) in _YOLOV5_FILES.items()
        if "-" not in name  # the detectors
    },
    **{name: release for name, release in _YOLOV6_FILES.items() if "@" in name},
    **{
        f"yolox-{name}": Release(f"{_YOLOX}{new}.pth", "COCO detector", _BY_YOLOX)
        for name, (new, _) in _YOLOX_FILES.items()
    },
    **{
        f"yolox-{name}@0.0.1": Release(f"{_YOLOX_OLD}{old}.pth", _LEGACY, _BY_YOLOX)
        for name, (_, old) in _YOLOX_FILES.items()
    },
    **_PACKAGE_FILES,
}
"""Name -> release. ``NAME@TAG`` is the file of an older release of the project."""

CIRCULATING: dict[str, tuple[tuple[int, str], tuple[int, str]]] = {
    "yolov7-w6-pose": ((161_137_109, "b8c6cc021ed4"), (161_114_789, "8394a97f5a52")),
}
"""Size in bytes and first digits of the SHA-256 of two files with one name; the publisher gives no digest.

It is unknown which of the two the authors released, so they are told apart but not judged.
"""


def released_file(name: str) -> Release:
    """Return the release with this name; an underscore is accepted for a hyphen.

    Raises:
        NotFoundError: no released weights have this name.
    """
    release = RELEASED.get(name.replace("_", "-"))
    if release is None:
        close = difflib.get_close_matches(name.replace("_", "-"), RELEASED, n=3)
        hint = f": did you mean {' or '.join(close)}?" if close else ";"
        raise NotFoundError(f"no released weights are named {name!r}{hint} deploykit fetch --list shows all")
    return release
