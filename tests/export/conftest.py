"""Networks this narrow are faster on one thread, and one export serves many tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deploykit.export.to_onnx import onnx_from_model
from deploykit.spec import Dynamic
from tests.narrow import few_layers, model_of, write_checkpoint
from tests.once import made_once


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of exports of one network of a few layers: ``static.onnx`` (64 px), ``batch.onnx``, ``shape.onnx``.

    ``other.onnx`` is of another seed. All of them detect a lot. Nobody writes into this folder.
    """
    return made_once(tmp_path_factory, "exported", _export_few)


def _export_few(folder: Path) -> None:
    model = model_of("few", num_keypoints=3, objectness=3.0)
    kinds: dict[str, Dynamic] = {"static": "none", "batch": "batch", "shape": "shape"}
    for name, dynamic in kinds.items():
        onnx_from_model(model, out=folder / f"{name}.onnx", img=64, dynamic=dynamic)
    other = model_of("few", num_keypoints=3, objectness=3.0, seed=1)
    onnx_from_model(other, out=folder / "other.onnx", img=64)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the network of :func:`exported`, up to the rounding to half precision."""
    return write_checkpoint(
        tmp_path_factory.mktemp("checkpoint") / "few.pt", few_layers(num_keypoints=3), objectness=3.0
    )
