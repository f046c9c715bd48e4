"""U-Net: a class for every pixel; of any width, depth, number of channels and classes.

Originals: arXiv 1505.04597; milesial/Pytorch-UNet (GPL-3.0), whose keys, layer graph and preprocessing are facts taken
over; the code is ours. Its state dicts load unchanged, with the ``mask_values`` among them; those of two other projects
load through maps of their keys (:mod:`deploykit.models.families.unet.key_layouts`).

A checkpoint is a plain state dict, so everything is read from its tensors. ``(B, C, H, W)`` becomes logits
``(B, classes, H, W)``. One class means one logit, of the foreground against the background.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.families.unet.key_layouts import KeyLayout, layout_of
from deploykit.models.families.unet.network import CLASSES, DEPTH, WIDTH, Level, UNetConfig, build_unet, least_side
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, register_variants
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

FAMILY = "U-Net"
WEIGHTS_LICENCE = "GPL-3.0 (milesial/Pytorch-UNet, no separate statement)"

SIZES = {
    "joined": (640, 959),  # the images of the published weights, 1280x1918, halved
    "pooled": (224, 224),
    "valid": (388, 388),  # a tile of the paper, which is mirrored to 572
}
MAX_DEPTH, MAX_CHANNELS, MAX_KERNEL = 12, 65_536, 31  # far beyond any real one, so that a hostile file builds nothing
MAX_SOLVED = 64  # channels of images whose means are looked for
EXPLAINED = 0.99  # of a first batch norm's means: from here on they are those of the images' channels


def reference_of(
    config: UNetConfig,
    network: nn.Module,
    *,
    classes: tuple[str, ...] | None = None,
    scale: float = 1.0 / 255.0,
    notes: tuple[str, ...] = (),
) -> ReferenceModel:
    """A network with its spec; without ``classes`` they are numbered."""
    if classes is None:
        numbered = tuple(f"class {i}" for i in range(config.num_classes))
        classes = numbered if config.num_classes > 1 else ("background", "foreground")
    # The original halves an image of any shape, so shapes are kept: its own images fill this canvas to the edge.
    stride = 2**config.depth if config.kind == "pooled" else 1
    fit = Fit(stride=stride, shrink="area", least=least_side(config))
    if config.kind == "valid":
        fit = Fit(kind="pad", stride=stride, least=least_side(config))  # the paper takes images as they are
    height, width = (max(-(-side // stride) * stride, fit.least) for side in SIZES[config.kind])
    canvas = InputSpec(
        size=(height, width),
        channels=config.channels,
        scale=scale,
        mean=(0.0,) * config.channels,
        std=(1.0,) * config.channels,
        fit=fit,
    )
    spec = ModelSpec(task="segment", input=canvas, output=DenseOutput(name="logits"), classes=classes)
    return ReferenceModel(_name_of(config), FAMILY, network, spec, notes)


VARIANTS = {
    "unet": UNetConfig.published(num_classes=CLASSES),
    "unet_bilinear": UNetConfig.published(num_classes=CLASSES, bilinear=True),
    "unet_2015": replace(UNetConfig.published(channels=1, num_classes=CLASSES), kind="valid"),
}
"""That enlarges by transposed convolutions, bilinearly, and that of the paper: for grey images, without padding."""


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    config = replace(VARIANTS[name], num_classes=num_classes or CLASSES)
    car = config.kind == "joined" and config.num_classes == CLASSES
    return reference_of(config, build_unet(config), classes=("background", "car") if car else None)


def _about(name: str) -> str:
    config = VARIANTS[name]
    return f"{name.replace('_', '-')}, {'x'.join(map(str, SIZES[config.kind]))}, {config.channels} channels."


register_variants(__name__, VARIANTS, _build, _about)


def _name_of(config: UNetConfig) -> str:
    """A variant's name; behind it what is not as published."""
    if config.kind == "pooled":
        return f"unet-pooled-width-{config.contracting[0].out}"
    valid = config.kind == "valid"
    name = "unet-2015" if valid else "unet-bilinear" if config.bilinear else "unet"
    width, depth = config.contracting[0].out, config.depth
    name += f"-depth-{depth}" * (depth != DEPTH) + f"-width-{width}" * (width != WIDTH)
    regular = UNetConfig.published(bilinear=config.bilinear, width=width, depth=depth)
    levels = (config.contracting, config.expanding) == (regular.contracting, regular.expanding)
    return name + f"-channels-{config.channels}" * (config.channels != (1 if valid else 3)) + "-custom" * (not levels)


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build the U-Net that a state dict is of, from the keys and shapes of its tensors.

    Returns None when it has the keys of no project that is known.

    Raises:
        WeightsMismatchError: a tensor is missing, is left over or has another shape.
        CheckpointError: its sizes are not those of any network.
    """
    layout = layout_of(checkpoint.state_dict)
    if layout is None:
        return None
    config = _Tensors(checkpoint, layout).config()
    with torch.device("meta"):
        network = build_unet(config)
    key_map = {key: layout.own_name(key, config.depth) for key in network.state_dict()}
    load_weights(network, checkpoint, checkpoint.float32(), _name_of(config), key_map=key_map)
    network.requires_grad_(False)
    classes, notes = _classes(checkpoint, config.num_classes)
    scale, said = _scale(network)
    model = reference_of(config, network, classes=classes, scale=scale, notes=(*layout.notes, *said, *notes))
    corners = ", enlarged bilinearly with aligned corners" if config.bilinear else ""
    return model.assuming(f"ReLU{corners}, as the original has it: no tensor tells")


class _Tensors:
    """Reads a layer graph off the tensors of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, layout: KeyLayout) -> None:
        self.checkpoint, self.layout = checkpoint, layout
        self.depth = min(layout.depth(checkpoint.state_dict), MAX_DEPTH)

    def config(self) -> UNetConfig:
        """The layer graph whose tensors these are, as far as those tell that are looked at here."""
        pooled, numbers = self.layout.kind == "pooled", range(1, self.depth + 1)
        if not self.depth:
            raise CheckpointError(
                f"{self.checkpoint.path} has the first and the last layer of a U-Net and no level between them: "
                "it is of a changed model, or of another network (deploykit inspect shows it)"
            )
        if pooled:
            contracting = [self._level(f"down{i}.conv") for i in numbers]
            expanding = [self._level(f"up{i}.conv", f"up{i}") for i in numbers]
            first, classes = "down1.conv", expanding[-1].rise
        else:
            first, classes = "inc", self._size("outc.conv.weight", 0)
            contracting = [self._level(path) for path in ("inc", *(f"down{i}.maxpool_conv.1" for i in numbers))]
            transposed = self.layout.kind == "valid" or self._has("up1.up.weight")
            expanding = [self._level(f"up{i}.conv", f"up{i}" if transposed else None) for i in numbers]
        channels = self._size(f"{first}.double_conv.0.weight", 1)
        kind, skip_first = self.layout.kind, self.layout.skip_first
        return UNetConfig(channels, classes, tuple(contracting), tuple(expanding), kind, skip_first)

    def _has(self, key: str) -> bool:
        return self.layout.own_name(key, self.depth) in self.checkpoint.state_dict

    def _level(self, path: str, up: str | None = None) -> Level:
        convs = f"{path}.double_conv"
        rise = self._size(f"{up}.up.weight", 1) if up else 0
        kernel = self._size(f"{convs}.0.weight", 2) if self.layout.kind == "pooled" else 3
        second = 2 if self.layout.kind == "valid" else 3
        return Level(self._size(f"{convs}.0.weight", 0), self._size(f"{convs}.{second}.weight", 0), rise, kernel)

    def _size(self, key: str, axis: int) -> int:
        own = self.layout.own_name(key, self.depth)
        tensor = self.checkpoint.state_dict.get(own)
        most = MAX_CHANNELS if axis < 2 else MAX_KERNEL
        bad = tensor is None or tensor.ndim != 4 or not 1 <= tensor.shape[axis] <= most
        if tensor is None or bad or (axis >= 2 and tensor.shape[axis] % 2 == 0):  # an even kernel has no middle
            found = "is missing" if tensor is None else f"is {list(tensor.shape)}"
            raise CheckpointError(
                f"{self.checkpoint.path} is of a U-Net, but {own} {found}: expected the weights of a convolution; "
                "it is of a changed model, or of another network (deploykit inspect shows it)"
            )
        return tensor.shape[axis]


