"""YOLOv6: 0.1, 0.2 and 0.3/0.4, with three levels and with four, RepVGG and QARepVGG; any width, depth and classes.

Papers: arXiv 2209.02976 (0.2), arXiv 2301.05586 (0.3), arXiv 2212.01593 (the ``qa`` models). Original:
meituan/YOLOv6, tags 0.1.0 to 0.4.1 (GPL-3.0). Graphs, keys and numbers are facts taken over; the code is ours. State
dicts of the originals load unchanged.

Names: ``yolov6n`` is the current release (0.3 and 0.4 have one graph), ``yolov6n-v2`` that of 0.2, ``yolov6n-v1`` that
of 0.1, ``yolov6n6`` has four levels, ``yolov6n-qa`` is made for quantization.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import COCO_CLASSES
from deploykit.models.families.yolov6.checkpoint import described, filled, is_yolov6, normalised, refuse_relatives
from deploykit.models.families.yolov6.config import REG_MAX, Scale, YOLOv6Config
from deploykit.models.families.yolov6.network import YOLOv6
from deploykit.models.families.yolov6.rep_vgg import QARepVGG
from deploykit.models.registry import ReferenceModel, register_variants
from deploykit.models.yolo_graph.from_checkpoint import untold
from deploykit.spec import Fit, InputSpec, ModelSpec, RawDetections, Thresholds

FAMILY = "YOLOv6"
WEIGHTS_LICENCE = "GPL-3.0"

_TWO_THIRDS = 2 / 3
_N, _S = Scale(0.33, 0.25), Scale(0.33, 0.50)
_M = Scale(0.60, 0.75, hidden=_TWO_THIRDS, reg_max=REG_MAX)
_L = Scale(1.0, 1.0, "conv", hidden=0.5, activation="silu", reg_max=REG_MAX)
_CURRENT = {"n": _N, "s": _S, "m": _M, "l": _L}

VARIANTS: dict[str, Scale] = {
    **{f"yolov6{size}": scale for size, scale in _CURRENT.items()},
    **{f"yolov6{size}6": replace(scale, levels=4) for size, scale in _CURRENT.items()},
    **{f"yolov6{size}_qa": replace(_CURRENT[size], block="qarepvgg", mean=True) for size in "nsm"},
    **{f"yolov6{size}_v2": replace(scale, generation=2) for size, scale in _CURRENT.items()},
    "yolov6t_v2": Scale(0.33, 0.375, generation=2),
    "yolov6l_relu_v2": replace(_L, block="repvgg", activation="relu", generation=2),
    **{f"yolov6{size}_v1": replace(_CURRENT[size], generation=1) for size in "ns"},
    "yolov6t_v1": Scale(0.25, 0.50, generation=1),
}
"""The registered ones."""

_ALSO = {
    "yolov6t_v2": Scale(0.25, 0.50, generation=2),  # of the published size; the published description is another's
    "yolov6n_base": replace(_N, block="conv", reg_max=REG_MAX),
    "yolov6s_base": Scale(0.70, 0.50, "conv", hidden=0.5, reg_max=REG_MAX, cspsppf=True),
    "yolov6m_base": Scale(0.80, 0.75, "conv", hidden=0.5, reg_max=REG_MAX),
    "yolov6l_base": replace(_L, activation="relu"),
}
"""What is recognised by its tensors too."""


def reference_of(
    network: YOLOv6, name: str, classes: Sequence[str] | None, notes: tuple[str, ...] = ()
) -> ReferenceModel:
    """A network with its spec; ``name`` is the registered one or what a custom model is called."""
    head = network.head
    side = 640 if head.num_levels == 3 else 1280
    spec = ModelSpec(
        task="detect",
        input=InputSpec(size=(side, side), fit=Fit(stride=max(head.stride))),
        output=RawDetections(cls=(5, head.columns)),
        classes=tuple(classes) if classes else tuple(f"class {i}" for i in range(head.num_classes)),
        # Of the project's own inference: 0.25 in 0.1, 0.4 in its later versions.
        thresholds=Thresholds(conf=0.25 if network.config.objectness else 0.4, iou=0.45, max_det=1000),
    )
    return ReferenceModel(name.replace("_", "-"), FAMILY, network, spec, notes)


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    network = YOLOv6(VARIANTS[name].config(num_classes or len(COCO_CLASSES)))
    return reference_of(network, name, COCO_CLASSES if network.head.num_classes == len(COCO_CLASSES) else None)


def _about(name: str) -> str:
    scale = VARIANTS[name]
    releases = {1: "0.1", 2: "0.2", 4: "0.3 and 0.4"}[scale.generation]
    size = "640 px" if scale.levels == 3 else "1280 px, four levels"
    return f"{name.replace('yolov6', 'YOLOv6').replace('_', '-')}, {size}: releases {releases}."


register_variants(__name__, VARIANTS, _build, _about)


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build the model a checkpoint is of, from the shapes of its tensors; None when it is not of this family.

    Raises:
        CheckpointError: it is another model of the project, or no detector's.
    """
    if not is_yolov6(checkpoint):
        return None
    plain, dropped = normalised(checkpoint)
    refuse_relatives(plain)
    config = described(plain)
    pickled = bool(checkpoint.modules)
    name, config = _recognised(config, pickled=pickled)
    network, changes = filled(plain, config, name.replace("_", "-"))
    classes, unnamed = _classes(checkpoint, network)
    model = reference_of(network, name, classes, (*dropped, *changes, *unnamed))
    return model if pickled else model.assuming(*_assumptions(network, model.name))


