"""FCN-32s, 16s and 8s on VGG16, and ParseNet on the same trunk: the class of each pixel.

Originals: FCN arXiv 1411.4038, shelhamer/fcn.berkeleyvision.org (Caffe), in PyTorch wkentaro/pytorch-fcn (MIT), whose
keys a file has; ParseNet arXiv 1506.04579, weiliu89/caffe (BSD-2-Clause), of which there is no PyTorch form: the keys
of its context module are ours. Layouts and numbers are facts taken over, the code is ours.

The image is padded by 100 pixels, so that the 7 x 7 layer fits even small ones; poolings round up; what comes back
up by transposed convolutions is cut at fixed offsets. So any size goes in, and logits of that size come out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import UsageError
from deploykit.models.class_names import VOC_CLASSES
from deploykit.models.families.fcn.context import GlobalContext, LateContext
from deploykit.models.families.fcn.unpool import BilinearDeconvolution
from deploykit.models.family import Family
from deploykit.models.fuse import shared_copy
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.models.registry import Rewrite
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

WEIGHTS_LICENCE = "unclear: FCN's authors say nothing of their weights, the PyTorch code is MIT"

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
PAD = 100
MEAN = (104.00699, 116.66877, 122.67892)  # blue, green, red
SIZE = 512  # images of PASCAL VOC have up to 500 pixels per side
SCALES = {"pool4": 0.01, "pool3": 0.0001}  # of FCN-8s trained at once


@dataclass(frozen=True)
class FcnConfig:
    """A layer graph of the family.

    ``kind``: ``32s 16s 8s``, or ``parsenet`` and ``parsenet-late``. ``widths``: channels of each convolution of the
    five blocks. ``hidden``: of fc6 and fc7.
    """

    kind: str
    num_classes: int = len(VOC_CLASSES)
    widths: tuple[tuple[int, ...], ...] = VGG16
    hidden: tuple[int, int] = (4096, 4096)


VARIANTS = {
    **{f"fcn{kind}": FcnConfig(kind) for kind in ("32s", "16s", "8s")},
    "parsenet": FcnConfig("parsenet"),
    "parsenet_late": FcnConfig("parsenet-late"),
}


class Trunk(nn.Module):
    """VGG16 up to fc7 as a convolution: blocks of 3 x 3 convolutions with a pooling after each."""

    def __init__(self, config: FcnConfig) -> None:
        super().__init__()
        self.blocks = tuple(len(block) for block in config.widths)
        before = 3
        for i, block in enumerate(config.widths, start=1):
            for j, width in enumerate(block, start=1):
                pad = PAD if (i, j) == (1, 1) else 1
                self.add_module(f"conv{i}_{j}", nn.Conv2d(before, width, 3, padding=pad))
                before = width
        self.fc6 = nn.Conv2d(before, config.hidden[0], 7)
        self.fc7 = nn.Conv2d(config.hidden[0], config.hidden[1], 1)

    def features(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each pooling gives, and fc7."""
        pools = []
        x = images
        for i, count in enumerate(self.blocks, start=1):
            for j in range(1, count + 1):
                x = functional.relu(self.get_submodule(f"conv{i}_{j}")(x))
            x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
            pools.append(x)
        return pools, functional.relu(self.fc7(functional.relu(self.fc6(x))))

    def random_weights(self, gain: float) -> None:
        """A first layer for pixels of 0 to 255, and layers without batch norms through which nothing fades or grows."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=(2.0 / layer.weight[0].numel()) ** 0.5)
        first = self.get_submodule("conv1_1")
        assert isinstance(first, nn.Conv2d)
        first.weight.data /= 64.0


class Fcn(Trunk):
    """``(B, 3, H, W)`` to logits ``(B, classes, H, W)``.

    ``scales``: the factors of pool3 and pool4 before they are scored, in networks trained at once.
    """

    def __init__(self, config: FcnConfig) -> None:
        super().__init__(config)
        classes = config.num_classes
        self.kind = config.kind
        self.scales: dict[str, float] = {}
        self.score_fr = nn.Conv2d(config.hidden[1], classes, 1)
        if config.kind == "32s":
            self.upscore = BilinearDeconvolution(classes, 64, 32)
            return
        self.score_pool4 = nn.Conv2d(config.widths[3][-1], classes, 1)
        self.upscore2 = BilinearDeconvolution(classes, 4, 2)
        if config.kind == "16s":
            self.upscore16 = BilinearDeconvolution(classes, 32, 16)
            return
        self.score_pool3 = nn.Conv2d(config.widths[2][-1], classes, 1)
        self.upscore_pool4 = BilinearDeconvolution(classes, 4, 2)
        self.upscore8 = BilinearDeconvolution(classes, 16, 8)

    def forward(self, images: Tensor) -> Tensor:
        pools, deep = self.features(images)
        score: Tensor = self.score_fr(deep)
        if self.kind == "32s":
            return _cut(self.upscore(score), images, 19)
        score = self.upscore2(score)
        score = score + _cut(self.score_pool4(self._scaled(pools[3], "pool4")), score, 5)
        if self.kind == "16s":
            return _cut(self.upscore16(score), images, 27)
        score = self.upscore_pool4(score)
        score = score + _cut(self.score_pool3(self._scaled(pools[2], "pool3")), score, 9)
        return _cut(self.upscore8(score), images, 31)

    def _scaled(self, x: Tensor, name: str) -> Tensor:
        return x * self.scales[name] if name in self.scales else x


class ParseNet(Trunk):
    """FCN-32s that sees the whole image: fc7 beside its global mean, both of one length, ``(B, 3, H, W)`` to logits
    ``(B, classes, H, W)``. ``parsenet`` joins the two before they are scored, ``parsenet-late`` after."""

    def __init__(self, config: FcnConfig) -> None:
        super().__init__(config)
        late = config.kind == "parsenet-late"
        self.context = (LateContext if late else GlobalContext)(config.hidden[1], config.num_classes)
        self.upscore = BilinearDeconvolution(config.num_classes, 64, 32)

    def forward(self, images: Tensor) -> Tensor:
        _, deep = self.features(images)
        return _cut(self.upscore(self.context(deep)), images, 19)


def _cut(x: Tensor, like: Tensor, offset: int) -> Tensor:
    height, width = like.shape[2:]
    return x[:, :, offset : offset + height, offset : offset + width]


def at_once(network: nn.Module, argument: str) -> nn.Module:
    """``--rewrite at-once``: for an FCN-8s or 16s whose streams were trained together, with scaled poolings."""
    if not isinstance(network, Fcn) or network.kind == "32s" or argument:
        raise UsageError("at-once is a form of FCN-16s and FCN-8s, and takes no argument")
    new = shared_copy(network)
    new.scales = dict(SCALES)
    return new


class FcnFamily(Family[FcnConfig]):
    """FCN and ParseNet by pytorch-fcn's keys."""

    name = "FCN"
    variants = VARIANTS
    signature = frozenset({"conv1_1.weight", "fc6.weight", "fc7.weight"})

    def config_of(self, shapes: CheckpointShapes) -> FcnConfig:
        keys = shapes.shapes.keys()
        kind = "8s" if "score_pool3.weight" in keys else "16s" if "score_pool4.weight" in keys else "32s"
        score = "score_fr"
        if "context.norm_local.scale" in keys:
            kind = "parsenet-late" if "context.score_global.weight" in keys else "parsenet"
            score = "context.score"
        ends = [max(shapes.count_layers(f"conv{i}_"), 2) for i in range(1, 6)]  # convolutions are counted from 1
        return FcnConfig(
            kind,
            shapes.weight_shape(score)[0],
            tuple(
                tuple(shapes.weight_shape(f"conv{i}_{j}")[0] for j in range(1, end)) for i, end in enumerate(ends, 1)
            ),
            (shapes.weight_shape("fc6")[0], shapes.weight_shape("fc7")[0]),
        )

    def network(self, config: FcnConfig) -> Trunk:
        return ParseNet(config) if config.kind.startswith("parsenet") else Fcn(config)

    def spec(self, config: FcnConfig, names: tuple[str, ...] | None) -> ModelSpec:
        classes = names or (VOC_CLASSES if config.num_classes == len(VOC_CLASSES) else ())
        if len(classes) != config.num_classes:
            classes = tuple(f"class {i}" for i in range(config.num_classes))
        # Grey, the nearest to the mean colour that one value can be, lies beside the image: about 0 to the network.
        fit = Fit(kind="letterbox", stride=1, pad_value=114, scale_up=False, anchor="top-left")
        canvas = InputSpec(size=(SIZE, SIZE), colour="bgr", scale=1.0, mean=MEAN, fit=fit)
        return ModelSpec("segment", canvas, DenseOutput(name="logits"), classes)

    def assumed(self, config: FcnConfig, shapes: CheckpointShapes) -> tuple[str, ...]:
        if config.kind not in ("8s", "16s"):
            return ("ReLU, as VGG has it: no tensor tells",)
        return (
            "ReLU, as VGG has it: no tensor tells",
            "streams that were trained one after the other: those trained at once have scaled poolings, which no "
            "tensor tells; choose with --rewrite at-once",
        )

    def name_of(self, config: FcnConfig) -> str:
        prefix = "" if config.kind.startswith("parsenet") else "fcn"
        return self.variant_of(config) or f"{prefix}{config.kind}-narrow"

    def tensors_of(self, shapes: CheckpointShapes, network: nn.Module) -> dict[str, Tensor]:
        """With the weights that are not learned, which files made from Caffe's may lack."""
        tensors = super().tensors_of(shapes, network)
        for key, module in network.named_modules():
            if isinstance(module, BilinearDeconvolution) and f"{key}.weight" not in tensors:
                fixed = BilinearDeconvolution(module.in_channels, module.kernel_size[0], module.stride[0])
                fixed.fill()
                tensors[f"{key}.weight"] = fixed.weight.detach()
        return tensors

    def rewrites(self, config: FcnConfig) -> dict[str, Rewrite]:
        return {"at-once": at_once} if config.kind in ("8s", "16s") else {}


FAMILY = FcnFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