def _classes(checkpoint: Checkpoint, num_classes: int) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Names of the classes, from the file's own or the values of its masks, and what there is to say about them.

    ``mask_values`` of the original: the value, or the colour, that each class has in the masks it was trained on.
    """
    count = max(num_classes, 2)
    names, values = checkpoint.names, checkpoint.metadata.get("mask_values")
    if names is not None and len(names) == num_classes == 1:
        names = ("background", *names)
    if names is not None and len(names) != count:
        return None, (f"it names {len(names)} classes and has {count}: they are numbered instead",)
    if names is not None or not isinstance(values, list | tuple):
        return names, ()
    if len(values) != count:
        return None, (f"it has mask values of {len(values)} classes and {count} classes: they are numbered instead",)
    if list(values) == list(range(count)):
        return None, ()  # the numbers of the classes
    return tuple(f"mask {_written(value)}" for value in values), ()


def _written(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_written(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _scale(network: nn.Module) -> tuple[float, tuple[str, ...]]:
    """The factor of pixels, and a note where the tensors tell of images that no factor makes.

    The original takes pixels of 0 to 1; other networks are given what they were trained on.
    """
    means = channel_means(network)
    if means is None or all(0.0 <= mean <= 1.0 for mean in means):
        return 1.0 / 255.0, ()
    values = ", ".join(f"{mean:.3g}" for mean in means)
    if all(0.0 <= mean <= 255.0 for mean in means):
        return 1.0, (f"it was trained on pixels of 0 to 255 (the means of its channels were {values})",)
    return 1.0, (
        f"it was trained on standardised images, whose channels had the means {values}; the file does not tell "
        "how they were standardised: values are taken as they are given",
    )


def channel_means(network: nn.Module) -> tuple[float, ...] | None:
    """The mean of each channel of the images that a network was trained on, from its first batch norm.

    The mean of a convolution's output is its bias and the channels' means times the sums of its weights, but for the
    images' borders: with many outputs and few channels that can be solved. None: the statistics do not say so.
    """
    first = next(m for m in network.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.Conv2d))
    conv, norm = first[0], first[1]
    assert isinstance(conv, nn.Conv2d)
    sums = conv.weight.detach().double().sum((2, 3))
    if not isinstance(norm, nn.BatchNorm2d) or conv.in_channels > min(len(sums) // 4, MAX_SOLVED):
        return None
    assert norm.running_mean is not None
    means = norm.running_mean.double() - (0.0 if conv.bias is None else conv.bias.detach().double())
    if not bool(sums.isfinite().all() and means.isfinite().all()):
        return None
    solved = torch.linalg.lstsq(sums, means[:, None]).solution
    rest, whole = float((sums @ solved - means[:, None]).square().sum()), float(means.square().sum())
    if not rest <= (1.0 - EXPLAINED) * whole:
        return None
    return tuple(float(mean) for mean in solved[:, 0])
