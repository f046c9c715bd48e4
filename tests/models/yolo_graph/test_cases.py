"""Files as people have them, each with what the original project's own code gives on the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit.models.fuse import fuse_model
from deploykit.models.registry import load_model

CASES = ("yolov3_kernel_as_list", "y7tiny_fused", "y7face_tiny_face", "ch1_yolov5", "nc1_yolov7_tiny")


@pytest.mark.data
@pytest.mark.parametrize("name", CASES)
def test_a_file_computes_what_the_original_does(shared: Path, name: str) -> None:
    file = shared / "cases" / "detectors" / f"{name}.pt"
    if not file.is_file():
        pytest.skip(f"there is no {file}")
    expected = np.load(f"{file}.npz")
    module = load_model(file).module
    images = torch.from_numpy(expected["images"])
    with torch.no_grad():
        for network in (module, fuse_model(module)):
            np.testing.assert_allclose(network(images).numpy(), expected["output"], rtol=1e-5, atol=2e-4)
