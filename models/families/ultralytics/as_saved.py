"""A network in the form in which its checkpoint was saved: folded, with one branch, or with what only training uses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Module
from deploykit.models.families.ultralytics.blocks import attention, c2f, cib, elan, psa
from deploykit.models.families.ultralytics.description import HEADS, Description
from deploykit.models.layers.conv import Conv
from deploykit.models.yolo_graph.as_saved import fold_as_saved
from deploykit.models.yolo_graph.layer_graph import LayerGraph

__all__ = ["attributes_as_saved", "check_head", "folded_as_saved", "pooling_as_saved", "without_training_parts"]

TRAINING_ONLY = re.compile(
    r"model\.[0-9]+\.((one2one_)?flow_model|(one2one_)?cv4_sigma|proto\.semseg|(one2one_)?proto\.semseg|aux_head)\..+"
)
"""Tensors of a head that only its training loss reads."""

_ATTRIBUTES: Mapping[type[nn.Module], tuple[str, ...]] = {
    psa.Attention: ("num_heads", "key_dim", "head_dim", "scale"),
    attention.AAttn: ("num_heads", "head_dim", "area"),
    psa.PSABlock: ("add",),
    cib.CIB: ("add",),
    c2f.SPPF: ("n", "add"),
}
"""What no state dict holds of a layer, and its pickled module has."""

IDENTITY = "torch.nn.modules.linear.Identity"
NO_ACTIVATION = (
    "SPPF's first convolution has no activation, as in networks that releases 8.4.0 to 8.4.140 of the package built; "
    "those of all other releases have one"
)

MOST = 1 << 16  # heads, channels, areas or pools


def without_training_parts(found: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors without those that only training reads, and what is to be said of them."""
    kept = {key: tensor for key, tensor in found.items() if not TRAINING_ONLY.fullmatch(key)}
    count = len(found) - len(kept)
    return kept, (f"{count} of its tensors are for training only, and are left out",) if count else ()


def folded_as_saved(graph: LayerGraph, found: Mapping[str, Tensor]) -> int:
    """Put convolutions with a bias where the file has no batch norms any more; how many were folded.

    ``graph``, which may be on the meta device, is changed.
    """
    folded = 0
    for path, module in list(graph.named_modules()):
        if isinstance(module, (elan.RepConv, cib.RepVGGDW)) and f"{path}.conv.bias" in found:
            largest = module.conv1.conv if isinstance(module, elan.RepConv) else module.conv.conv
            graph.set_submodule(path, Conv.folded(_with_bias(largest), module.act))
            folded += 1
    return folded + fold_as_saved(graph, found)


def _with_bias(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the same form with a bias, and torch's default weights."""
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        cast(Any, conv.kernel_size),
        cast(Any, conv.stride),
        cast(Any, conv.padding),
        groups=conv.groups,
        device=conv.weight.device,
    )


def check_head(description: Description, records: Mapping[str, Module]) -> None:
    """The head is of the class that its row names: heads of one kind of tensors compute different things.

    Raises:
        CheckpointError: it is of another.
    """
    record = records.get(f"model.{len(description.rows) - 1}")
    kind = record.kind.rpartition(".")[2] if record else ""
    if kind in HEADS and kind != description.head and not {kind, description.head} <= {"Detect", "v10Detect"}:
        raise CheckpointError(
            f"the head of the pickled model is {kind}, and {description.head} by its layer description: it was changed "
            "after it was described, and cannot be rebuilt"
        )


def pooling_as_saved(graph: LayerGraph, records: Mapping[str, Module]) -> tuple[str, ...]:
    """Take the activation out of SPPF's first convolution where the pickled one has none; what is to be said of it.

    Nothing but the pickled module tells: releases 8.4.0 to 8.4.140 of the package built the same description, with
    the same tensors, without it.
    """
    bare = False
    for path, module in list(graph.named_modules()):
        record = records.get(f"{path}.cv1.act")
        if isinstance(module, c2f.SPPF) and record is not None and record.kind == IDENTITY:
            bare |= type(module.cv1.act) is not nn.Identity
            module.cv1.act = nn.Identity()
    return (NO_ACTIVATION,) if bare else ()


def attributes_as_saved(graph: LayerGraph, records: Mapping[str, Module]) -> bool:
    """Give layers the numbers of their pickled modules; whether one had another.

    Raises:
        CheckpointError: such a number is none that the layer can have.
    """
    changed = False
    for path, module in graph.named_modules():
        record = records.get(path)
        for name in _ATTRIBUTES.get(type(module), ()) if record else ():
            assert record is not None
            own, value = getattr(module, name), record.attributes.get(name)
            if value is None:  # older than the attribute, or computed by old releases
                continue
            if type(own) is bool:
                fits = type(value) is bool
            elif type(own) is int:
                fits = type(value) is int and 1 <= value <= MOST
            else:
                fits = type(value) in (int, float) and 0.0 < value <= 1.0
            if not fits:
                raise CheckpointError(
                    f"{name} of {path} in the pickled model is {str(value)[:64]!r}: it was changed after it was made, "
                    "and cannot be rebuilt"
                )
            changed |= value != own
            setattr(module, name, value)
    return changed
