"""NAFNet: restoration of images and of RAW mosaics (deblurring, denoising), and its local form (TLC).

Originals: arXiv 2204.04676, megvii-research/NAFNet (MIT); TLC: arXiv 2112.04491, megvii-research/TLC (Apache-2.0).
Layout, keys and numbers are facts taken over; the code is ours. State dicts of the original (BasicSR's ``params`` and
``params_ema``) load unchanged, of any width and any numbers of blocks: they are read from the tensors.

A network is a U-Net: a 3 x 3 convolution, stages of blocks with a strided convolution between them, and back with
1 x 1 convolutions and pixel shuffles, where the skips are added; what comes out is added to the image. It takes any
size: zeros are added on the right and below up to a multiple of what the stages halve, and cut off again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import UsageError
from deploykit.models.family import Family
from deploykit.models.fuse import shared_copy
from deploykit.models.layers.naf import BoxMean, FixedAttention, NafBlock, naf_blocks
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.models.registry import ReferenceModel, Rewrite
from deploykit.numerals import typed_number
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

WEIGHTS_LICENCE = "MIT code of Megvii; the data sets have terms of their own"

SIZE = 256  # pixels per side of the crops that the published weights were trained on
TLC_BASE = 1.5  # the window of TLC in training sizes
MAX_STAGES = 8  # far beyond any real network, so that a hostile file builds nothing large


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
    "nafnet_w32_gopro": GOPRO,  # motion blur
    "nafnet_w64_gopro": replace(GOPRO, width=64),
    "nafnet_w64_reds": replace(GOPRO, width=64),  # motion blur in compressed videos
    "nafnet_w32_sidd": SIDD,  # the noise of phone cameras
    "nafnet_w64_sidd": replace(SIDD, width=64),
    "nafnet_w32_raw": replace(SIDD, channels=4),  # RAW mosaics: red, two greens and blue, packed at half the size
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

    def random_weights(self, gain: float) -> None:
        """A correction of the image, and not another image."""
        self.ending.weight.data.mul_(0.05)


def _stage(channels: int, count: int, config: NafnetConfig) -> nn.Sequential:
    blocks = (NafBlock(channels, config.wide * channels, config.wide_ffn * channels) for _ in range(count))
    return nn.Sequential(*blocks)


def with_local_pool(network: Nafnet, train_size: int = SIZE, base: float = TLC_BASE) -> Nafnet:
    """The network whose channel attentions see a window around each pixel instead of the whole image (TLC).

    The network was trained on crops and has never seen the global mean of a large image. The window is
    ``base`` times as large as the crops: 384 >> level pixels for crops of 256. The weights are the same.

    Args:
        network: trained with global means; it is not changed.
        train_size: pixels per side of the crops that it was trained on.
        base: the window in crops.

    Raises:
        UsageError: no window is left at the deepest level.
    """
    if train_size < network.multiple:
        raise UsageError(f"training crops have at least {network.multiple} pixels per side, got {train_size}")
    if not base > 0:
        raise UsageError(f"the window of TLC is a positive multiple of the crop size, got {base}")
    padded = train_size + -train_size % network.multiple
    new = shared_copy(network)
    for level, block in new.levels():
        window = int((padded >> level) * int(base * train_size) // train_size)
        assert isinstance(block.sca, nn.Sequential)
        block.sca = nn.Sequential(BoxMean(max(window, 1)), block.sca[1])
    return new


def with_frozen_pool(network: Nafnet, image: Tensor) -> Nafnet:
    """The network with its channel attentions frozen to those of ``image``.

    Its output at a pixel then depends on the receptive field alone, as that of a convolution does, so images can be
    restored in tiles without a seam. This separates the seam that a tile's own mean causes from that of its border.

    Args:
        network: is not changed.
        image: ``(1, C, H, W)``; a single image, because an attention belongs to one.

    Raises:
        UsageError: there is more than one image.
    """
    if len(image) != 1:
        raise UsageError(f"channel attentions are frozen for one image, got {len(image)}")
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
    """How many pixels to each side an output pixel depends on while the channel attentions are frozen.

    Counted from the layout, and never too small: every 3 x 3 convolution reaches one pixel of its level further; what
    comes back from a coarser level lies anywhere in a cell of it.
    """
    deepest = len(network.encoders)
    reach = 2  # intro and ending
    for level, _ in network.levels():
        reach += 1 << level
    return reach + sum(1 << level for level in range(1, deepest + 1))


class NafnetFamily(Family[NafnetConfig]):
    """NAFNet by the original's keys."""

    name = "NAFNet"
    variants = VARIANTS
    signature = frozenset({"intro.weight", "ending.weight", "middle_blks.0.conv1.weight"})

    def config_of(self, shapes: CheckpointShapes) -> NafnetConfig:
        stages = min(shapes.count_layers("downs."), MAX_STAGES)
        width, channels, *_ = shapes.weight_shape("intro")
        inner, ffn = shapes.weight_shape("middle_blks.0.conv1"), shapes.weight_shape("middle_blks.0.conv4")
        return NafnetConfig(
            width=width,
            encoders=tuple(shapes.count_layers(f"encoders.{i}.") for i in range(stages)),
            middle=shapes.count_layers("middle_blks."),
            decoders=tuple(shapes.count_layers(f"decoders.{i}.") for i in range(stages)),
            channels=channels,
            wide=max(inner[0] // inner[1], 1),
            wide_ffn=max(ffn[0] // ffn[1], 1),
        )

    def network(self, config: NafnetConfig) -> Nafnet:
        return Nafnet(config)

    def spec(self, config: NafnetConfig, names: tuple[str, ...] | None) -> ModelSpec:
        """See :meth:`Family.spec`; there are no classes."""
        canvas = InputSpec(
            size=(SIZE, SIZE),
            channels=config.channels,
            mean=(0.0,) * config.channels,
            std=(1.0,) * config.channels,
            fit=Fit(kind="tile" if config.channels == 4 else "pad", stride=1, step=1 << len(config.encoders)),
        )
        return ModelSpec("restore", canvas, DenseOutput(name="image"))

    def assumed(self, config: NafnetConfig, shapes: CheckpointShapes) -> tuple[str, ...]:
        return ("layer norms with an eps of 1e-06, as NAFNet has them: no tensor tells",)

    def name_of(self, config: NafnetConfig) -> str:
        blocks = "-".join(map(str, (*config.encoders, config.middle, *config.decoders)))
        channels = f"-{config.channels}ch" if config.channels != 3 else ""
        return self.variant_of(config) or f"nafnet-w{config.width}-{blocks}{channels}"

    def build(self, variant: str, num_classes: int | None) -> ReferenceModel:
        """See :meth:`Family.build`; a number of classes is refused."""
        if num_classes is not None:
            raise UsageError(f"{variant.replace('_', '-')} restores images and has no classes")
        return super().build(variant, None)

    def rewrites(self, config: NafnetConfig) -> dict[str, Rewrite]:
        return {"tlc": _tlc}

    def loaded(self, config: NafnetConfig, network: nn.Module, shapes: CheckpointShapes) -> ReferenceModel:
        """With a note where another variant has the same layout."""
        model = super().loaded(config, network, shapes)
        names = (name.replace("_", "-") for name, known in VARIANTS.items() if known == config)
        same = [name for name in names if name != model.name]
        if not same:
            return model
        return replace(model, notes=(f"{' and '.join(same)} has the same layout: no tensor tells which of them it is",))


def _tlc(network: nn.Module, argument: str) -> nn.Module:
    """``--rewrite tlc``, or ``tlc:192`` for weights that were trained on crops of 192 pixels."""
    assert isinstance(network, Nafnet)
    side = typed_number(argument) if argument else SIZE
    if side is None:
        raise UsageError(f"tlc:N takes the side of the crops that the weights were trained on, got {argument!r}")
    return with_local_pool(network, side)


FAMILY = NafnetFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
