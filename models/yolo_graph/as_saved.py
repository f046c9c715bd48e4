"""A network in the form in which its checkpoint was saved: folded, pruned, or with something added.

The description in a checkpoint is that of the model before training. What was done to it afterwards is in its tensors
and its pickled modules: ``fuse()`` of the projects takes the batch norms away, pruning takes channels and blocks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint, Module
from deploykit.models.layers.anchor_head import IDetect, IKeypoint
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.csp import C3, BottleneckCSP
from deploykit.models.layers.rep import DeployedRepConv, ImplicitA, RepConv
from deploykit.models.yolo_graph.description import REFUSALS
from deploykit.models.yolo_graph.layer_graph import LayerGraph

Records = Mapping[str, Module]
"""Path -> pickled module."""

FOLDED_FORWARD = "fuseforward"
"""What YOLOv7 puts in the place of a head's ``forward`` when it folds it."""

SIDE = 256  # pixels of an image on which channels are checked: four times the largest stride of a published model
MAX_NAMED = 3


def fold_as_saved(graph: nn.Module, found: Collection[str]) -> int:
    """Put convolutions with a bias where the file has no batch norms any more; how many were folded.

    Args:
        graph: a network, which is changed; it may be on the meta device.
        found: the names of the file's tensors.
    """
    folded = 0
    for path, module in list(graph.named_modules()):
        if isinstance(module, Conv) and f"{path}.conv.bias" in found and f"{path}.bn.weight" not in found:
            conv = module.conv
            module.conv = _sized(conv, conv.in_channels, conv.out_channels, conv.groups, bias=True)
            module.bn = nn.Identity()
        elif isinstance(module, RepConv) and f"{path}.rbr_reparam.weight" in found:
            graph.set_submodule(path, DeployedRepConv(module.dense, module.act))
        else:
            continue
        folded += 1
    return folded


def folded_note(count: int) -> tuple[str, ...]:
    """What is to be said of a model of which so many convolutions were folded."""
    return ("it was saved after its project fused its batch norms: taken as it is",) if count else ()


def drop_folded_implicits(graph: LayerGraph, found: dict[str, Tensor], checkpoint: Checkpoint, folded: int) -> bool:
    """Take implicits out of a head into whose convolutions YOLOv7 has folded them already; whether that is assumed.

    It leaves them in the file, and only the name of the method that the head runs tells. A file without modules has no
    such name: there the batch norms tell, which YOLOv7 folds at the same time (but for a keypoint head).
    """
    head, path = graph.head, f"model.{len(graph.model) - 1}"
    if not isinstance(head, (IDetect, IKeypoint)):
        return False
    record = next((m for m in checkpoint.modules if m.path == path), None)
    done = folded > 0 and isinstance(head, IDetect)
    if record is not None:
        done = record.attributes.get("forward") == FOLDED_FORWARD
    if done:
        graph.model[-1] = head.without_implicits()
        for key in [key for key in found if key.startswith((f"{path}.ia.", f"{path}.im.", f"{path}.m2."))]:
            del found[key]
    return done and record is None


def blocks_as_saved(graph: LayerGraph, records: Records) -> tuple[str, ...]:
    """Give stacks as many blocks as the pickled ones have; sentences about what was otherwise.

    Raises:
        CheckpointError: a layer is fed by others than described.
    """
    check_sources(graph, records)
    counted: dict[tuple[str, str], int] = {}
    for path, module in list(graph.named_modules()):
        if isinstance(module, (C3, BottleneckCSP)):
            kind, what = type(module).__name__, _resize_stack(module.m, f"{path}.m", records)
        elif isinstance(module, nn.Sequential) and path.count(".") == 1:
            kind, what = "repeated layer", _resize_stack(module, path, records)
        else:
            continue
        if what:
            counted[kind, what] = counted.get((kind, what), 0) + 1
    return tuple(
        f"{count} {kind} ha{'s' if count == 1 else 've'} {what} than repeats, as in the pickled model"
        for (kind, what), count in counted.items()
    )


def channels_as_saved(graph: LayerGraph, found: Mapping[str, Tensor], records: Records) -> tuple[str, ...]:
    """Give convolutions the channels of the pickled ones; a sentence about it, where they are others.

    Raises:
        CheckpointError: the channels do not fit one another.
    """
    count = _resize_channels(graph, found, records)
    if not count:
        return ()
    _check_channels(graph)
    return (f"{count} convolutions have other channels (pruning), as in the pickled model",)


def ignore_added_buffers(graph: nn.Module, found: dict[str, Tensor], records: Records) -> tuple[str, ...]:
    """Leave out buffers that were registered beside those of the original's layers; what is to be said of them."""
    expected = graph.state_dict().keys()
    added = []
    for key in [key for key in found if key not in expected]:
        owner, _, name = key.rpartition(".")
        record = records.get(owner)
        if record is not None and name in record.buffers and _has(graph, owner):
            del found[key]
            added.append(key)
    if not added:
        return ()
    more = f" and {len(added) - MAX_NAMED} more" if len(added) > MAX_NAMED else ""
    named = ", ".join(added[:MAX_NAMED])
    return (f"it has buffers that the original's layers do not have, which are ignored: {named}{more}",)


