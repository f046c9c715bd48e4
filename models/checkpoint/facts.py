"""What a checkpoint says beside its weights: class names, strides, traces of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from deploykit.models.checkpoint.module_tree import checked_name, is_tensor

__all__ = ["class_names", "note_mixed_precision", "note_precision", "strides", "what_is_beside"]


def what_is_beside(root: Any, entry: str, notes: list[str]) -> dict[str, Any]:
    """The top-level entries that are not the weights."""
    if not isinstance(root, dict):
        return {}
    optimizer = root.get("optimizer")
    if isinstance(optimizer, dict):
        state = optimizer.get("state")
        slots = [slot for slot in state.values() if isinstance(slot, dict)] if isinstance(state, dict) else []
        count = sum(is_tensor(value) for slot in slots for value in slot.values())
        if count:
            notes.append(f"carries an optimizer state ({count:,} tensors): ignored")
    skipped = {entry.partition(".")[0], "optimizer"}
    return {
        checked_name(name): value
        for name, value in root.items()
        if type(name) is str and name not in skipped and (entry or not is_tensor(value))
    }


def note_mixed_precision(root: Any, metadata: Mapping[str, Any], notes: list[str]) -> None:
    """Say what mixed-precision training left in the file; none of it changes what the network computes.

    apex: ``amp`` with a ``loss_scaler0`` for each loss, and optimizers that keep float32 copies of half weights
    (NVIDIA/apex, BSD-3). torch.amp: the state of a GradScaler, under a name that projects choose.
    """
    amp = metadata.get("amp")
    if isinstance(amp, Mapping) and any(str(key).startswith("loss_scaler") for key in amp):
        notes.append("trained in mixed precision by apex.amp: its loss scale is ignored")
    for name, state in metadata.items():
        if isinstance(state, Mapping) and {"scale", "growth_factor", "backoff_factor"} <= set(state):
            notes.append(f"trained in mixed precision by torch.amp: its gradient scaler ({name!r}) is ignored")
    optimizer = root.get("optimizer") if isinstance(root, dict) else None
    if isinstance(optimizer, dict) and isinstance(optimizer.get("fp32_from_fp16"), list):
        notes.append("its optimizer holds float32 copies of the weights: the model's own are read")


def note_precision(state_dict: Mapping[str, torch.Tensor], notes: list[str]) -> None:
    """Say where most of the weights are in float64."""
    floating = [tensor for tensor in state_dict.values() if tensor.is_floating_point()]
    double = sum(tensor.numel() for tensor in floating if tensor.dtype == torch.float64)
    if double * 2 > sum(tensor.numel() for tensor in floating):
        notes.append("weights are float64")


def class_names(value: Any) -> tuple[str, ...] | None:
    """Class names from a list, or from a dictionary of index to name."""
    if isinstance(value, dict) and all(type(key) is int for key in value):
        value = [value[key] for key in sorted(value)]
    if not isinstance(value, (list, tuple)) or not value or not all(type(name) in (str, int) for name in value):
        return None
    return tuple(str(name) for name in value)


def strides(value: Any) -> tuple[int, ...] | None:
    """The strides of a model of the YOLO family, which are a tensor there and so a list here."""
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(step, (int, float)) and step > 0 and float(step).is_integer() for step in value):
        return None
    return tuple(int(step) for step in value)
