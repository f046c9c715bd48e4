"""What several kinds of commands read: small networks and images whose objects are known."""

from __future__ import annotations

from pathlib import Path

from tests.kills.kind import INPUTS

__all__ = ["CELLS", "CHECKPOINT", "IMAGES", "write_cells", "write_images", "write_network"]

CELLS, CHECKPOINT, IMAGES = f"{INPUTS}/cells.onnx", f"{INPUTS}/few.pt", f"{INPUTS}/coco/images"


def write_cells(folder: Path) -> None:
    """An ONNX file of a few nodes."""
    from tests.cell_model import cell_spec, write_cell_model

    write_cell_model(folder / "cells.onnx", spec=cell_spec())


def write_network(folder: Path) -> None:
    """A checkpoint of a dozen layers, and images to calibrate on."""
    from tests.narrow import few_layers, write_checkpoint

    write_checkpoint(folder / "few.pt", few_layers())
    write_images(folder)


def write_images(folder: Path) -> None:
    """Images of 64 x 64 with their annotations."""
    from tests.coco_folder import write_folder

    write_folder(folder / "coco", scale=1)


def write_cells_and_images(folder: Path) -> None:
    """The ONNX file and images for it."""
    write_cells(folder)
    write_images(folder)
