"""CMT as FlyEgle/CMT-pytorch builds it from the paper's first version: another network than the authors' own.

Its layout, keys and numbers (of a project without a licence, arXiv 2107.06263) are facts taken over, the code is ours.
State dicts load unchanged. ``(B, 3, H, W)`` becomes logits ``(B, classes)``; H and W are multiples of 32.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.class_names import class_names
from deploykit.models.families.cmt.flyegle_layers import ConvGeluBN, FlyegleBlock
from deploykit.models.family import Family, classifier_spec, imagenet_input
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.spec import Fit, ModelSpec

WEIGHTS_LICENCE = "none is given (FlyEgle/CMT-pytorch)"

HEADS, REDUCTIONS = (1, 2, 4, 8), (8, 4, 2, 1)
STRIDE = 32
MAX_SIDE = 128  # of the first stage's map, in cells


@dataclass(frozen=True)
class FlyegleConfig:
    """A layer graph. ``size``: the side of the images that the tables are for; ``hidden``: channels inside a block."""

    size: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    hidden: tuple[int, ...]
    stem: int = 16
    features: int = 1280
    num_classes: int = 1000
    biased: bool = True


def _known(size: int, dim: int, depths: tuple[int, ...], ratio: float, stem: int) -> FlyegleConfig:
    dims = tuple(dim << i for i in range(4))
    return FlyegleConfig(size, dims, depths, tuple(int(ratio * d) for d in dims), stem)


VARIANTS = {
    "cmt_flyegle_ti": _known(160, 46, (2, 2, 10, 2), 3.6, 16),
    "cmt_flyegle_xs": _known(192, 52, (3, 3, 12, 3), 3.8, 16),
    "cmt_flyegle_s": _known(224, 64, (3, 3, 16, 3), 4.0, 32),
    "cmt_flyegle_b": _known(256, 76, (4, 4, 20, 4), 4.0, 38),
}


class Stem(nn.Module):
    """Half the size by the first of three convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv3x3_gelu_bn_downsample = ConvGeluBN(3, width, 3, 2)
        self.conv3x3_gelu_bn_list = nn.Sequential(*(ConvGeluBN(width, width, 3) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3x3_gelu_bn_list(self.conv3x3_gelu_bn_downsample(x))
        return out


class Aggregation(nn.Module):
    """Half the size and another width."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.patch_aggregation = nn.Conv2d(channels, dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.patch_aggregation(x)
        return out


class Stage(nn.Module):
    """Blocks of one size."""

    def __init__(self, config: FlyegleConfig, i: int) -> None:
        super().__init__()
        side = config.size // 4 >> i
        block = (config.dims[i], HEADS[i], config.hidden[i], REDUCTIONS[i], side)
        self.block_list = nn.Sequential(*(FlyegleBlock(*block, biased=config.biased) for _ in range(config.depths[i])))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_list(x)
        return out


class FlyegleCmt(nn.Module):
    """``(B, 3, H, W)`` to logits ``(B, classes)``; the sides are multiples of 32."""

    def __init__(self, config: FlyegleConfig) -> None:
        super().__init__()
        self.stem = Stem(config.stem)
        channels = config.stem
        for i, dim in enumerate(config.dims):
            self.add_module(f"pool{i + 1}", Aggregation(channels, dim))
            self.add_module(f"stage{i + 1}", Stage(config, i))
            channels = dim
        self.fc = nn.Linear(channels, config.features)
        self.classifier = nn.Linear(config.features, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for i in range(1, 5):
            x = self.get_submodule(f"stage{i}")(self.get_submodule(f"pool{i}")(x))
        out: Tensor = self.classifier(self.fc(x.mean((2, 3))))
        return out

    def random_weights(self, gain: float) -> None:
        """Positions that matter, so that lost ones show."""
        for name, parameter in self.named_parameters():
            if name.endswith("position_embeeding"):
                nn.init.normal_(parameter, std=0.5)


class FlyegleFamily(Family[FlyegleConfig]):
    """The CMT of FlyEgle by its keys; its size is that of its tables of positions."""

    name = "CMT of FlyEgle"
    variants = VARIANTS
    signature = frozenset({"stage1.block_list.0.LMHSA.kv.weight"})

    def config_of(self, shapes: CheckpointShapes) -> FlyegleConfig:
        path = shapes.checkpoint.path
        table = shapes.shape("stage1.block_list.0.LMHSA.position_embeeding", 2)
        side = (table[0] + 1) // 2
        if table != (2 * side - 1, 2 * side - 1) or side % 8 or side > MAX_SIDE:
            raise CheckpointError(
                f"{path}: the first table of positions is {list(table)}, expected 2 n - 1 rows and columns for maps of "
                f"n cells per side, n a multiple of 8 and at most {MAX_SIDE}"
            )
        stages = range(1, 5)
        dims = tuple(shapes.weight_shape(f"pool{i}.patch_aggregation")[0] for i in stages)
        if any(dim % heads for dim, heads in zip(dims, HEADS, strict=True)):
            raise CheckpointError(
                f"{path}: its stages have {dims} channels, expected multiples of {HEADS}, their heads"
            )
        return FlyegleConfig(
            size=4 * side,
            dims=dims,
            depths=tuple(shapes.count_layers(f"stage{i}.block_list.") for i in stages),
            hidden=tuple(shapes.weight_shape(f"stage{i}.block_list.0.IRFFN.conv3x3_dw.conv")[0] for i in stages),
            stem=shapes.weight_shape("pool1.patch_aggregation")[1],
            features=shapes.weight_shape("fc", 2)[0],
            num_classes=shapes.weight_shape("classifier", 2)[0],
            biased="stage1.block_list.0.LMHSA.q.bias" in shapes.shapes,
        )

    def network(self, config: FlyegleConfig) -> FlyegleCmt:
        return FlyegleCmt(config)

    def spec(self, config: FlyegleConfig, names: tuple[str, ...] | None) -> ModelSpec:
        fit = Fit(kind="crop", stride=STRIDE, crop_share=0.875, resample="bilinear")
        return classifier_spec(imagenet_input(config.size, fit), class_names(config.num_classes, names))

    def assumed(self, config: FlyegleConfig, shapes: CheckpointShapes) -> tuple[str, ...]:
        return (
            f"{', '.join(map(str, HEADS))} heads in its stages, as published: no tensor tells",
            "GELU and layer norms with an eps of 1e-05, as the original has them: no tensor tells",
        )

    def name_of(self, config: FlyegleConfig) -> str:
        known = self.variant_of(config, "size")
        if known is None:
            return f"cmt-flyegle-d{config.dims[0]}-{'-'.join(map(str, config.depths))}"
        return known if config.size == VARIANTS[known.replace("-", "_")].size else f"{known}-{config.size}"


FAMILY = FlyegleFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
