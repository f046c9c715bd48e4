"""The torch YOLOX against its numpy twin, in the trained form and folded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.yolox.model import VARIANTS, build_yolox
from deploykit.models.fuse import fuse_model
from tests.reference.yolox import network

KINDS = ("yolox_nano", "yolox_m", "yolox_darknet53", "yolox_s_ti_lite", "yolox_s_pose", "yolox_s_pose_ti_lite")


@pytest.mark.parametrize("name", KINDS)
def test_the_network_is_its_publication_written_down_again(name: str) -> None:
    num_classes = 2
    torch.manual_seed(3)
    module = build_yolox(VARIANTS[name].config(num_classes, num_keypoints=3, width=0.125))
    randomise(module)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(4)) * 255
    weights = {key: t.double().numpy() for key, t in module.state_dict().items()}
    expected = network(images.double().numpy(), weights, num_classes)
    columns = np.arange(expected.shape[-1])
    pixels = (columns < 4) | ((columns >= 5 + num_classes) & ((columns - 5 - num_classes) % 3 < 2))
    change = np.abs(expected[0] - expected[1])[:, pixels].max()
    assert change > 0.02, "the rows depend on the image, and by far more than the limits"
    with torch.no_grad():
        for form in (module, fuse_model(module)):
            error = np.abs(form(images).numpy() - expected)
            assert (error[..., pixels] <= 1e-3 + 1e-5 * np.abs(expected[..., pixels])).all()
            assert error[..., ~pixels].max() <= 1e-5
