"""Calibration: the ranges of activations, measured on images, from which the scales of int8 and fp8 follow.

Images are preprocessed exactly as at run time: by the spec's letterbox, colour order and normalization. There is no
fallback, because ranges that were measured on noise destroy a model.

Four methods give a tensor's range from its absolute values. All ranges are symmetric, so that zero is exact:

* ``minmax``: the largest value. Nothing is clipped; one outlier makes every step coarse.
* ``percentile``: the value that 99.99 % of the values do not exceed.
* ``entropy``: the range whose 128 levels lose the least information, by the Kullback-Leibler divergence from the
  clipped histogram (S. Migacz, "8-bit inference with TensorRT", GTC 2017).
* ``mse``: the range with the smallest mean squared error of rounding and clipping together.

``auto`` takes ``minmax``, ``percentile`` or ``mse``: the one with which the quantized network's outputs are nearest to
the exact ones on the images. The best method differs from network to network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from deploykit.atomic import write_atomic
from deploykit.errors import DataError, DeployError
from deploykit.export.options import Calibration, CalibrationMethod
from deploykit.export.parity.inputs import image_for, preprocess_for_parity
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import cache_folder
from deploykit.runtime.npz_file import opened_npz
from deploykit.spec import InputSpec, ModelSpec

__all__ = [
    "AUTO",
    "Activations",
    "calibration_images",
    "measure_activations",
    "range_of",
]

_log = logging.getLogger(__name__)

AUTO: tuple[CalibrationMethod, ...] = ("minmax", "percentile", "mse")
"""The methods that ``auto`` chooses from; entropy lost ten points of AP where the others lost none
(docs/precision.md)."""

BINS = 2048  # bins of a histogram of absolute values
LEVELS = 128  # levels of int8 on one side of zero
STEP = 8  # bins from one candidate of a range to the next
FORMAT = 1  # version of the cache files; other versions are not read


@dataclass(frozen=True, eq=False)
class Activations:
    """Measured activations.

    ``largest`` is the largest absolute value of each tensor, ``counts`` a histogram of its absolute values in equal
    bins from 0 to that. ``images`` is how many images were used, ``cached`` whether an earlier export measured them.
    """

    largest: dict[str, float]
    counts: dict[str, Array]
    images: int
    cached: bool = False

    def ranges(self, method: CalibrationMethod, percentile: float) -> dict[str, float]:
        """Return the range r of each tensor by one method; the tensor is quantized from -r to r."""
        return {
            name: range_of(self.counts[name], largest, method, percentile) for name, largest in self.largest.items()
        }


def measure_activations(
    graph: ir.Model,
    data: bytes,
    spec: ModelSpec,
    tensors: Sequence[str],
    calibration: Calibration,
    *,
    cache: bool = True,
    progress: Progress = SILENT,
) -> Activations:
    """Measure float tensors of an fp32 graph on images.

    Args:
        graph: a graph without subgraphs.
        data: the bytes of the graph's file, for the key of the cache.
        spec: the spec of the graph, whose preprocessing is used.
        tensors: the names of the tensors; the graph's input may be one of them.
        calibration: the images.
        cache: read and keep results in the cache folder, by the hash of the model, the images and the tensors.
        progress: receives how many runs are done; each image is run twice.

    Raises:
        DataError, NotFoundError, ImageError: images are missing or cannot be read.
    """
    files = calibration.images()
    path = cache_folder() / "calibration" / f"{_key(data, files, tensors)}.npz"
    if cache and (known := _read(path, tensors, len(files))) is not None:
        progress.message("ranges of an earlier export are used: --no-calib-cache measures them again")
        return known
    done = 0
    largest = dict.fromkeys(tensors, 0.0)
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in tensors}

    def see_largest(name: str, value: torch.Tensor) -> None:
        if name in largest:
            largest[name] = float(np.maximum(largest[name], float(value.abs().max())))  # NaN stays NaN

    def count(name: str, value: torch.Tensor) -> None:
        if name in counts and largest[name] > 0.0:
            counts[name] += torch.histc(value.abs(), BINS, 0.0, largest[name])

    for observe in (see_largest, count):
        with OnnxInTorchSession(graph, observe=observe) as session:
            (info,) = session.inputs
            for image in _images(files, spec.input):
                observe(info.name, torch.from_numpy(image))
                session.run({info.name: image})
                done += 1
                total = 2 * len(files)
                progress.share(f"ranges, {done} of {total} runs", done / total)
        broken = next((name for name, value in largest.items() if not np.isfinite(value)), None)
        if broken is not None:
            raise DataError(f"the tensor {broken!r} has values that are not finite, so its range cannot be measured")
    found = Activations(largest, {name: counted.numpy() for name, counted in counts.items()}, len(files))
    if cache:
        _write_cache(path, found)
    return found


def range_of(histogram: Array, largest: float, method: CalibrationMethod, percentile: float = 99.99) -> float:
    """Return the range that follows from a histogram of absolute values with equal bins from 0 to ``largest``."""
    if method == "minmax" or largest <= 0.0 or not histogram.any():
        return largest
    width = largest / len(histogram)
    if method == "percentile":
        return width * (1 + _percentile_bin(histogram, percentile))
    return width * (_entropy_bins(histogram) if method == "entropy" else _mse_bins(histogram))


def _percentile_bin(histogram: Array, percentile: float) -> int:
    share = np.cumsum(histogram) / histogram.sum()
    return int(np.searchsorted(share, percentile / 100.0 - 1e-12))


def _entropy_bins(histogram: Array) -> int:
    """Return the number of bins of the range whose quantized distribution is nearest to the clipped one."""
    histogram = histogram.astype(np.float64)
    histogram[0] = histogram[1]  # a spike at zero, which is exact in every range, would outweigh the rest
    best, chosen = np.inf, len(histogram)
    for bins in range(LEVELS, len(histogram) + 1, STEP):
        reference = histogram[:bins].copy()
        reference[-1] += histogram[bins:].sum()
        inside = histogram[:bins]
        level = np.arange(bins) * LEVELS // bins
        filled = inside > 0
        counts = np.bincount(level, filled, LEVELS)
        spread = np.bincount(level, inside, LEVELS) / np.maximum(counts, 1)
        quantized = np.where(filled, spread[level], 0.0)
        divergence = _divergence(reference, quantized)
        if divergence < best:
            best, chosen = divergence, bins
    return chosen


def _divergence(p: Array, q: Array) -> float:
    """Return the Kullback-Leibler divergence in nats; where only p has probability, q gets 1e-4."""
    smooth = 1e-4
    p, q = p / p.sum(), q / max(q.sum(), 1e-300)
    q = np.where((q == 0) & (p > 0), smooth, q)
    used = p > 0
    return float((p[used] * np.log(p[used] / q[used])).sum() + q.sum() - 1.0)


def _mse_bins(histogram: Array) -> int:
    """Return the number of bins of the range with the smallest squared error of rounding and clipping."""
    centres = np.arange(len(histogram)) + 0.5
    candidates = np.arange(LEVELS, len(histogram) + 1, STEP)
    steps = candidates[:, None] / (LEVELS - 1.0)
    levels = np.minimum(np.round(centres / steps), LEVELS - 1.0) * steps
    # The spread within a bin adds the same error for every candidate.
    errors = ((levels - centres) ** 2 * histogram).sum(1)
    return int(candidates[errors.argmin()])


def calibration_images(calibration: Calibration, spec: ModelSpec, count: int) -> list[Array]:
    """Return ``count`` images of a calibration, the first one and others spread over all, preprocessed."""
    files = calibration.images()
    count = min(count, len(files))
    return list(_images([files[i * len(files) // count] for i in range(count)], spec.input))


def _images(files: Sequence[Path], canvas: InputSpec) -> Iterator[Array]:
    """Yield each image, preprocessed; a network with a fixed batch gets it in every slot."""
    slots = canvas.batch if canvas.dynamic == "none" else 1
    said = False
    for file in files:
        image = image_for(file, canvas)
        if canvas.channels not in (1, image.shape[2]) and not said:
            said = True
            _log.warning(
                "the network takes %d channels, but %s has %d: red, green, blue and grey stand in for them in the "
                "calibration",
                canvas.channels,
                file,
                image.shape[2],
            )
        yield preprocess_for_parity(image, canvas, auto=False).repeat(slots, 0)


def _key(data: bytes, files: Sequence[Path], tensors: Sequence[str]) -> str:
    """Return a hash of everything that the ranges depend on, including the bytes of the images."""
    digest = hashlib.sha256(data)
    for file in files:
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as e:
            raise DataError(f"cannot read the image {file}: {e.strerror or e}") from e
    digest.update(json.dumps({"format": FORMAT, "bins": BINS, "tensors": list(tensors)}).encode())
    return digest.hexdigest()


def _read(path: Path, tensors: Sequence[str], images: int) -> Activations | None:
    """Read cached activations; None if there are none, or if the file is damaged."""
    try:
        with opened_npz(path) as array:
            largest, counts = array("largest"), array("counts")
    except (OSError, ValueError):
        return None
    if largest.shape != (len(tensors),) or counts.shape != (len(tensors), BINS):
        return None
    if not (np.isfinite(largest).all() and (largest >= 0).all() and np.isfinite(counts).all()):
        return None
    values = dict(zip(tensors, map(float, largest), strict=True))
    return Activations(values, dict(zip(tensors, counts, strict=True)), images, cached=True)


def _write_cache(path: Path, found: Activations) -> None:
    """Write activations to the cache; without a cache that can be written, nothing is kept."""
    data = BytesIO()
    np.savez_compressed(
        data, largest=np.array(list(found.largest.values())), counts=np.stack(list(found.counts.values()))
    )
    with contextlib.suppress(DeployError):
        write_atomic(path, data.getvalue(), durable=False)
