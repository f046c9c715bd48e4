"""YOLOX: nano, tiny, s, m, l, x and Darknet-53; the ``ti_lite`` forms; YOLOX-Pose; and other widths and depths of them.

Originals: arXiv 2107.08430, Megvii-BaseDetection/YOLOX (Apache-2.0); for ``ti_lite`` and YOLOX-Pose arXiv 2204.06806,
TexasInstruments/edgeai-yolox (BSD-3-Clause and Apache-2.0). Layer graphs, keys, preprocessing and numbers are facts
taken over; the code is ours. State dicts of the originals load unchanged.

A checkpoint is a plain state dict, so everything is read from its tensors: the widths, the numbers of blocks, classes
and keypoints, whether its convolutions are depthwise, and what it begins with. What no tensor tells is as published:
SiLU, but ReLU in ``ti_lite`` and leaky ReLU with Darknet-53.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import COCO_CLASSES
from deploykit.models.families.yolox.backbone import CspDarknet, Darknet53, FeaturePyramid, PathAggregation
from deploykit.models.families.yolox.head import YoloxHead, YoloxKeypointHead
from deploykit.models.layers.conv import Conv
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, register_variants
from deploykit.models.yolo_graph.as_saved import fold_as_saved, folded_note
from deploykit.models.yolo_graph.from_checkpoint import untold
from deploykit.spec import COCO_KEYPOINTS, Fit, InputSpec, KeypointSpec, ModelSpec, RawDetections, Thresholds

FAMILY = "YOLOX"
WEIGHTS_LICENCE = "Apache-2.0; ti_lite and pose: BSD-3-Clause code of Texas Instruments"

BASE = 64  # channels of the first layer at width 1; 32 in Darknet-53
LEGACY_MEAN, LEGACY_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_BLOCKS, MAX_CHANNELS = 64, 65_536  # far beyond any real one, so that a hostile file builds nothing large
RAW_PIXELS = 5.0  # the mean pixel of any images of 0 to 255 is above this, that of scaled ones below

_DEPTHS = {1: 0.33, 2: 0.67, 3: 1.0, 4: 1.33}
"""Bottlenecks in the first stage -> the depth multiple by which the original calls that."""


@dataclass(frozen=True)
class YoloxConfig:
    """A layer graph of the family.

    ``base``: channels of the first layer. ``blocks``: bottlenecks in the backbone's first stage and in each layer of
    the neck (with Darknet-53, whose neck has none: residuals in its four stages). ``stem``: ``focus``, or ``conv`` in
    its place (``ti_lite``, with ReLU).
    """

    base: int
    blocks: tuple[int, ...]
    num_classes: int
    num_keypoints: int = 0
    depthwise: bool = False
    stem: str = "focus"
    darknet53: bool = False

    def activation(self) -> nn.Module:
        """A new activation of the kind that the variant was published with."""
        if self.darknet53:
            return nn.LeakyReLU(0.1)
        return nn.ReLU() if self.stem == "conv" else nn.SiLU()


@dataclass(frozen=True)
class Variant:
    """What a variant changes: multiples of depth and width, and the kinds of its parts."""

    depth: float
    width: float
    size: int = 640
    depthwise: bool = False
    ti_lite: bool = False
    pose: bool = False
    darknet53: bool = False

    def config(self, num_classes: int, *, num_keypoints: int = 17, width: float | None = None) -> YoloxConfig:
        """Its layer graph; ``width`` replaces its multiple."""
        multiple = self.width if width is None else width
        blocks = round(3 * self.depth)
        return YoloxConfig(
            base=int((BASE // 2 if self.darknet53 else BASE) * multiple),
            blocks=(2, 8, 8, 4) if self.darknet53 else (max(blocks, 1), blocks),
            num_classes=num_classes,
            num_keypoints=num_keypoints if self.pose else 0,
            depthwise=self.depthwise,
            stem="conv" if self.ti_lite or self.darknet53 else "focus",
            darknet53=self.darknet53,
        )


_SMALL = {"nano": (0.33, 0.25, 416), "tiny": (0.33, 0.375, 416), "s": (0.33, 0.50, 640), "m": (0.67, 0.75, 640)}
VARIANTS: dict[str, Variant] = {
    **{f"yolox_{name}": Variant(*sizes, depthwise=name == "nano") for name, sizes in _SMALL.items()},
    "yolox_l": Variant(1.0, 1.0),
    "yolox_x": Variant(1.33, 1.25),
    "yolox_darknet53": Variant(1.0, 1.0, darknet53=True),
    **{f"yolox_{name}_ti_lite": Variant(*sizes, ti_lite=True) for name, sizes in _SMALL.items()},
    "yolox_s_pose": Variant(0.33, 0.50, pose=True),
    "yolox_s_pose_ti_lite": Variant(0.33, 0.50, ti_lite=True, pose=True),
}


class Yolox(nn.Module):
    """A backbone with its neck, and a head: images ``(B, 3, H, W)`` to rows ``(B, N, columns)``."""

    def __init__(self, backbone: PathAggregation | FeaturePyramid, head: YoloxHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        rows: Tensor = self.head(*self.backbone(images))
        return rows

    @property
    def first(self) -> Conv:
        """The convolution that sees the image."""
        return next(m for m in self.modules() if isinstance(m, Conv))

    @property
    def random_gain(self) -> float:
        """The gain of random weights: activations that pass half of the values unchanged become chaotic earlier."""
        return {nn.SiLU: 1.35, nn.ReLU: 1.2, nn.LeakyReLU: 1.05}[type(self.first.act)]

    def random_weights(self, gain: float) -> None:
        """A first layer that was trained on pixels of 0 to 255, as its statistics would then say."""
        first = self.first
        first.conv.weight.data /= 255.0
        assert isinstance(first.bn, nn.BatchNorm2d)
        assert first.bn.running_mean is not None
        first.bn.running_mean += 114.0 * first.conv.weight.data.sum((1, 2, 3))


def build_yolox(config: YoloxConfig) -> Yolox:
    """The network of a description, in eval mode, with torch's default weights."""
    act: Callable[[], nn.Module] = config.activation
    base, depthwise = config.base, config.depthwise
    if config.darknet53:
        a, b, c, d = config.blocks
        backbone: PathAggregation | FeaturePyramid = FeaturePyramid(
            Darknet53(base, (a, b, c, d), act=act), base, act=act
        )
        hidden = 8 * base
    else:
        first, neck = config.blocks
        darknet = CspDarknet(base, first, focus=config.stem == "focus", depthwise=depthwise, act=act)
        backbone = PathAggregation(darknet, base, neck, depthwise=depthwise, act=act)
        hidden = 4 * base
    channels = (4 * base, 8 * base, 16 * base)
    if config.num_keypoints:
        head: YoloxHead = YoloxKeypointHead(
            config.num_classes, channels, hidden, config.num_keypoints, depthwise=depthwise, act=act
        )
    else:
        head = YoloxHead(config.num_classes, channels, hidden, depthwise=depthwise, act=act)
    return Yolox(backbone, head).eval()


