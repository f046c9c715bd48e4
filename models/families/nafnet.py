"""NAFNet: restoration of pictures (deblurring, denoising), of RAW mosaics too; and its local form (TLC).

Originals: arXiv 2204.04676, megvii-research/NAFNet (MIT); TLC: arXiv 2112.04491, megvii-research/TLC (Apache-2.0).
Layout, keys and numbers are facts taken over; the code is ours. State dicts of the original (BasicSR's ``params`` and
``params_ema``) load unchanged, of any width and any numbers of blocks: they are read from the tensors.

A network is a U-Net: a 3 x 3 convolution, stages of blocks with a strided convolution between them, and back with
1 x 1 convolutions and pixel shuffles, where the skips are added; what comes out is added to the picture. It takes any
size: zeros are added on the right and below up to a multiple of what the stages halve, and cut off again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.fuse import shared_copy
from deploykit.models.layers.naf import BoxMean, FixedAttention, NafBlock, naf_blocks
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, register_model
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

FAMILY = "NAFNet"
WEIGHTS_LICENCE = "MIT code of Megvii; the data sets have terms of their own"

SIZE = 256  # pixels a side of the crops that the published weights were trained on
TLC_BASE = 1.5  # the window of TLC in training sizes
MAX_BLOCKS, MAX_CHANNELS = 256, 65_536  # far beyond any real one, so that a hostile file builds nothing large


@dataclass(frozen=True)
class NafnetConfig:
    """A layer graph of the family: blocks in each encoder stage, in the middle, and in each decoder stage.

    ``wide``, ``wide_ffn``: channels inside a block's two branches, as a multiple of its own.
    """

    width: int
    encoders: tuple[int, ...]
    middle: int
    decoders: tuple[int, ...]
    channels: int = 3
    wide: int = 2
    wide_ffn: int = 2


GOPRO = NafnetConfig(32, (1, 1, 1, 28), 1, (1, 1, 1, 1))
SIDD = NafnetConfig(32, (2, 2, 4, 8), 12, (2, 2, 2, 2))
VARIANTS = {
    "nafnet_w32_gopro": GOPRO,
    "nafnet_w64_gopro": replace(GOPRO, width=64),
    "nafnet_w64_reds": replace(GOPRO, width=64),
    "nafnet_w32_sidd": SIDD,
    "nafnet_w64_sidd": replace(SIDD, width=64),
    "nafnet_w32_raw": replace(SIDD, channels=4),
}


class Nafnet(nn.Module):
    """``(B, C, H, W)`` to the same, for any H and W."""

    def __init__(self, config: NafnetConfig) -> None:
        super().__init__()
        width = config.width
        self.intro = nn.Conv2d(config.channels, width, 3, padding=1)
        self.ending = nn.Conv2d(width, config.channels, 3, padding=1)
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        self.ups, self.downs = nn.ModuleList(), nn.ModuleList()
        for count in config.encoders:
            self.encoders.append(_stage(width, count, config))
            self.downs.append(nn.Conv2d(width, 2 * width, 2, 2))
            width *= 2
        self.middle_blks = _stage(width, config.middle, config)
        for count in config.decoders:
            self.ups.append(nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.PixelShuffle(2)))
            width //= 2
            self.decoders.append(_stage(width, count, config))

    @property
    def multiple(self) -> int:
        """The sides that the stages see are multiples of this."""
        return 1 << len(self.encoders)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        # Not -width % multiple: torch's exporter takes the negative number for a size.
        right, below = ((self.multiple - side % self.multiple) % self.multiple for side in (width, height))
        padded = functional.pad(images, (0, right, 0, below))
        x = self.intro(padded)
        skips = []
        for stage, down in zip(self.encoders, self.downs, strict=True):
            x = stage(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for stage, up, skip in zip(self.decoders, self.ups, reversed(skips), strict=True):
            x = stage(up(x) + skip)
        restored: Tensor = (self.ending(x) + padded)[:, :, :height, :width]
        return restored

    def levels(self) -> list[tuple[int, NafBlock]]:
        """Every block with the number of halvings before it."""
        deepest = len(self.encoders)
        stages = [*enumerate(self.encoders), (deepest, self.middle_blks)]
        stages += [(deepest - 1 - i, stage) for i, stage in enumerate(self.decoders)]
        return [(level, block) for level, stage in stages for block in naf_blocks(stage)]

    def random_weights(self) -> None:
        """A correction of the picture, and not another picture."""
        self.ending.weight.data.mul_(0.05)


def _stage(channels: int, count: int, config: NafnetConfig) -> nn.Sequential:
    blocks = (NafBlock(channels, config.wide * channels, config.wide_ffn * channels) for _ in range(count))
    return nn.Sequential(*blocks)


def with_local_pool(network: Nafnet, train_size: int = SIZE, base: float = TLC_BASE) -> Nafnet:
    """The network whose channel attentions see a window around each pixel instead of the whole picture (TLC).

    It was trained on crops, so a global mean over a large picture is of a kind that it has never seen. The window is
    ``base`` times as large as the crops: 384 >> level pixels for crops of 256. The weights are the same.

    Args:
        network: trained with global means; it is not changed.
        train_size: pixels a side of the crops that it was trained on.
        base: the window in crops.

    Raises:
        UsageError: no window is left at the deepest level.
    """
    if train_size < network.multiple:
        raise UsageError(f"crops to train on have at least {network.multiple} pixels a side, got {train_size}")
    if not base > 0:
        raise UsageError(f"the window of TLC is a positive multiple of the crops, got {base}")
    padded = train_size + -train_size % network.multiple
    new = shared_copy(network)
    for level, block in new.levels():
        window = int((padded >> level) * int(base * train_size) // train_size)
        assert isinstance(block.sca, nn.Sequential)
        block.sca = nn.Sequential(BoxMean(max(window, 1)), block.sca[1])
    return new


def with_frozen_pool(network: Nafnet, image: Tensor) -> Nafnet:
    """The network with the channel attentions that ``image`` gives, whatever it sees then.

    Its output at a pixel then depends on its receptive field alone, as that of a convolution does: so pictures can be
    restored in tiles without a seam, with the attentions of one run over the whole picture. It is what tells the seam
    of a tile's own mean apart from that of a border.

    Args:
        network: is not changed.
        image: ``(1, C, H, W)``; one picture, because an attention is of one picture.

    Raises:
        UsageError: there is more than one picture.
    """
    if len(image) != 1:
        raise UsageError(f"channel attentions are those of one picture, got {len(image)}")
    found: dict[NafBlock, Tensor] = {}

    def keep(block: NafBlock) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[block] = output.detach()

        return hook

    new = shared_copy(network)
    handles = [block.sca.register_forward_hook(keep(block)) for block in naf_blocks(new)]
    with torch.inference_mode():
        new(image)
    for handle in handles:
        handle.remove()
    for block, values in found.items():
        block.sca = FixedAttention(values.clone())
    return new


def receptive_field(network: Nafnet) -> int:
    """How many pixels to each side an output pixel depends on, where the channel attentions are fixed.

    Counted from the layout, and never too small: every 3 x 3 convolution reaches one pixel of its level further; what
    comes back from a coarser level lies anywhere in a cell of it.
    """
    deepest = len(network.encoders)
    reach = 2  # intro and ending
    for level, _ in network.levels():
        reach += 1 << level
    return reach + sum(1 << level for level in range(1, deepest + 1))


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build a NAFNet from the tensors of a checkpoint; None: it is of another family.

    Raises:
        CheckpointError: it is nearly one. WeightsMismatchError: a tensor does not fit.
    """
    keys = checkpoint.state_dict.keys()
    if not {"intro.weight", "ending.weight"} <= keys or not any(key.startswith("middle_blks.") for key in keys):
        return None
    config = _config_of(checkpoint)
    name, notes = _name_of(config)
    with torch.device("meta"):
        network = Nafnet(config)
    load_weights(network, checkpoint, checkpoint.float32(), name)
    return replace(_reference(name.replace("_", "-"), config, network.eval()), notes=notes)


