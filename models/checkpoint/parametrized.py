"""Weights that are stored as parts: a direction and a length (weight norm), a weight and its mask (pruning).

Both are put together exactly. Sources of names and formulas: ``torch/nn/utils/weight_norm.py``,
``torch/nn/utils/parametrizations.py``, ``torch/nn/utils/prune.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.stack_machine import unsafe

__all__ = ["whole_weights"]

_WEIGHT_NORM = (("_g", "_v"), ("original0", "original1"))
_PARAMETRIZED = "parametrizations."


def whole_weights(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The state dict with every weight under its own name, in its place; says what was put together.

    Raises:
        CheckpointError: the parts do not fit, or are those of spectral norm or another parametrization.
        UnsafeCheckpointError: a part repeats a few values many times.
    """
    made: dict[str, Tensor] = {}
    gone: set[str] = set()
    normed, pruned = 0, 0
    for name, length, direction in _normed(state):
        made[length] = _from_length(name, state[length], state[direction])
        gone |= {direction}
        normed += 1
    for name, weight, mask in _pruned(state):
        made[weight] = _masked(name, state[weight], state[mask])
        gone |= {mask}
        pruned += 1
    if normed:
        notes.append(f"weight norm is fused into {normed:,} weights")
    if pruned:
        notes.append(f"the masks of pruning are multiplied into {pruned:,} weights")
    renamed = {key: _plain_name(key) if key in made else key for key in state if key not in gone}
    _refuse_others(renamed.values())
    return {renamed[key]: made.get(key, state[key]) for key in renamed}


def _plain_name(key: str) -> str:
    """``conv.weight_g``, ``conv.weight_orig`` and ``conv.parametrizations.weight.original0`` are ``conv.weight``."""
    if _PARAMETRIZED in key:
        return key.rpartition(".")[0].replace(_PARAMETRIZED, "")
    return key.rpartition("_")[0]


def _normed(state: dict[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """Name, length and direction of each weight with weight norm."""
    for key in state:
        for length, direction in _WEIGHT_NORM:
            stem, name = key.removesuffix(length), _plain_name(key)
            own = name.rpartition(".")[2].startswith("weight") if length == "_g" else _PARAMETRIZED in key
            if key.endswith(length) and own and f"{stem}{direction}" in state and name not in state:
                yield name, key, f"{stem}{direction}"


def _pruned(state: dict[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """Name, weight and mask of each pruned weight."""
    for key in state:
        stem = key.removesuffix("_orig")
        if stem != key and f"{stem}_mask" in state and stem not in state:
            yield stem, key, f"{stem}_mask"


def _from_length(name: str, length: Tensor, direction: Tensor) -> Tensor:
    axes = [i for i, size in enumerate(length.shape) if size == 1]
    fits = length.dim() == direction.dim() and all(
        size in (1, direction.shape[i]) for i, size in enumerate(length.shape)
    )
    if not (length.dim() == 0 or fits) or not (length.is_floating_point() and direction.is_floating_point()):
        raise CheckpointError(
            f"the parts of {name} (weight norm) are {list(length.shape)} {length.dtype} and {list(direction.shape)} "
            f"{direction.dtype}, which do not fit; remove it with torch.nn.utils.remove_weight_norm and save again"
        )
    _check_dense(name, direction)
    kind = torch.promote_types(direction.dtype, torch.float32)
    norm = torch.linalg.vector_norm(direction, dim=axes or None, keepdim=bool(axes), dtype=torch.float64)
    whole: Tensor = direction.to(kind) * (length.double() / norm).to(kind)
    return whole


def _masked(name: str, weight: Tensor, mask: Tensor) -> Tensor:
    if weight.shape != mask.shape or not weight.is_floating_point():
        raise CheckpointError(
            f"{name} is {list(weight.shape)} {weight.dtype} and its mask {list(mask.shape)}: expected one shape; make "
            "the pruning permanent with torch.nn.utils.prune.remove and save again"
        )
    _check_dense(name, weight)
    return weight * mask.to(weight.dtype)


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise unsafe(f"a part of the weight {name} repeats its values")


def _refuse_others(names: Iterable[str]) -> None:
    keys = set(names)
    for key in keys:
        stem = key.removesuffix("_orig")
        spectral = stem != key and f"{stem}_u" in keys
        if spectral or (_PARAMETRIZED in key and f"{key.removesuffix('original')}0._u" in keys):
            raise CheckpointError(
                f"{key[:80]} is divided by its largest singular value (spectral norm), which is not folded here: call "
                "torch.nn.utils.remove_spectral_norm, or torch.nn.utils.parametrize.remove_parametrizations, and save "
                "again"
            )
    other = next((key for key in keys if _PARAMETRIZED in key), None)
    if other is not None:
        raise CheckpointError(
            f"{other[:80]} is a part of a parametrized weight, whose formula is in no file: call "
            "torch.nn.utils.parametrize.remove_parametrizations and save again"
        )