def reference_of(
    network: Yolox, name: str, classes: tuple[str, ...] | None, size: int, notes: tuple[str, ...] = ()
) -> ReferenceModel:
    """A network with its spec; ``name`` is the registered one, or what tells a custom one apart."""
    head = network.head
    columns, points = 5 + head.num_classes, head.num_keypoints
    keypoints = None
    if points:
        keypoints = COCO_KEYPOINTS if points == len(COCO_KEYPOINTS.names) else KeypointSpec.unnamed(points)
    canvas = InputSpec(
        size=(size, size), colour="bgr", scale=1.0, fit=Fit(stride=32, anchor="top-left", rounding="floor")
    )
    spec = ModelSpec(
        task="keypoints" if keypoints else "detect",
        input=canvas,
        output=RawDetections(cls=(5, columns), keypoints=(columns, head.columns) if points else None),
        classes=classes or tuple(f"class {i}" for i in range(head.num_classes)),
        keypoints=keypoints,
        thresholds=Thresholds(conf=0.25, iou=0.45),  # of the commands in the original's README
    )
    legacy = replace(canvas, colour="rgb", scale=1.0 / 255.0, mean=LEGACY_MEAN, std=LEGACY_STD)
    return ReferenceModel(name.replace("_", "-"), FAMILY, network, spec, notes, {"legacy": legacy})


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    variant = VARIANTS[name]
    count = num_classes or (1 if variant.pose else len(COCO_CLASSES))
    names = {len(COCO_CLASSES): COCO_CLASSES, 1: ("person",) if variant.pose else None}.get(count)
    return reference_of(build_yolox(variant.config(count)), name, names, variant.size)


def _about(name: str) -> str:
    variant = VARIANTS[name]
    people = ": persons with 17 keypoints" if variant.pose else ""
    return f"{name.replace('yolox', 'YOLOX').replace('_', '-')}, {variant.size} px{people}."


