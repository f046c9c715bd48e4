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

import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from statistics import fmean

import numpy as np
import onnx_ir as ir
import torch

from deploykit.errors import DataError
from deploykit.export.options import Calibration, CalibrationMethod
from deploykit.export.parity.inputs import image_for, preprocess_for_parity
from deploykit.export.precision.observed import BINS, ObservedGraph, Running, on_grid, with_peaks
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.kept_bytes import keep_file
from deploykit.runtime.files import cache_folder
from deploykit.runtime.npz_file import opened_npz
from deploykit.spec import InputSpec, ModelSpec

__all__ = [
    "AUTO",
    "Activations",
    "Begun",
    "calibration_images",
    "choose_method",
    "measure_activations",
    "on_grid",
    "range_of",
    "spread_numbers",
    "unseen_images",
]

_log = logging.getLogger(__name__)

AUTO: tuple[CalibrationMethod, ...] = ("minmax", "percentile", "mse")
"""The methods that ``auto`` chooses from; entropy lost ten points of AP where the others lost none
(docs/precision.md)."""

HALF = 2  # images on which a method has to be near the best one, to be run on the others; half of two or three
BEHIND = 1.1  # errors whose ratio is more than this are not near: those of an image go up and down together
LEVELS = 128  # levels of int8 on one side of zero
STEP = 8  # bins from one candidate of a range to the next
FORMAT = 5  # version of the cache files; other versions are not read


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

    def of(self, names: Mapping[str, str]) -> Activations:
        """Return what was measured of these tensors, by other names: new name -> name here."""
        largest = {name: self.largest[here] for name, here in names.items()}
        return replace(self, largest=largest, counts={name: self.counts[here] for name, here in names.items()})

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
    watch: Callable[[int, dict[str, Array]], None] = lambda number, outputs: None,
    progress: Progress = SILENT,
    begun: Begun | None = None,
    channels: Collection[str] = (),
) -> Activations:
    """Measure float tensors of an fp32 graph on images.

    Args:
        graph: a graph without subgraphs, which may get further nodes.
        data: what tells the graph from others, for the key of the cache.
        spec: the spec of the graph, whose preprocessing is used.
        tensors: the names of the tensors; the graph's input may be one of them.
        calibration: the images.
        cache: read and keep results in the cache folder, by the hash of the model, the images and the tensors.
        watch: receives the number of each image that is run, and the graph's outputs for it.
        progress: receives how many images have been run.
        begun: what was measured on some of the images, which are not run again; has that of all of them afterwards.
        channels: tensors whose channels' largest values ``begun`` gets too, of the images that are run.

    Raises:
        DataError, NotFoundError, ImageError: images are missing or cannot be read.
    """
    files = calibration.images()
    path = cache_folder() / "calibration" / f"{_key(data, files, tensors)}.npz"
    if cache and (known := _read(path, tensors, len(files))) is not None:
        progress.message("ranges of an earlier export are used: --no-calib-cache measures them again")
        return known
    begun = Begun() if begun is None else begun
    running, left = begun.tensors(tensors), [file for file in files if file not in begun.files]

    peaks = {peak: name for name, peak in with_peaks(graph, channels).items()} if left else {}

    def look(name: str, largest: float, some: Array) -> None:
        if name in peaks:
            begun.add_peaks(peaks[name], some.ravel())
        else:
            running[name].add(largest, torch.from_numpy(some))

    given = str(graph.graph.inputs[0].name)

    def images() -> Iterator[Array]:
        for image in _images(left, spec.input):
            if given in running:
                running[given].add(float(np.abs(image).max()), torch.from_numpy(image))
            yield image

    if left:
        with ObservedGraph(graph, [*(name for name in tensors if name != given), *peaks], look) as network:
            for file, outputs in zip(left, network.run_each(images()), strict=True):
                watch(files.index(file), outputs)
                begun.files.append(file)
                done = len(begun.files)
                progress.share(f"ranges, {done} of {len(files)} images", done / len(files))
    broken = next((name for name, one in running.items() if not math.isfinite(one.largest)), None)
    if broken is not None:
        raise DataError(f"the tensor {broken!r} has values that are not finite, so its range cannot be measured")
    found = Activations(
        {name: on_grid(running[name].largest) for name in tensors},  # in this order in the cache
        {name: running[name].counts() for name in tensors},
        len(files),
    )
    if cache:
        _write_cache(path, found)
    return found


