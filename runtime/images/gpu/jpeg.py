"""JPEG files decoded on an NVIDIA GPU by nvImageCodec, with the meaning that OpenCV's decoding has.

The pixels are BGR, not turned by EXIF, and colours at half resolution are interpolated as libjpeg does it, which is not
that decoder's default. What it does not take, it declines, and OpenCV decodes it.
"""

from __future__ import annotations

import threading
from typing import Any

import cv2
import numpy as np

from deploykit.errors import BackendError, import_extra
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.gpu.choice import EXTRA

__all__ = ["decoded_jpeg"]

OPTIONS = ":fancy_upsampling=1"
_own = threading.local()  # a decoder is made once for each thread and GPU


def decoded_jpeg(data: bytes, size: tuple[int, int], gpu: int) -> Array | None:
    """Return a JPEG as BGR ``uint8 (H, W, 3)``, as stored; None where the GPU does not decode it.

    Args:
        data: the file.
        size: its (height, width), as stored.
        gpu: the number of the GPU.

    Raises:
        MissingDependencyError: nvImageCodec is not installed.
        BackendError: it does not start on this GPU.
    """
    decoder, params = _decoder(gpu)
    try:
        found = decoder.decode(data, params=params)
        image = None if found is None else found.cpu()
    except RuntimeError as e:
        raise BackendError(f"nvImageCodec failed on cuda:{gpu}: {' '.join(str(e).split())}") from e
    if image is None:
        return None
    pixels: Array = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.shape[:2] != size:
        return None
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(pixels)


def _decoder(gpu: int) -> tuple[Any, Any]:
    made: dict[int, tuple[Any, Any]] = _own.__dict__.setdefault("decoders", {})
    if gpu not in made:
        codec: Any = import_extra("nvidia.nvimgcodec", EXTRA)
        try:
            decoder = codec.Decoder(**decoder_arguments(codec, gpu), options=OPTIONS)
        except RuntimeError as e:
            raise BackendError(f"nvImageCodec does not start on cuda:{gpu}: {' '.join(str(e).split())}") from e
        params = codec.DecodeParams(
            apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB, sample_format=codec.SampleFormat.I_BGR
        )
        made[gpu] = decoder, params
    return made[gpu]


def decoder_arguments(codec: Any, gpu: int) -> dict[str, Any]:
    """Return where the decoder is to run: the parts of the GPU, and not the CPU alone, whose work would be hidden."""
    kinds = (codec.BackendKind.HW_GPU_ONLY, codec.BackendKind.GPU_ONLY, codec.BackendKind.HYBRID_CPU_GPU)
    return {"device_id": gpu, "backends": [codec.Backend(kind) for kind in kinds]}