def _config_of(checkpoint: Checkpoint) -> NafnetConfig:
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.state_dict.items()}

    def shape(key: str) -> tuple[int, ...]:
        found = shapes.get(key, ())
        if len(found) != 4 or not 0 < max(found[:2]) <= MAX_CHANNELS:
            told = f"is {list(found)}" if found else "is missing"
            raise CheckpointError(
                f"{checkpoint.path} has the tensors of a NAFNet, but {key} {told}: expected the weights of a "
                "convolution; the file is damaged or of a changed model (deploykit inspect shows it)"
            )
        return found

    def count(pattern: str) -> int:
        """One more than the highest number that stands where the pattern has its group."""
        numbers = (re.match(pattern, key) for key in shapes)
        return min(max((int(m[1]) + 1 for m in numbers if m), default=0), MAX_BLOCKS)

    number = r"([0-9]{1,4})\."
    stages = min(count(rf"downs\.{number}"), 8)
    width, channels = shape("intro.weight")[:2]
    first = "middle_blks.0"
    inner, ffn = shape(f"{first}.conv1.weight"), shape(f"{first}.conv4.weight")
    return NafnetConfig(
        width=width,
        encoders=tuple(count(rf"encoders\.{i}\.{number}") for i in range(stages)),
        middle=count(rf"middle_blks\.{number}"),
        decoders=tuple(count(rf"decoders\.{i}\.{number}") for i in range(stages)),
        channels=channels,
        wide=max(inner[0] // inner[1], 1),
        wide_ffn=max(ffn[0] // ffn[1], 1),
    )


def _name_of(config: NafnetConfig) -> tuple[str, tuple[str, ...]]:
    for name, known in VARIANTS.items():
        if known == config:
            same = [other.replace("_", "-") for other, k in VARIANTS.items() if k == config and other != name]
            notes = (f"{' and '.join(same)} has the same layout: no tensor tells which of them it is",) if same else ()
            return name, notes
    blocks = "-".join(map(str, (*config.encoders, config.middle, *config.decoders)))
    return f"nafnet-w{config.width}-{blocks}" + (f"-{config.channels}ch" if config.channels != 3 else ""), ()


def _reference(name: str, config: NafnetConfig, network: Nafnet) -> ReferenceModel:
    canvas = InputSpec(
        size=(SIZE, SIZE),
        channels=config.channels,
        mean=(0.0,) * config.channels,
        std=(1.0,) * config.channels,
        fit=Fit(kind="tile" if config.channels == 4 else "pad", stride=1, step=network.multiple),
    )
    spec = ModelSpec("restore", canvas, DenseOutput(name="image"))
    return ReferenceModel(name, FAMILY, network, spec, rewrites={"tlc": _tlc})


def _tlc(network: nn.Module, argument: str) -> nn.Module:
    """``--rewrite tlc``, or ``tlc:192`` for weights that were trained on crops of 192 pixels."""
    assert isinstance(network, Nafnet)
    if argument and not (argument.isascii() and argument.isdecimal()):
        raise UsageError(f"tlc:N takes the side of the crops that the weights were trained on, got {argument!r}")
    return with_local_pool(network, int(argument or SIZE))


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    shown = name.replace("_", "-")
    if num_classes is not None:
        raise UsageError(f"{shown} restores pictures and has no classes")
    config = VARIANTS[name]
    return _reference(shown, config, Nafnet(config).eval())


@register_model
def nafnet_w32_gopro(*, num_classes: int | None = None) -> ReferenceModel:
    """Width 32, for motion blur."""
    return _build("nafnet_w32_gopro", num_classes)


@register_model
def nafnet_w64_gopro(*, num_classes: int | None = None) -> ReferenceModel:
    """Width 64, for motion blur."""
    return _build("nafnet_w64_gopro", num_classes)


@register_model
def nafnet_w64_reds(*, num_classes: int | None = None) -> ReferenceModel:
    """Width 64, for motion blur in compressed videos: the layout of nafnet-w64-gopro."""
    return _build("nafnet_w64_reds", num_classes)


@register_model
def nafnet_w32_sidd(*, num_classes: int | None = None) -> ReferenceModel:
    """Width 32, for the noise of phone cameras."""
    return _build("nafnet_w32_sidd", num_classes)


@register_model
def nafnet_w64_sidd(*, num_classes: int | None = None) -> ReferenceModel:
    """Width 64, for the noise of phone cameras."""
    return _build("nafnet_w64_sidd", num_classes)


@register_model
def nafnet_w32_raw(*, num_classes: int | None = None) -> ReferenceModel:
    """The layout of nafnet-w32-sidd for RAW mosaics: red, two greens and blue, packed as four channels of half size."""
    return _build("nafnet_w32_raw", num_classes)