def _recognised(config: YOLOv6Config, *, pickled: bool) -> tuple[str, YOLOv6Config]:
    """The variant that has this configuration; without pickled modules, with what its tensors leave open."""
    for name, published in _candidates(config):
        if _without_choices(published) != _without_choices(config):
            continue
        if not pickled:
            return name, replace(config, activation=published.activation, mean=published.mean)
        if (published.activation, published.mean) == (config.activation, config.mean):
            return name, config
    if pickled:
        return "yolov6_custom", config
    return "yolov6_custom", replace(config, activation="relu", mean=config.block == "qarepvgg")


def _candidates(config: YOLOv6Config) -> Iterator[tuple[str, YOLOv6Config]]:
    """Every variant as published, then at the width that the deepest stage has."""
    every = [*VARIANTS.items(), *_ALSO.items()]
    for name, scale in every:
        yield name, scale.config(config.num_classes)
    width = config.stages[-1].width / 1024
    for name, scale in every:
        yield f"{name}_width_{width:g}", replace(scale, width=width).config(config.num_classes)


def _without_choices(config: YOLOv6Config) -> YOLOv6Config:
    """Only what shows in tensors, and is no matter of the version that wrote them."""
    return replace(config, activation="relu", mean=False, biased=False)


def _assumptions(network: YOLOv6, name: str) -> tuple[str, ...]:
    """What a file without pickled modules leaves open."""
    said = (untold(network, name),)
    if any(isinstance(m, QARepVGG) for m in network.modules()):
        return (*said, "the second version of QARepVGG, as published: no tensor tells")
    return said


def _classes(checkpoint: Checkpoint, network: YOLOv6) -> tuple[Sequence[str] | None, tuple[str, ...]]:
    """The names that a checkpoint brings, which those of the original do not; and what to say."""
    names, expected = checkpoint.names, network.head.num_classes
    if names is not None:
        if len(names) == expected:
            return names, ()
        return None, (f"it names {len(names)} classes and has {expected}: they are numbered instead",)
    if expected == len(COCO_CLASSES):
        return COCO_CLASSES, (f"it names no classes: its {expected} are taken for those of COCO",)
    return None, ()
