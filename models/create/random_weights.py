"""Seeded random weights that behave like trained ones, for trying things out where no checkpoint is at hand."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from deploykit.errors import UsageError, writing
from deploykit.models.create.original_format import has_original_format, original_checkpoint
from deploykit.models.create.yolov6_format import is_current, yolov6_checkpoint
from deploykit.models.families.yolov6.bep import BottleRep
from deploykit.models.families.yolov6.head import DistanceHead, FreeHead, ObjectnessHead
from deploykit.models.families.yolov6.network import YOLOv6
from deploykit.models.families.yolov6.rep_vgg import QARepVGG, RepVGG
from deploykit.models.families.yolox.blocks import Bottleneck as YoloxBottleneck
from deploykit.models.families.yolox.blocks import DepthwiseConv, Residual
from deploykit.models.families.yolox.head import YoloxHead, YoloxKeypointHead
from deploykit.models.families.yolox.model import Yolox
from deploykit.models.layers.anchor_head import Detect, Keypoint
from deploykit.models.layers.csp import Bottleneck
from deploykit.models.layers.ghost import GhostBottleneck
from deploykit.models.layers.rep import ImplicitA, ImplicitM
from deploykit.models.registry import ReferenceModel, create_model
from deploykit.models.yolo_graph.layer_graph import LayerGraph

GAIN = 1.35  # of a convolution and its batch norm together
YOLOX_GAINS = {nn.SiLU: 1.35, nn.ReLU: 1.2, nn.LeakyReLU: 1.05}
"""The same by activation: with those that let half of the values through as they are, chaos begins earlier."""


@runtime_checkable
class OwnRandomWeights(Protocol):
    """A module whose parts want other random weights than :func:`randomise` gives them."""

    def random_weights(self) -> None:
        """Set them, after all others, from torch's current seed."""
        ...


def create_checkpoint(name: str, out: str | Path, *, seed: int = 0, num_classes: int | None = None) -> Path:
    """Write a checkpoint of a registered model with seeded random weights, in the precision of released ones.

    The same name, seed and torch version give the same file. It is in the format of the original project, whose own
    code loads it: a pickled model in half precision, or (YOLOX) a state dict in float32 under ``model``. A model of
    which we do not write the original's format is a state dict in half precision.

    Raises:
        NotFoundError: there is no model of that name. UsageError: the file's suffix, the seed or the number of classes
        cannot be. OutputError: the file cannot be written.
    """
    path = Path(out)
    if path.suffix not in (".pt", ".pth"):
        raise UsageError(f"a checkpoint's name ends in .pt or .pth, got {path.name}")
    if not 0 <= seed < 2**63:
        raise UsageError(f"a seed is 0 to {2**63 - 1}, got {seed}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create_model(name, num_classes=num_classes)
        randomise(model.module)
    data = _file_of(model, seed)
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _file_of(model: ReferenceModel, seed: int) -> bytes:
    names = list(model.spec.output.trained_classes(model.spec))
    if has_original_format(model.module):
        return original_checkpoint(cast(LayerGraph, model.module), names, random_seed=seed)
    if isinstance(model.module, YOLOv6) and is_current(model.module):
        return yolov6_checkpoint(model.module, names, random_seed=seed)
    state = model.module.state_dict()
    if not isinstance(model.module, Yolox):
        state = {key: t.half() if t.is_floating_point() else t for key, t in state.items()}
    data = BytesIO()  # torch reports a full disk as a RuntimeError about its own archive, Python as what it is
    torch.save({"model": state, "names": names, "random_seed": seed}, data)
    return data.getvalue()


def randomise(module: nn.Module) -> None:
    """Fill a network with random weights from torch's current seed, in place.

    The gain lies just below the point where a random network of this depth becomes chaotic. Above it rounding errors
    grow a little in every layer, and no two correct implementations would agree; well below it (torch's default) the
    image fades out on its way, and every implementation would agree with every other. Found by trying, on W6-pose,
    E6E and tiny: with 1.5 instead of 1.35 the folded model is off by 0.1 to 3 px, with 1.2 the image's trace is ten
    times fainter. Batch norms get statistics that are not the identity, so that a wrong fold shows. What is added to a
    shortcut is halved: whole, the sums of YOLOv5-L and -X grow chaotic too, by up to 0.07 px. The branches of a RepVGG
    are made smaller by as much as their sum is larger than one of them, for the same reason.
    """
    gain = YOLOX_GAINS[type(module.first.act)] if isinstance(module, Yolox) else GAIN
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.weight, std=m.weight[0].numel() ** -0.5)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.8 * gain, 1.2 * gain)
            nn.init.normal_(m.bias, std=0.3)
            assert m.running_mean is not None
            assert m.running_var is not None
            nn.init.normal_(m.running_mean, std=0.1)
            nn.init.uniform_(m.running_var, 0.8, 1.2)
        elif isinstance(m, nn.ConvTranspose2d):
            nn.init.normal_(m.weight, std=m.in_channels**-0.5)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, ImplicitA):
            nn.init.normal_(m.implicit, std=0.02)
        elif isinstance(m, ImplicitM):
            nn.init.normal_(m.implicit, mean=1.0, std=0.02)
    for m in module.modules():
        if isinstance(m, Bottleneck) and m.add:
            _scale(m.cv2, 0.5)
        elif isinstance(m, GhostBottleneck):
            _scale(m.conv[-1], 0.5)
        elif isinstance(m, BottleRep):
            _scale(m.conv2, 0.5)
            nn.init.uniform_(m.alpha, 0.6, 0.9)  # what is added is never negative
        elif isinstance(m, RepVGG):
            _scale(m, 0.7 if m.rbr_identity is None else 0.45)
        elif isinstance(m, QARepVGG):  # the sum is made smaller, by the batch norm behind it
            _scale(m.bn, 0.25 if m.identity else 0.6)
        elif isinstance(m, DistanceHead):
            m.reset_bins()
        elif isinstance(m, YoloxBottleneck) and m.add:
            _scale(m.conv2.pconv if isinstance(m.conv2, DepthwiseConv) else m.conv2, 0.5)
        elif isinstance(m, Residual):
            _scale(m.layer2, 0.5)
    if isinstance(module, Yolox):
        _see_raw_pixels(module)
    _rare_detections(module)
    for m in module.modules():
        if isinstance(m, OwnRandomWeights):
            m.random_weights()


