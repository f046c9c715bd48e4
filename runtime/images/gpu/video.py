"""Video files decoded on an NVIDIA GPU by PyNvVideoCodec, behind what this package uses of OpenCV's reader."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import cv2
import numpy as np

from deploykit.errors import BackendError, import_extra
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.gpu.choice import EXTRA

__all__ = ["GpuCapture", "capture_on_gpu"]

AHEAD = 8  # frames that are decoded before they are asked for

NOTHING: Array = np.empty(0, np.uint8)

TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}

_log = logging.getLogger(__name__)


class GpuCapture:
    """Frames of a video file from a GPU, BGR and upright.

    What the file declares is asked of OpenCV, which reads the same file without decoding it: so counts, frames per
    second and the rotation mean the same.

    Args:
        path: the file.
        gpu: the number of the GPU.
        declared: OpenCV's reader of the file.

    Raises:
        MissingDependencyError: PyNvVideoCodec is not installed.
        BackendError: it does not start, or does not decode this file.
    """

    def __init__(self, path: str, gpu: int, declared: cv2.VideoCapture) -> None:
        codec = _codec()
        self._declared = declared
        self._turn = TURNS.get(round(declared.get(cv2.CAP_PROP_ORIENTATION_META)) % 360)
        self._decoder: Any = None
        try:
            self._decoder = codec.ThreadedDecoder(
                path, AHEAD, gpu_id=gpu, use_device_memory=False, output_color_type=codec.OutputColorType.RGB
            )
            about = self._decoder.get_stream_metadata()
            self._size = int(about.height), int(about.width)
        except Exception as e:  # its exceptions share no base class
            self._end()
            raise BackendError(f"PyNvVideoCodec does not decode it on cuda:{gpu}: {' '.join(str(e).split())}") from e

    def isOpened(self) -> bool:  # noqa: N802  (OpenCV's name)
        """Whether frames can be read."""
        return self._decoder is not None

    def get(self, what: int) -> float:
        """Return what the file declares; see OpenCV."""
        return float(self._declared.get(what))

    def read(self) -> tuple[bool, Array]:
        """Return the next frame as BGR ``uint8 (H, W, 3)``; False and nothing after the last one, and where one fails.

        Raises:
            BackendError: the frames are not what was asked for.
        """
        if self._decoder is None:
            return False, NOTHING
        try:
            frames = self._decoder.get_batch_frames(1)
        except Exception as e:  # as above
            _log.debug("a frame could not be decoded on the GPU: %s", e)
            return False, NOTHING
        if not frames:
            return False, NOTHING
        (height, width), size = self._size, int(frames[0].framesize())
        if size != height * width * 3:
            raise BackendError(f"PyNvVideoCodec gives frames of {size:,} bytes, expected {width} x {height} x 3")
        # The memory is the decoder's and is written again: the conversion is the copy.
        memory = (ctypes.c_uint8 * size).from_address(int(frames[0].GetPtrToPlane(0)))
        image: Array = cv2.cvtColor(np.ctypeslib.as_array(memory).reshape(height, width, 3), cv2.COLOR_RGB2BGR)
        return True, image if self._turn is None else cv2.rotate(image, self._turn)

    def release(self) -> None:
        """Close the file; a second call does nothing."""
        self._end()
        self._declared.release()

    def _end(self) -> None:
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder.end()


def _codec() -> Any:
    try:
        return import_extra("PyNvVideoCodec", EXTRA)
    except RuntimeError as e:  # it looks for the driver's libraries when it is imported
        raise BackendError(f"PyNvVideoCodec cannot be loaded: {' '.join(str(e).split())}") from e


def capture_on_gpu(path: str, name: str, gpu: int, declared: cv2.VideoCapture) -> GpuCapture | cv2.VideoCapture:
    """Return a reader of a video file on a GPU; ``declared``, with a warning, where it does not decode this file.

    Args:
        path: the file.
        name: stands for it in the warning.
        gpu: the number of the GPU.
        declared: OpenCV's reader of the file.

    Raises:
        MissingDependencyError: PyNvVideoCodec is not installed.
    """
    if not declared.isOpened():
        return declared
    try:
        return GpuCapture(path, gpu, declared)
    except BackendError as e:
        _log.warning("%s is decoded on the CPU: %s", name, e)
        return declared
