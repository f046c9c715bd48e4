"""Images for calibrations."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from deploykit.export.parity.inputs import sample_image


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    image = cv2.imread(str(sample_image()))
    assert image is not None
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), image[100 * i : 100 * i + 200, 200 * i : 200 * i + 240])
    return folder
