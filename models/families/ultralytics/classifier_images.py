"""How a classifier of the ultralytics package is given its images, which changed with release 8.1.

Facts from the published descriptions (the package is AGPL-3.0); the code is ours. Up to release 8.0.120 the middle
square is cut out and scaled by OpenCV, and ImageNet's mean and deviation are taken off; since 8.1.0 the shorter side is
scaled as Pillow does it, the middle is cut out, and the pixels stay as they are. A file has the steps of its training,
which tell; where it has none, the release that wrote it does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from deploykit.models.checkpoint.module_tree import STEP
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD
from deploykit.spec import Fit, InputSpec

__all__ = ["ClassifierImages", "classifier_images"]

LEGACY, CURRENT = "legacy", "current"
"""The names of the two ways, of which one is asked for where the other is assumed."""

SIDE = 224
MOST_SIDE = 8192
MOST_SHRUNK = 16  # how often the canvas fits into the scaled side; 1 in every file that is known
MAX_NAMED, MAX_NAME = 8, 40

LAST_OLD, FIRST_NEW = (8, 0, 120), (8, 1, 0)
"""The last release that is known to prepare images in the older way, and the first of the newer one."""

Filter = Literal["bilinear", "bicubic", "lanczos"]
FILTERS: Mapping[Any, Filter] = {
    "bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos", 2: "bilinear", 3: "bicubic", 1: "lanczos",
}  # fmt: skip
"""torchvision's names of filters, and Pillow's numbers."""

BETWEEN = (
    "images are prepared as releases up to 8.0.120 of the package do it, and release {} wrote the file; if it did it "
    f"as 8.1.0 does: --preprocessing {CURRENT}"
)
UNTOLD = f"if a release of the package before 8.1.0 trained it: --preprocessing {LEGACY}"
BY_STEPS = "images are prepared by the steps that its file holds: {}"
BY_RELEASE = "images are prepared as release {} of the package, which wrote the file, does it"
OTHER_STEPS = "the steps that its file holds are not those of the package, and are not used: {}"


@dataclass(frozen=True)
class ClassifierImages:
    """The input of a classifier.

    Attributes:
        canvas: the input.
        notes: what is to be said about it.
        known: its file tells; otherwise one way is assumed.
        others: the other way by its name, where one is assumed.
    """

    canvas: InputSpec
    notes: tuple[str, ...] = ()
    known: bool = True
    others: Mapping[str, InputSpec] = field(default_factory=dict)


def classifier_images(side: int, channels: int, checkpoint: Checkpoint | None) -> ClassifierImages:
    """The input of a classifier, and what is to be said about it.

    Args:
        side: pixels a side, where its file's steps do not tell; 0: nothing tells.
        channels: of the image.
        checkpoint: where the network is from; None: it was built by its name.
    """
    old, new = older_input(side or SIDE, channels), newer_input(side or SIDE, channels)
    if checkpoint is None:
        return ClassifierImages(new, known=False, others={LEGACY: old})
    steps = _steps(checkpoint)
    named = ", ".join(str(step[STEP]).rpartition(".")[2][:MAX_NAME] for step in steps[:MAX_NAMED])
    told = _by_steps(steps, new, old) if steps else None
    if told is not None:
        return ClassifierImages(told, (BY_STEPS.format(named),))
    notes = (OTHER_STEPS.format(named),) if steps else ()
    text, release = _release(checkpoint)
    if release is None:
        return ClassifierImages(new, (*notes, UNTOLD), known=False, others={LEGACY: old})
    if LAST_OLD < release < FIRST_NEW:
        return ClassifierImages(old, (*notes, BETWEEN.format(text)), known=False, others={CURRENT: new})
    return ClassifierImages(old if release <= LAST_OLD else new, (*notes, BY_RELEASE.format(text)))


def older_input(side: int, channels: int) -> InputSpec:
    """The middle square, scaled by OpenCV, with ImageNet's mean and deviation."""
    fit = Fit(kind="crop", stride=1, crop_share=1.0, crop_first=True)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
    return InputSpec(size=(side, side), channels=channels, mean=mean, std=std, fit=fit)


