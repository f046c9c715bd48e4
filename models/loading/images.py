"""How images are prepared for a checkpoint's network: as asked, as the file tells, or as assumed, which is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from deploykit.errors import UsageError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD
from deploykit.models.load_options import Interpolation, LoadOptions
from deploykit.models.loading.file_facts import told
from deploykit.spec import InputSpec, ModelSpec

__all__ = ["OF_IMAGES", "is_of_images", "with_images_of", "with_images_of_file"]

OF_IMAGES = ("mean", "std", "crop", "interpolation")
"""The options of loading that say how images are prepared."""

BY_PROJECT = ("detect", "keypoints")
"""Tasks whose networks are told by their layers, and with them the project and its way to prepare images."""

SAME_NUMBERS = ("restore",)
"""Tasks whose output is in the numbers of the input, so that another mean would be another output."""


def with_images_of_file(spec: ModelSpec, checkpoint: Checkpoint, *, known: bool = False) -> ModelSpec:
    """The spec with images as asked, as the checkpoint tells, or as the spec has them, with what is assumed.

    ``known``: what the spec has is known and not assumed.

    Raises:
        UsageError: what is asked for is no mean, deviation, share or filter of this network.
    """
    facts = LoadOptions()
    if spec.task not in BY_PROJECT:
        facts = _facts(spec.input, checkpoint)
    asked = checkpoint.loading
    used = LoadOptions(
        mean=facts.mean if asked.mean is None else asked.mean,
        std=facts.std if asked.std is None else asked.std,
        crop=facts.crop if asked.crop is None else asked.crop,
        interpolation=facts.interpolation if asked.interpolation is None else asked.interpolation,
    )
    done = with_images_of(spec, used)
    if known or spec.task in BY_PROJECT:
        return done
    return replace(done, assumptions=(*done.assumptions, *_assumed(done, used)))


def is_of_images(assumption: str) -> bool:
    """Whether what is assumed is how images are prepared: such a sentence names the options that choose."""
    return any(f"choose with --{name}" in assumption for name in OF_IMAGES)


def with_images_of(spec: ModelSpec, asked: LoadOptions) -> ModelSpec:
    """The spec with the images that are asked for.

    Raises:
        UsageError: what is asked for is no mean, deviation, share or filter of this network.
    """
    canvas, fit = spec.input, spec.input.fit
    if spec.task in SAME_NUMBERS and (asked.mean or asked.std):
        raise UsageError("--mean and --std have no meaning where an image is restored in the numbers of the input")
    if fit.kind != "crop" and (asked.crop is not None or asked.interpolation is not None):
        raise UsageError(
            f"--crop and --interpolation: the images of this network are placed by {fit.kind}, not cropped"
        )
    top = 255.0 if canvas.scale == 1.0 else 1.0
    if asked.mean is not None:
        mean = _per_channel("mean", asked.mean, canvas.channels)
        if not all(0.0 <= value <= top for value in mean):
            raise UsageError(f"--mean has values of 0 to {top:g} for this network, got {_list(mean)}")
        canvas = replace(canvas, mean=mean)
    if asked.std is not None:
        std = _per_channel("std", asked.std, canvas.channels)
        if not all(0.0 < value <= top for value in std):
            raise UsageError(f"--std has values over 0 and up to {top:g} for this network, got {_list(std)}")
        canvas = replace(canvas, std=std)
    if asked.crop is not None:
        if not 0.0 < asked.crop <= 1.0:
            raise UsageError(f"--crop is a share of the shorter side, over 0 and up to 1, got {asked.crop:g}")
        fit = replace(fit, crop_share=asked.crop)
    if asked.interpolation is not None:
        if asked.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            raise UsageError(f"--interpolation must be one of {known}, got {asked.interpolation!r}")
        fit = replace(fit, resample=asked.interpolation)
    return replace(spec, input=replace(canvas, fit=fit))


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise UsageError(f"--{name} has one value, or one of each of the {channels} channels, got {len(values)}")
    return tuple(values) * (channels if len(values) == 1 else 1)


def _facts(canvas: InputSpec, checkpoint: Checkpoint) -> LoadOptions:
    """What the arguments in the file tell: those of timm, torchvision, DeiT, MMPretrain."""
    mean, std = (_numbers(told(checkpoint, name), canvas.channels) for name in ("mean", "std"))
    if mean and std and canvas.scale != 1.0 and max(mean) > 1.0:
        mean, std = tuple(value / 255.0 for value in mean), tuple(value / 255.0 for value in std)
    if not _fits(mean, std, 255.0 if canvas.scale == 1.0 else 1.0):
        mean = std = None
    if canvas.fit.kind != "crop":
        return LoadOptions(mean=mean, std=std)
    return LoadOptions(mean=mean, std=std, crop=_crop(checkpoint), interpolation=_filter(checkpoint))


def _fits(mean: Sequence[float] | None, std: Sequence[float] | None, top: float) -> bool:
    return all(0.0 <= value <= top for value in mean or ()) and all(0.0 < value <= top for value in std or ())


def _numbers(found: tuple[Any, str] | None, channels: int) -> tuple[float, ...] | None:
    values = found[0] if found is not None else None
    if not isinstance(values, (list, tuple)) or len(values) not in (1, channels):
        return None
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return None
    return tuple(float(value) for value in values)


def _crop(checkpoint: Checkpoint) -> float | None:
    """timm's and DeiT's share, or torchvision's two sizes, whose quotient it is."""
    share = _number(checkpoint, "crop_pct", "eval_crop_ratio")
    crop, resize = (_number(checkpoint, name) for name in ("val_crop_size", "val_resize_size"))
    if share is None and crop is not None and resize:
        share = crop / resize
    return share if share is not None and 0.0 < share <= 1.0 else None


