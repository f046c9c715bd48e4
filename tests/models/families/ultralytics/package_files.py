"""Files as the ultralytics package writes them, of narrow networks: pickled stand-ins with the names of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.models.create.original_format import StandIn, module_record, pickled
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.ultralytics.build import build_graph
from deploykit.models.families.ultralytics.description import HEADS, Description
from deploykit.models.families.ultralytics.heads.points import Distribution
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.yolo_graph.layer_graph import LayerGraph

__all__ = ["Bound", "narrow", "network", "of_package", "output_of", "write", "yaml_of"]

WIDTH = 0.0625
ATTRIBUTES = ("add", "n", "num_heads", "key_dim", "head_dim", "scale", "area", "c", "reg_max", "kpt_shape")
"""What the package keeps of a layer beside tensors and submodules, and so do we, under the same names."""

CONVS = ("Conv", "DWConv", "Concat", "RepConv", "Focus")
OTHER_NAMES = {
    "FreeDetect": "Detect", "FreePose": "Pose", "Oriented": "OBB", "Oriented26": "OBB26", "Distribution": "DFL",
}  # fmt: skip
MODELS = {"detect": "Detection", "instances": "Segmentation", "keypoints": "Pose", "oriented": "OBB"}


class Bound:
    """A method that is pickled with its object, as ``getattr(owner, name)``."""

    def __init__(self, owner: StandIn | type[StandIn], name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> Any:
        return getattr, (self.owner, self.name)


def narrow(name: str, num_classes: int = 3, **changes: Any) -> Description:
    """A published network's layers with few channels, without the strides that a file does not have."""
    described = variants()[name].description
    return replace(described, num_classes=num_classes, width=WIDTH, strides=(), **changes)


def network(description: Description, seed: int = 0) -> LayerGraph:
    """The network with seeded weights, in the precision of files."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        graph = build_graph(description)
        randomise(graph)
    return graph.half().float().requires_grad_(False)


def output_of(module: nn.Module, side: int = 64) -> Tensor:
    """What a network gives for two images: its rows or logits."""
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out = module(images)
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def yaml_of(description: Description, **changes: Any) -> dict[str, Any]:
    """The description as the pickled network carries it, since 8.0.120."""
    size, rows = description.size or "n", [list(row) for row in description.rows]
    return {
        "nc": description.num_classes,
        "scales": {size: [description.depth, description.width, description.max_channels]},
        "scale": size,
        "backbone": rows[:-1],
        "head": rows[-1:],
        "kpt_shape": list(description.kpt_shape),
        "reg_max": description.reg_max,
        "end2end": description.dual,
        "ch": description.channels,
        "yaml_file": "custom.yaml",
        **changes,
    }


def of_package(
    graph: LayerGraph,
    description: Description,
    *,
    yaml: Mapping[str, Any] | None = None,
    names: Any = None,
    flat: bool = False,
    fused: bool = False,
) -> StandIn:
    """The pickled network.

    Args:
        graph: its weights.
        description: its layers.
        yaml: instead of the description's own.
        names: of the classes; None: numbered texts.
        flat: the modules' path has no files, as up to 8.0.50.
        fused: the forward of each convolution is a bound method, as the package's folding leaves it.
    """
    layers: dict[str, StandIn] = {}
    for i, (layer, row) in enumerate(zip(graph.model, description.rows, strict=True)):
        record = _record(layer, flat, fused)
        record.__dict__.update(i=i, f=row[0], type=f"ultralytics.{row[2]}", np=0)
        layers[str(i)] = record
    task = HEADS[description.head]
    attributes = {
        "yaml": dict(yaml or yaml_of(description)),
        "names": names or {i: f"thing {i}" for i in range(description.num_classes)},
        "save": [],
        "stride": torch.tensor([1.0] if task == "classify" else list(map(float, graph.model[-1].stride))),
        "inplace": True,
    }
    model = module_record("torch.nn.modules.container.Sequential", modules=layers)
    kind = f"ultralytics.nn.tasks.{MODELS.get(task, 'Classification')}Model"
    return module_record(kind, modules={"model": model}, attributes=attributes)


def _record(module: nn.Module, flat: bool, fused: bool) -> StandIn:
    name = type(module).__name__
    if type(module).__module__.startswith("torch.nn."):
        kind = f"{type(module).__module__}.{name}"
        own = {key: value for key, value in vars(module).items() if key not in vars(nn.Module())}
    else:
        name = OTHER_NAMES.get(name, name)
        place = "conv" if name in CONVS else "head" if name in HEADS else "block"
        kind = f"ultralytics.nn.modules.{name}" if flat else f"ultralytics.nn.modules.{place}.{name}"
        kind = {"FoldingSequential": "torch.nn.modules.container.Sequential"}.get(name, kind)
        kind = {"_Values": "torch.nn.modules.conv.Conv2d", "ZeroPad2d": "torch.nn.modules.padding.ZeroPad2d"}.get(
            name, kind
        )
        own = {key: getattr(module, key) for key in ATTRIBUTES if hasattr(module, key)}
        if name == "ZeroPad2d":
            own["padding"] = module.padding
        own.pop("scale", None) if isinstance(module, Distribution) else None
    children = {
        key: child for key, child in module.named_children() if not (key == "bn" and type(child) is nn.Identity)
    }
    record = module_record(
        kind,
        parameters={key: None if p is None else nn.Parameter(p.half(), False) for key, p in module._parameters.items()},
        buffers={key: b.half() if b is not None and b.is_floating_point() else b for key, b in module._buffers.items()},
        modules={key: _record(child, flat, fused) for key, child in children.items()},
        attributes=own,
    )
    if fused and name in ("Conv", "DWConv"):
        record.__dict__["forward"] = Bound(record, "forward_fuse")
    return record


def write(path: Path, content: Any) -> Path:
    """Save a file with such networks in it, as torch does."""
    path.write_bytes(pickled(content))
    return path