class Begun:
    """What was measured of tensors on some images, so that others can be added.

    ``files`` are the images; ``peaks`` the largest absolute values of the channels of tensors, ``(channels,)``.
    """

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.peaks: dict[str, Array] = {}
        self._running: dict[str, Running] = {}
        self._lock = threading.Lock()

    def joined(self, other: Begun, names: Mapping[str, str]) -> Begun:
        """Return what was measured of these tensors and of others on the same images: ``names`` are those here."""
        new = Begun()
        new.files = list(self.files)
        new._running = {here: other._running[there] for there, here in names.items()} | self._running
        return new

    def add_peaks(self, name: str, largest: Array) -> None:
        """Add the largest absolute values of a tensor's channels on one image."""
        with self._lock:
            self.peaks[name] = np.maximum(self.peaks.get(name, largest), largest)

    def tensors(self, names: Sequence[str]) -> dict[str, Running]:
        """Return what is measured of these tensors; they are the same each time."""
        self._running = self._running or {name: Running() for name in names}
        return self._running


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


def choose_method(
    found: Activations,
    calibration: Calibration,
    errors_with: Callable[[dict[str, float], slice], list[float]],
    progress: Progress,
    best: Sequence[float] = (),
    images: int = 2 * HALF,
) -> tuple[CalibrationMethod, dict[str, list[float]], dict[str, float]]:
    """Return the best calibration method, the errors by method and image, and the best one's ranges.

    A method that is far behind on the first half of the images is not run on the others, and has no further errors.

    Args:
        found: what the ranges follow from.
        calibration: the method, or ``auto``.
        errors_with: returns the error on each of these images with ranges.
        progress: receives which method is tried.
        best: errors by image that are to be beaten.
        images: how many images methods are compared on.
    """
    half = min(HALF, (images + 1) // 2)
    methods = AUTO if calibration.method == "auto" else (calibration.method,)
    ranges = {method: found.ranges(method, calibration.percentile) for method in methods}
    errors: dict[str, list[float]] = {}
    for method in methods:
        progress.step(f"comparing {method}")
        errors[str(method)] = some = errors_with(ranges[method], slice(half))
        if best and fmean(some) > BEHIND * fmean(best[:half]):
            continue
        errors[str(method)] = every = [*some, *errors_with(ranges[method], slice(half, images))]
        best = every if not best or fmean(every) < fmean(best) else best
    most = max(map(len, errors.values()))
    best_method = min((m for m in methods if len(errors[m]) == most), key=lambda method: fmean(errors[method]))
    if not math.isfinite(fmean(errors[best_method])):
        raise DataError(
            f"expected finite outputs of the quantized network, but with the ranges of {', '.join(methods)} it gives "
            "NaN or infinity on the calibration images: check the checkpoint, or keep its layers in fp32 "
            "(--keep)"
        )
    return best_method, errors, ranges[best_method]


def calibration_images(calibration: Calibration, spec: ModelSpec, count: int) -> list[Array]:
    """Return the images of a calibration with the numbers of :func:`spread_numbers`, preprocessed."""
    files = calibration.images()
    return list(_images([files[number] for number in spread_numbers(len(files), count)], spec.input))


def unseen_images(calibration: Calibration, spec: ModelSpec, seen: int, count: int) -> list[Array]:
    """Return so many images of a calibration beside the ``seen`` ones of :func:`calibration_images`, preprocessed."""
    files = calibration.images()
    others = sorted(set(range(len(files))) - set(spread_numbers(len(files), seen)))
    chosen = [files[others[number]] for number in spread_numbers(len(others), count)]
    return list(_images(chosen, spec.input))


def spread_numbers(total: int, count: int) -> list[int]:
    """Return the numbers of ``count`` images of so many, or of all: the first one and others spread over all."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


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
        os.utime(path)  # it was used last
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
    keep_file(path, data.getvalue())