def _number(checkpoint: Checkpoint, *names: str) -> float | None:
    found = told(checkpoint, *names)
    value = found[0] if found is not None else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _filter(checkpoint: Checkpoint) -> Interpolation | None:
    found = told(checkpoint, "interpolation")
    kinds: dict[str, Interpolation] = {kind: kind for kind in get_args(Interpolation)}
    return kinds.get(str(found[0]).lower()) if found is not None else None


def _assumed(spec: ModelSpec, used: LoadOptions) -> list[str]:
    """What of the images neither the user nor the file said."""
    canvas, said = spec.input, []
    if used.mean is None or used.std is None:
        said.append(f"{_normalised(canvas)}: no tensor tells" + _choose(spec))
    if canvas.fit.kind == "crop" and (used.crop is None or used.interpolation is None):
        kind = "OpenCV's filter" if canvas.fit.resample == "opencv" else f"Pillow's {canvas.fit.resample} filter"
        parts = (
            (used.crop, f"the middle {canvas.fit.crop_share:g} of an image's shorter side", "--crop"),
            (used.interpolation, f"scaled by {kind}", "--interpolation"),
        )
        left = [(what, flag) for value, what, flag in parts if value is None]
        what, flags = ", ".join(what for what, _ in left), " and ".join(flag for _, flag in left)
        said.append(f"{what}: no tensor tells; choose with {flags}")
    return said


def _choose(spec: ModelSpec) -> str:
    return "" if spec.task in SAME_NUMBERS else "; choose with --mean and --std"


def _normalised(canvas: InputSpec) -> str:
    order = {1: "grey", 3: canvas.colour.upper()}.get(canvas.channels, f"{canvas.channels} channels")
    pixels = "pixels of 0 to 255" if canvas.scale == 1.0 else "pixels of 0 to 1"
    if not any(canvas.mean) and all(value == 1.0 for value in canvas.std):
        return f"{order} {pixels}, without a mean and a deviation"
    whose = " (ImageNet's)" if (canvas.mean, canvas.std) == (IMAGENET_MEAN, IMAGENET_STD) else ""
    return f"{order} {pixels} with the mean {_list(canvas.mean)} and the deviation {_list(canvas.std)}{whose}"


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
