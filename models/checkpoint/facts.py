"""What a checkpoint says beside its weights: class names, strides, traces of training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from deploykit.models.checkpoint.module_tree import checked_name, is_tensor

__all__ = ["class_names", "note_mixed_precision", "note_precision", "strides", "what_is_beside"]

_NAMES = (
    "names",
    "class_names",
    "classes",
    "CLASSES",
    "labels",
    "idx_to_class",
    "id2label",
    "class_to_idx",
    "label2id",
)
"""What projects call the names of the classes."""


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


def class_names(own: Mapping[str, Any], metadata: Mapping[str, Any], notes: list[str]) -> tuple[str, ...] | None:
    """The class names that a model or its file brings, in order; what is unusual about them goes to ``notes``.

    Projects write a list; a dictionary of number to name (also as text, and some from 1 on); or name to number.
    """
    for where, value in _places(own, metadata):
        numbered = _numbered(value)
        if not numbered:
            continue
        first, count = min(numbered), len(numbered)
        if max(numbered) - first + 1 != count or first not in (0, 1):
            notes.append(f"its class names ({where}) have the numbers {first} to {max(numbered)} with gaps: not used")
            continue
        if first == 1:
            notes.append(f"its class names ({where}) begin at number 1: that name is taken for the first class")
        return tuple(numbered[number] for number in sorted(numbered))
    return None


def _places(own: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Where class names may be, and what is there."""
    tables = [("", own), ("", metadata)]
    for name in ("meta", "hyper_parameters", "hparams", "config", "args"):
        table = metadata.get(name)
        if isinstance(table, Mapping):
            tables.append((f"{name}.", table))
            inner = table.get("dataset_meta")  # MMEngine's
            tables += [(f"{name}.dataset_meta.", inner)] if isinstance(inner, Mapping) else []
    for where, table in tables:
        yield from ((f"{where}{name}", table[name]) for name in _NAMES if name in table)


def _numbered(value: Any) -> dict[int, str]:
    """Class names by number; empty: they are none."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        return {}
    keys, items = list(value), list(value.values())
    if all(type(item) is int for item in items) and all(type(key) is str and not key.isdecimal() for key in keys):
        keys, items = items, keys  # class_to_idx
    numbers = [int(key) if type(key) is str and re.fullmatch("[0-9]{1,6}", key) else key for key in keys]
    if not all(type(number) is int and number >= 0 for number in numbers) or len(set(numbers)) != len(numbers):
        return {}
    if not all(type(item) in (str, int) for item in items):
        return {}
    return {number: str(item) for number, item in zip(numbers, items, strict=True)}


def strides(value: Any) -> tuple[int, ...] | None:
    """The strides of a model of the YOLO family, which are a tensor there and so a list here."""
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(step, (int, float)) and step > 0 and float(step).is_integer() for step in value):
        return None
    return tuple(int(step) for step in value)