def _see_raw_pixels(network: Yolox) -> None:
    """Make the first layer one that was trained on pixels of 0 to 255, as its statistics would then say."""
    first = network.first
    first.conv.weight.data /= 255.0
    assert isinstance(first.bn, nn.BatchNorm2d)
    assert first.bn.running_mean is not None
    first.bn.running_mean += 114.0 * first.conv.weight.data.sum((1, 2, 3))


def _scale(block: nn.Module, factor: float) -> None:
    """What the batch norms of a block give, times ``factor``."""
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.data *= factor
        norm.bias.data *= factor


def _rare_detections(module: nn.Module) -> None:
    """Set the bias of every anchor's objectness to a low probability."""
    for head in (m for m in module.modules() if isinstance(m, Detect)):
        for level, conv in enumerate(head.m):
            last: list[nn.Module] = [conv]
            if isinstance(head, Keypoint):
                branch = head.m_kpt[level]
                last.append(branch[-1] if isinstance(branch, nn.Sequential) else branch)
            biases = [m.bias for m in last if isinstance(m, nn.Conv2d) and m.bias is not None]
            # One anchor's values may lie in both convolutions, so they are laid side by side first.
            cells = torch.cat([b.detach() for b in biases]).view(head.num_anchors, -1)
            cells[:, 4] = -4.0
            cells[:, 5 : 5 + head.num_classes] = 2.0
            for bias, part in zip(biases, torch.split(cells.flatten(), [len(b) for b in biases]), strict=True):
                bias.data.copy_(part)
    for free in (m for m in module.modules() if isinstance(m, FreeHead)):
        _rare_in_free_head(free)
    for anchor_free in (m for m in module.modules() if isinstance(m, YoloxHead)):
        _rare_cells(anchor_free)


def _rare_in_free_head(head: FreeHead) -> None:
    """The same where each level has a convolution for the classes, and boxes of a few cells."""
    biases = {"cls_preds": -4.0, "reg_preds": 4.0}
    if isinstance(head, ObjectnessHead):
        biases = {"cls_preds": 2.0, "obj_preds": -4.0}
    elif isinstance(head, DistanceHead) and head.reg_max:
        biases = {"cls_preds": -4.0}
    for name, value in biases.items():
        for conv in cast("list[nn.Conv2d]", getattr(head, name)):
            assert conv.bias is not None
            nn.init.constant_(conv.bias, value)


@torch.no_grad()
def _rare_cells(head: YoloxHead) -> None:
    """The same of a head without anchors; and visibilities that are no surer than those of a trained one."""
    for level, stride in enumerate(head.stride):
        for parts, value in ((head.obj_preds, -4.0), (head.cls_preds, 2.0)):
            cast(Tensor, parts[level].bias).fill_(value)
        if isinstance(head, YoloxKeypointHead):  # whose logit is (2 raw - 0.5) stride
            last = cast(nn.Conv2d, head.kpts_preds[level])
            last.weight[2::3] /= 2 * stride
            cast(Tensor, last.bias)[2::3] = 0.25
