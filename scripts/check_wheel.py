"""Check that an installed wheel has its native CPU library, and that NMS by it gives what numpy gives.

Needs numpy alone: ``python scripts/check_wheel.py``, outside the source tree.
"""

from __future__ import annotations

import numpy as np

import deploykit
from deploykit.runtime.native.library import cpu_library, find_library, native_nms
from deploykit.runtime.postprocess.nms import numpy_nms
from deploykit.spec import RawDetections, Thresholds


def main() -> None:
    assert cpu_library() is not None, f"the wheel in {deploykit.__file__} has no native library that loads"
    random = np.random.default_rng(0)
    rows = random.uniform(0, 1, (3000, 8)).astype(np.float32)
    rows[:, :2] *= 640
    rows[:, 2:4] = 20 + 100 * rows[:, 2:4]
    layout, thresholds = RawDetections(box=(0, 4), obj=(4, 5), cls=(5, 8)), Thresholds(conf=0.3, iou=0.5)
    native, pure = native_nms(rows, layout, thresholds), numpy_nms(rows, layout, thresholds)
    assert native is not None
    for ours, numpys in zip(native[:4], (pure.rows, pure.boxes, pure.scores, pure.labels), strict=True):
        assert np.array_equal(ours, numpys)
    print(f"{find_library('cpu')}: the same {len(pure.rows)} of {native[4]} candidates as numpy")


if __name__ == "__main__":
    main()