def newer_input(side: int, channels: int) -> InputSpec:
    """The middle of the image whose shorter side was scaled as Pillow does it; pixels of 0 to 1."""
    fit = Fit(kind="crop", stride=1, crop_share=1.0, resample="bilinear")
    return InputSpec(size=(side, side), channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels, fit=fit)


def _release(checkpoint: Checkpoint) -> tuple[str, tuple[int, ...] | None]:
    """The release that wrote the file, as it says it and as numbers; None: it does not say it."""
    said = checkpoint.metadata.get("version")
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})", said) if type(said) is str else None
    return (found[0], tuple(map(int, found.groups()))) if found else ("", None)


def _steps(checkpoint: Checkpoint) -> list[Mapping[str, Any]]:
    """The steps that the pickled network holds, in order; none: it holds none that could be read."""
    root = checkpoint.modules[0].attributes if checkpoint.modules else {}
    whole = root.get("transforms")
    steps = whole.get("transforms") if isinstance(whole, Mapping) and STEP in whole else None
    if not isinstance(steps, (list, tuple)) or not all(isinstance(s, Mapping) and STEP in s for s in steps):
        return []
    return list(steps)


def _by_steps(steps: list[Mapping[str, Any]], new: InputSpec, old: InputSpec) -> InputSpec | None:
    """The input by the steps; None: they are none of the package's, or hold what no input has."""
    known = {str(step[STEP]).rpartition(".")[2]: step for step in steps}
    resize, crop, normalise = (known.get(kind) for kind in ("Resize", "CenterCrop", "Normalize"))
    numbers = _numbers(normalise or {}, new.channels)
    if numbers is None or len(known) != len(steps) or set(known) - {"Resize", "CenterCrop", "ToTensor", "Normalize"}:
        return None
    if resize is None:
        ours = crop is not None and str(crop[STEP]).startswith("ultralytics.")
        return replace(old, mean=numbers[0], std=numbers[1]) if ours else None
    scaled, named = _sides(resize.get("size")), resize.get("interpolation", "bilinear")
    named = named.lower() if isinstance(named, str) else named
    resample = FILTERS.get(named) if type(named) in (str, int) else None
    cut = _sides(crop.get("size")) if crop is not None else scaled
    if not scaled or not cut or resample is None or (crop is None and len(scaled) == 1):
        return None
    size = (cut[0], cut[-1])
    if len(scaled) == 2 and scaled == size:  # each side by itself
        fit = Fit(kind="resize", stride=1, resample=resample)
    elif len(scaled) == 1 and size[0] == size[1] <= scaled[0] <= MOST_SHRUNK * size[0]:
        fit = replace(new.fit, crop_share=_share(size[0], scaled[0]), resample=resample)
    else:
        return None
    return replace(new, size=size, mean=numbers[0], std=numbers[1], fit=fit)


def _share(size: int, scaled: int) -> float:
    """The share of the scaled side, from which that side follows again."""
    share = size / scaled
    return share if math.floor(size / share) == scaled else math.nextafter(share, 0.0)


def _numbers(step: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and the deviation of each channel; None: they are none."""
    found = []
    for name, default in (("mean", 0.0), ("std", 1.0)):
        values = step.get(name, default)
        values = list(values) if isinstance(values, (list, tuple)) else [values]
        values *= channels if len(values) == 1 else 1
        if len(values) != channels or not all(type(v) in (int, float) and 0.0 <= v <= 1.0 for v in values):
            return None
        found.append(tuple(float(v) for v in values))
    return (found[0], found[1]) if all(found[1]) else None


def _sides(size: Any) -> tuple[int, ...]:
    """One number of pixels or (height, width); ``()``: it is neither."""
    sides = size if isinstance(size, (list, tuple)) else [size]
    fits = len(sides) in (1, 2) and all(type(side) is int and 1 <= side <= MOST_SIDE for side in sides)
    return tuple(sides) if fits else ()
