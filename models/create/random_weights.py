"""Checkpoints with seeded random weights that behave like trained ones, to try things out without a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn

from deploykit.atomic import write_atomic
from deploykit.errors import UsageError
from deploykit.models.create.original_format import has_original_format, original_checkpoint
from deploykit.models.create.package_format import package_checkpoint
from deploykit.models.create.yolov6_format import is_current, yolov6_checkpoint
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.families.yolov6.network import YOLOv6
from deploykit.models.families.yolox.model import Yolox
from deploykit.models.registry import ReferenceModel, create_model
from deploykit.models.yolo_graph.layer_graph import LayerGraph

GAIN = 1.35  # of a convolution and its batch norm together, unless a network says otherwise


class OwnRandomWeights(Protocol):
    """A layer or a network that needs other random weights than plain convolutions and batch norms."""

    def random_weights(self, gain: float) -> None:
        """Set them, after all plain ones, from torch's current seed; ``gain`` as for :func:`randomise`."""
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
    write_atomic(path, _file_of(model, seed))
    return path


def _file_of(model: ReferenceModel, seed: int) -> bytes:
    names = list(model.spec.output.trained_classes(model.spec))
    if has_original_format(model.module):
        return original_checkpoint(cast(LayerGraph, model.module), names, random_seed=seed)
    variant = variants().get(model.name.replace("-", "_"))
    if variant is not None and isinstance(model.module, LayerGraph):
        description = replace(variant.description, num_classes=len(names))
        size = model.spec.input.size[0]
        return package_checkpoint(model.module, description, model.name, names, size, random_seed=seed)
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

    Convolutions and batch norms get the weights of :func:`_plain_weights`; then each layer that needs others sets them
    in its own ``random_weights(gain)``. ``gain`` is that of a convolution and its batch norm together: ``random_gain``
    of the network, or 1.35.

    The gain lies just below the point where a random network of this depth becomes chaotic. Above it rounding errors
    grow a little in every layer, and no two correct implementations would agree; well below it (torch's default) the
    image fades out on its way, and every implementation would agree with every other. Found by trying, on W6-pose,
    E6E and tiny: with 1.5 instead of 1.35 the fused model is off by 0.1 to 3 px, with 1.2 the image's trace is ten
    times fainter. Batch norms get statistics that are not the identity, so that a wrong fold shows. What is added to a
    shortcut is halved: whole, the sums of YOLOv5-L and -X grow chaotic too, by up to 0.07 px. The branches of a RepVGG
    are made smaller by as much as their sum is larger than one of them, for the same reason.
    """
    gain: float = getattr(module, "random_gain", GAIN)
    for m in module.modules():
        _plain_weights(m, gain)
    for m in module.modules():
        if hasattr(type(m), "random_weights"):
            cast(OwnRandomWeights, m).random_weights(gain)


def _plain_weights(m: nn.Module, gain: float) -> None:
    if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
        inputs = m.weight[0].numel() if isinstance(m, nn.Conv2d) else m.in_channels
        nn.init.normal_(m.weight, std=inputs**-0.5)
        if m.bias is not None:
            nn.init.zeros_(m.bias)
    elif isinstance(m, nn.BatchNorm2d):
        nn.init.uniform_(m.weight, 0.8 * gain, 1.2 * gain)
        nn.init.normal_(m.bias, std=0.3)
        assert m.running_mean is not None
        assert m.running_var is not None
        nn.init.normal_(m.running_mean, std=0.1)
        nn.init.uniform_(m.running_var, 0.8, 1.2)