def _has(graph: nn.Module, path: str) -> bool:
    try:
        graph.get_submodule(path)
    except AttributeError:
        return False
    return True


def _sized(conv: nn.Conv2d, inputs: int, outputs: int, groups: int, *, bias: bool) -> nn.Conv2d:
    """A convolution like ``conv`` of other channels; its weights are torch's default ones."""
    new = copy.copy(conv)
    new.in_channels, new.out_channels, new.groups = inputs, outputs, groups
    kernel = conv.weight.shape[2:]
    new._parameters = {
        "weight": nn.Parameter(torch.empty(outputs, inputs // groups, *kernel, device=conv.weight.device)),
        "bias": nn.Parameter(torch.empty(outputs, device=conv.weight.device)) if bias else None,
    }
    return new


def check_sources(graph: LayerGraph, records: Records) -> None:
    """Every pickled layer says what feeds it, which must be what the description says."""
    for i, sources in enumerate(graph.sources):
        record = records.get(f"model.{i}")
        origin = record.attributes.get("f") if record is not None else None
        listed = [origin] if type(origin) is int else origin
        if not isinstance(listed, (list, tuple)) or not all(type(s) is int for s in listed):
            continue  # not of these projects, or older than that
        said = tuple(s if s >= 0 else i + s for s in listed)
        if said != sources:
            raise CheckpointError(
                f"layer {i} is fed by {list(said)[:8]} in the pickled model, and by {list(sources)[:8]} by its layer "
                "description: it was changed after it was described, and cannot be rebuilt"
            )


def _resize_stack(stack: nn.Sequential, path: str, records: Records) -> str:
    """Whether the pickled stack has fewer or more bottlenecks, in words; empty: as many."""
    if path not in records or not len(stack):
        return ""
    described, trained = len(stack), 0
    while f"{path}.{trained}" in records:
        trained += 1
    for i in range(described, trained):
        stack.append(copy.deepcopy(stack[i - 1]))
    for _ in range(trained, described):
        del stack[-1]
    return "" if trained == described else f"{'fewer' if trained < described else 'more'} bottlenecks"


def _resize_channels(graph: LayerGraph, found: Mapping[str, Tensor], records: Records) -> int:
    """How many convolutions have others than described, where the pickled module and its weights agree on them."""
    count = 0
    # The last convolutions of the head give the columns of the rows, which pruning cannot change.
    ends = re.compile(rf"model\.{len(graph.model) - 1}\.(m|m2|m_kpt)\.\d+(\.11)?")
    for path, module in list(graph.named_modules()):
        record = records.get(path)
        facts: Mapping[str, object] = {} if record is None else record.attributes
        if isinstance(module, nn.Conv2d):
            weight = found.get(f"{path}.weight")
            if weight is None or weight.ndim != 4 or weight.shape == module.weight.shape:
                continue
            outputs, inputs, groups = (facts.get(name) for name in ("out_channels", "in_channels", "groups"))
            if type(outputs) is not int or type(inputs) is not int or type(groups) is not int or groups < 1:
                continue
            kernel = module.weight.shape[2:]
            if weight.shape != (outputs, inputs // groups, *kernel) or inputs % groups:
                continue
            if ends.fullmatch(path) and outputs != module.out_channels:
                continue
            graph.set_submodule(path, _sized(module, inputs, outputs, groups, bias=module.bias is not None))
            count += 1
        elif isinstance(module, nn.BatchNorm2d):
            weight, features = found.get(f"{path}.weight"), facts.get("num_features")
            if weight is not None and type(features) is int and weight.shape == (features,):
                graph.set_submodule(path, _like(module, features))
        elif isinstance(module, ImplicitA):
            weight = found.get(f"{path}.implicit")
            if record is not None and weight is not None and weight.shape == (1, weight.numel(), 1, 1):
                module.implicit = nn.Parameter(torch.empty(weight.shape, device=module.implicit.device))
    return count


def _like(norm: nn.BatchNorm2d, features: int) -> nn.BatchNorm2d:
    device = None if norm.weight is None else norm.weight.device
    return nn.BatchNorm2d(features, norm.eps, norm.momentum, device=device).train(norm.training)


def _check_channels(graph: LayerGraph) -> None:
    """Run shapes only: what a layer gives must be what the next ones take."""
    channels = graph.config.channels if graph.config else 3
    try:
        with torch.no_grad():
            graph(torch.empty(1, channels, SIDE, SIDE, device="meta"))
    except REFUSALS as e:
        first_line = str(e).partition("\n")[0]
        raise CheckpointError(
            f"its pickled layers have other channels than its description, and do not fit one another: {first_line}; "
            "expected a model that was pruned as a whole and runs"
        ) from e
