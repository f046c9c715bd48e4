"""Checkpoints as training scripts write them, for the tests of families that are read from tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

__all__ = ["saved"]


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    """A file with the weights under ``model`` and something beside them."""
    torch.save({"model": state, "epoch": 3}, folder / "m.pth")
    return folder / "m.pth"
