"""Networks of the ultralytics package, read from files that the package itself wrote, give its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit.models.fuse import fuse_model
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import load_model

GOLDEN = Path(__file__).resolve().parents[5] / "shared" / "golden"
ROWS = ("yolov8n-detect-narrow", "yolov8n-pose-narrow", "yolov9t-narrow", "yolo12n-narrow", "yolov5nu-narrow")


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_those_of_the_package(name: str) -> None:
    if not GOLDEN.is_dir():
        pytest.skip("the golden files are not here")
    model = load_model(GOLDEN / f"{name}.pt")
    with np.load(GOLDEN / f"{name}.npz") as golden, torch.inference_mode():
        images, expected = torch.from_numpy(golden["images"]), golden["output"].transpose(0, 2, 1)
        for module, pixels in ((model.module, 1e-3), (fuse_model(model.module), 5e-3)):
            found = module(images).numpy()
            assert np.abs(found - expected)[..., :4].max() <= pixels
            assert np.abs(found - expected)[..., 4 : 4 + len(model.spec.classes)].max() <= pixels / 100


def test_the_other_branch_is_chosen_by_name() -> None:
    if not GOLDEN.is_dir():
        pytest.skip("the golden files are not here")
    model = load_model(GOLDEN / "yolov10n-narrow.pt", loading=LoadOptions(head="one2many"))
    with np.load(GOLDEN / "yolov10n-narrow.npz") as golden, torch.inference_mode():
        found = model.module(torch.from_numpy(golden["images"])).numpy()
        assert np.abs(found - golden["output_one2many"].transpose(0, 2, 1)).max() <= 1e-3