register_variants(__name__, VARIANTS, _build, _about)


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build the model that a state dict is of, from the keys and shapes of its tensors.

    Returns None when it is not of this family.

    Raises:
        WeightsMismatchError: a tensor is missing, is left over or has another shape.
        CheckpointError: its sizes are not those of any network.
    """
    state = checkpoint.state_dict
    if not any(key.startswith("head.reg_preds.") for key in state) or "head.stems.0.conv.weight" not in state:
        return None
    config = _recognised(checkpoint)
    name, size = _name_of(config)
    with torch.device("meta"):
        network = build_yolox(config)
    folded = fold_as_saved(network, state)
    load_weights(network, checkpoint, checkpoint.float32(), name.replace("_", "-"))
    network.requires_grad_(False)
    names, notes = checkpoint.names, (*folded_note(folded), *_notes(network, config))
    if names is not None and len(names) != config.num_classes:
        notes = (*notes, f"it names {len(names)} classes and has {config.num_classes}: they are numbered instead")
        names = None
    if names is None and config.num_classes == len(COCO_CLASSES):
        names = COCO_CLASSES  # which the original has in its code, and not in its files
    model = reference_of(network, name, names, size, notes)
    return model.assuming(untold(network, model.name))


def _recognised(checkpoint: Checkpoint) -> YoloxConfig:
    """The layer graph whose tensors these are, as far as those tell that are looked at here."""
    keys = checkpoint.state_dict.keys()

    def outputs(key: str) -> int:
        tensor = checkpoint.state_dict.get(key)
        if tensor is None or tensor.ndim != 4 or not 1 <= len(tensor) <= MAX_CHANNELS:
            found = "is missing" if tensor is None else f"is {list(tensor.shape)}"
            raise CheckpointError(
                f"{checkpoint.path} has the head of a YOLOX, but {key} {found}: expected the weights of a convolution; "
                "it is of a changed model, or of another network (deploykit inspect shows it)"
            )
        return len(tensor)

    def count(pattern: str) -> int:
        """One more than the highest number that stands where the pattern has its group."""
        numbers = (re.match(pattern, key) for key in keys)
        return min(max((int(m[1]) + 1 for m in numbers if m), default=0), MAX_BLOCKS)

    body = r"backbone\.backbone\."
    classes = outputs("head.cls_preds.0.weight")
    values = outputs("head.kpts_preds.0.weight") if any(k.startswith("head.kpts_preds.") for k in keys) else 0
    if values % 3:
        raise CheckpointError(
            f"{checkpoint.path}: head.kpts_preds.0.weight gives {values} values, expected 3 for each keypoint (x, y "
            "and visibility): the file is of another model (deploykit inspect shows it)"
        )
    if any(key.startswith("backbone.out1_cbl.") for key in keys):
        stages = [count(rf"{body}dark{i}\.([0-9]{{1,4}})\.layer1\.") - 1 for i in (2, 3, 4, 5)]
        return YoloxConfig(
            outputs("backbone.backbone.stem.0.conv.weight"),
            tuple(max(n, 0) for n in stages),
            classes,
            values // 3,
            stem="conv",
            darknet53=True,
        )
    focus = not any(key.startswith("backbone.backbone.stem.0.") for key in keys)
    return YoloxConfig(
        base=outputs(f"backbone.backbone.stem.{'conv' if focus else '1'}.conv.weight"),
        blocks=(count(rf"{body}dark2\.1\.m\.([0-9]{{1,4}})\."), count(r"backbone\.C3_p4\.m\.([0-9]{1,4})\.")),
        num_classes=classes,
        num_keypoints=values // 3,
        depthwise="backbone.backbone.dark2.0.dconv.conv.weight" in keys,
        stem="focus" if focus else "conv",
    )


def _name_of(config: YoloxConfig) -> tuple[str, int]:
    """A variant's name and size; a name that says the multiples where there is no such variant."""
    for name, variant in VARIANTS.items():
        same = variant.config(config.num_classes, num_keypoints=config.num_keypoints)
        if same == config:
            return name, variant.size
    parts = ["yolox"]
    if config.darknet53:
        parts += ["darknet53", f"width-{config.base / (BASE // 2):g}"]
    else:
        depth = _DEPTHS.get(config.blocks[0], config.blocks[0] / 3)
        parts += ["pose"] * bool(config.num_keypoints) + ["ti-lite"] * (config.stem == "conv")
        parts += ["depthwise"] * config.depthwise + [f"depth-{depth:.3g}", f"width-{config.base / BASE:g}"]
    return "-".join(parts), 640


def _notes(network: Yolox, config: YoloxConfig) -> tuple[str, ...]:
    """What the original does otherwise, and what the tensors say of the images that they were trained on."""
    notes: tuple[str, ...] = ()
    if config.num_keypoints and config.num_classes > 1:
        notes = (*notes, "the original decodes keypoints right for one class only: with more, ours is what it means")
    pixel = mean_pixel(network) if isinstance(network.first.bn, nn.BatchNorm2d) else RAW_PIXELS
    if pixel < RAW_PIXELS:
        notes = (
            *notes,
            f"it was trained on pixels of mean {pixel:.2g}, not of 0 to 255: if it is of release 0.0.1, or was trained "
            "on images prepared like those, --preprocessing legacy is right for it",
        )
    return notes


def mean_pixel(network: Yolox) -> float:
    """The mean value of the pixels that a network was trained on, from the statistics of its first batch norm.

    The mean of a convolution's output is the mean pixel times the sum of its weights, but for what the images'
    borders and the differences of their colours add. The slope over all channels is that pixel: about 100 for images
    of 0 to 255, about 0 where a mean was taken off.
    """
    first = network.first
    assert isinstance(first.bn, nn.BatchNorm2d)
    assert first.bn.running_mean is not None
    sums = first.conv.weight.detach().double().sum((1, 2, 3))
    square = float(sums @ sums)
    return float(sums @ first.bn.running_mean.detach().double()) / square if square > 0 else 0.0
