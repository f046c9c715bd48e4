"""Networks with one dense output: images in, classes, label maps or restored images out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from deploykit.errors import DeployError, ImageError, SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.placing import Placed, dense_blob, place
from deploykit.runtime.images.reading import ImageSource, decode_image, encoded_image
from deploykit.runtime.images.sources import Frame, Images, Skip, Video
from deploykit.runtime.images.tiles import Tiling, run_tiled
from deploykit.runtime.postprocess.dense import DENSE_TASKS, dense_output, label_map, restored, top_classes
from deploykit.runtime.predict.base import SourcePredictor, checked_batch, input_as_said
from deploykit.runtime.raw.mosaic import RawImage, is_raw, pack, read_raw, unpack
from deploykit.runtime.results.dense import Classification, DenseResult, Features, LabelMap, RestoredImage, RestoredRaw
from deploykit.runtime.session import Session, TensorInfo, spec_of
from deploykit.spec import DenseOutput, InputSpec, ModelSpec

__all__ = ["DensePredictor"]

TOP = 5
OVERLAP = 32  # of tiles, where nothing else is asked for
FREE_TILE = 512  # pixels a side of the tiles of a mosaic, for a network that takes any size
RAW_CHANNELS = 4


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A frame on its canvas; without a place it is for tiles."""

    frame: Frame
    placed: Placed | None
    canvas: Array
    ms: float


class DensePredictor(SourcePredictor[DenseResult, _Prepared]):
    """Classifies images, their pixels, or restores them, with one network. May be called from several threads.

    Images to restore that do not fit a network of fixed size are cut into tiles of that size; a network of free size
    takes them whole, unless tiles are asked for. A network of four channels that restores takes the mosaics of RAW
    files, always in tiles; its result is a :class:`deploykit.runtime.results.dense.RestoredRaw`.

    Args:
        session: the network; :func:`deploykit.open_session` opens one. Closed together with the predictor.
        spec: what it takes and gives; None reads it from the session's metadata.
        top: so many classes of an image (``classify``).
        tile: pixels a side of a tile, or (height, width); of a mosaic in cells of 2 x 2 (``restore``).
        overlap: of tiles, in their pixels: how deep in its tile a pixel lies that is kept (``restore``).
        batch: images, or tiles, in one call of a network with a dynamic batch; None takes the spec's preference.

    Raises:
        SpecError: the spec is missing, is of another task, or does not fit the network.
        UsageError: an option of another task, or one that the network cannot take.
    """

    def __init__(
        self,
        session: Session,
        spec: ModelSpec | None = None,
        *,
        top: int | None = None,
        tile: int | tuple[int, int] | None = None,
        overlap: int | None = None,
        batch: int | None = None,
    ) -> None:
        self.session = session
        self.spec = spec_of(session, "the model") if spec is None else spec
        info = _checked(session, self.spec)
        self._fixed_batch = info.shape[0] is not None
        self._fixed_size = None not in info.shape[2:]
        self._dtype = np.dtype(info.dtype)
        self.batch = checked_batch(info, self.spec.input.batch if batch is None else batch)
        self.takes_raw = self.spec.task == "restore" and self.spec.input.channels == RAW_CHANNELS
        self.top = self._top(top)
        self.tiling = self._tiling(tile, overlap)

    def _top(self, top: int | None) -> int:
        if top is None:
            return TOP
        if self.spec.task != "classify" or top < 1:
            raise UsageError(f"top is at least 1, of a network that classifies; this one's task is {self.spec.task}")
        return top

    def _tiling(self, tile: int | tuple[int, int] | None, overlap: int | None) -> Tiling | None:
        """How large images are cut; None: not at all."""
        canvas = self.spec.input
        if self.spec.task != "restore":
            if tile is not None or overlap is not None:
                raise UsageError(f"tiles are for networks that restore images; this one's task is {self.spec.task}")
            return None
        size = (tile, tile) if isinstance(tile, int) else tile
        stride = canvas.fit.stride
        if size is not None and any(side % stride for side in size):
            raise UsageError(f"the sides of a tile are multiples of this network's stride {stride}, got {size}")
        if self._fixed_size:
            if size not in (None, canvas.size):
                raise UsageError(f"this network takes tiles of {canvas.size} (height, width) only, got {size}")
            size = canvas.size
        elif size is None:
            if not (self.takes_raw or canvas.fit.kind == "tile" or overlap is not None):
                return None
            size = (FREE_TILE, FREE_TILE)
        most = (min(size) - canvas.fit.step) // 2
        asked = max(min(OVERLAP, most // 2), 0) if overlap is None else overlap
        return Tiling(size, asked, self.batch, canvas.fit.step)

    def restore_raw(self, raw: RawImage) -> RestoredRaw:
        """Restore a mosaic: packed to four channels, in tiles, and back.

        Raises:
            UsageError: the network takes no mosaics. BackendError: it failed.
        """
        if not self.takes_raw or self.tiling is None:
            raise UsageError(f"a mosaic is for a network that restores {RAW_CHANNELS} channels, which this is not")
        start = time.perf_counter()
        mean, std = _columns(self.spec.input)
        planes = (pack(raw) - mean) / std
        ready = time.perf_counter()
        found = self._tiled(np.ascontiguousarray(planes, np.float32), self.tiling)
        done = time.perf_counter()
        if found.shape != planes.shape:
            raise SpecError(f"a network for mosaics gives channels of their size {planes.shape}, got {found.shape}")
        out = unpack(found.astype(np.float32) * std + mean, raw)
        marks = (start, ready, done, time.perf_counter())
        timings = {s: 1e3 * (b - a) for s, a, b in zip(STAGES[1:], marks, marks[1:], strict=False)}
        count = len(self.tiling.places(planes.shape[1:]))
        return RestoredRaw(size=raw.mosaic.shape, name=raw.name, timings={"read": 0.0, **timings}, raw=out, tiles=count)

    def _results(self, source: Images | Video, skip: Skip | None) -> Iterator[DenseResult]:
        if not self.takes_raw or isinstance(source, Video):
            yield from super()._results(source, skip)
            return
        for raw, items in groupby(source.items, key=_is_raw):
            part = Images(tuple(items), source.keep_files)
            yield from self._raw_results(part, skip) if raw else super()._results(part, skip)

    def _raw_results(self, source: Images, skip: Skip | None) -> Iterator[DenseResult]:
        for item in source.items:
            start = time.perf_counter()
            try:
                raw = read_raw(cast("str | os.PathLike[str]", item))
            except DeployError as e:
                if skip is None:
                    raise
                skip(e)
                continue
            read_ms = (time.perf_counter() - start) * 1e3
            found = self.restore_raw(raw)
            yield replace(found, timings={**found.timings, "read": read_ms})

    def _frames(self, source: Images | Video, skip: Skip | None) -> Iterator[Frame]:
        channels = self.spec.input.channels
        if channels in (1, 3):
            return source.frames(skip)
        if isinstance(source, Video):
            raise UsageError(f"this network takes images of {channels} channels, and videos have 3")
        return source.frames(skip, read=lambda item: _many_channels(item, channels))

    def _prepare(self, frame: Frame) -> _Prepared:
        start = time.perf_counter()
        image = frame.image
        tiled = self.tiling is not None and not (self._fixed_size and image.shape[:2] == self.spec.input.size)
        placed = None if tiled else place(image, self.spec.input) if self.tiling is None else _whole(image)
        canvas = image if placed is None else placed.canvas
        return _Prepared(frame, placed, canvas, (time.perf_counter() - start) * 1e3)

    def _run(self, batch: list[_Prepared]) -> list[DenseResult]:
        if batch[0].placed is None:
            return [self._run_in_tiles(prepared) for prepared in batch]
        start = time.perf_counter()
        images = dense_blob([p.canvas for p in batch], self.spec.input)
        if self._fixed_batch and len(batch) < self.batch:
            images = np.concatenate((images, np.zeros((self.batch - len(batch), *images.shape[1:]), np.float32)))
        ready = time.perf_counter()
        outputs = self.session.run({self.spec.input.name: images.astype(self._dtype, copy=False)})
        done = time.perf_counter()
        found = dense_output(outputs, self.spec, batch[0].frame.name or "an image")
        share = len(batch)
        before = [p.ms + 1e3 * (ready - start) / share for p in batch]
        inference = 1e3 * (done - ready) / share
        return [self._result(p, found[i], (before[i], inference), 1) for i, p in enumerate(batch)]

    def _run_in_tiles(self, prepared: _Prepared) -> DenseResult:
        assert self.tiling is not None
        start = time.perf_counter()
        image = dense_blob([prepared.canvas], self.spec.input)[0]
        ready = time.perf_counter()
        found = self._tiled(image, self.tiling)
        inference = 1e3 * (time.perf_counter() - ready)
        tiles = len(self.tiling.places(image.shape[1:]))
        return self._result(prepared, found, (prepared.ms + 1e3 * (ready - start), inference), tiles)

    def _tiled(self, image: Array, tiling: Tiling) -> Array:
        def run(tiles: Array) -> Array:
            outputs = self.session.run({self.spec.input.name: tiles.astype(self._dtype, copy=False)})
            return dense_output(outputs, self.spec, "a tile")

        return run_tiled(run, image, tiling, whole_batches=self._fixed_batch)

    def _result(self, prepared: _Prepared, output: Array, ms: tuple[float, float], tiles: int) -> DenseResult:
        start = time.perf_counter()
        frame = prepared.frame
        placed = prepared.placed or _whole(frame.image)
        output = output.astype(np.float32, copy=False)
        made: type[DenseResult]
        found: dict[str, Any]
        if self.spec.task == "classify":
            labels, scores = top_classes(output, min(self.top, len(output)))
            made, found = Classification, {"labels": labels, "scores": scores, "classes": self.spec.classes}
        elif self.spec.task == "segment":
            classes = _two(self.spec.classes) if len(output) == 1 else self.spec.classes
            made, found = LabelMap, {"labels": label_map(output, placed), "classes": classes}
        elif self.spec.task == "features":
            made, found = Features, {"values": output}
        else:
            made, found = RestoredImage, {"pixels": restored(output, placed, self.spec.input), "tiles": tiles}
        stages = (frame.read_ms, *ms, 1e3 * (time.perf_counter() - start))
        return made(
            size=placed.source,
            name=frame.name,
            frame=frame.number,
            timings=dict(zip(STAGES, stages, strict=True)),
            image=frame.image if frame.keep and frame.image.shape[2:] == (3,) else None,
            **found,
        )


STAGES = ("read", "prepare", "inference", "postprocess")


def _is_raw(item: ImageSource) -> bool:
    return isinstance(item, (str, os.PathLike)) and is_raw(item)


def _whole(image: Array) -> Placed:
    """An image that is its own canvas."""
    height, width = image.shape[:2]
    return Placed(image, (height, width), (0, 0, width, height))


def _two(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a network with one logit: what is not its class has none of its own."""
    return ("background", *classes) if len(classes) == 1 else classes


def _columns(canvas: InputSpec) -> tuple[Array, Array]:
    """Mean and std of each channel, to be applied to ``(C, H, W)``."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (canvas.mean, canvas.std))
    return mean, std


def _many_channels(source: ImageSource, channels: int) -> Array:
    """An image of so many channels, ``uint8 (H, W, C)``, as the file or the array has it."""
    if isinstance(source, np.ndarray):
        image = source
    else:
        data = source if isinstance(source, bytes) else encoded_image(Path(source))
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
        image = decode_image(data) if decoded is None else decoded  # which says what is wrong
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        raise ImageError(
            f"this network takes uint8 images of {channels} channels (height, width, {channels}), got {image.dtype} "
            f"{image.shape}: a PNG or TIFF file can have four, an array any number"
        )
    return image


def _checked(session: Session, spec: ModelSpec) -> TensorInfo:
    """The network's one input, if the spec is of a task with one dense output and fits the network's tensors."""
    if spec.task not in DENSE_TASKS or not isinstance(spec.output, DenseOutput):
        raise SpecError(
            f"a DensePredictor runs the tasks {', '.join(DENSE_TASKS)}, with one dense output; this spec's task is "
            f"{spec.task!r}, its output of kind {spec.output.kind!r}"
        )
    want = spec.input
    if not want.channels == len(want.mean) == len(want.std):
        counts = f"channels {want.channels}, {len(want.mean)} means, {len(want.std)} stds"
        raise SpecError(f"a spec has a mean and a std for each channel; this one says {counts}")
    info = input_as_said(session, want)
    names = [output.name for output in session.outputs]
    if len(names) > 1 and spec.output.name not in names:
        raise SpecError(f"the spec names the output {spec.output.name!r}, the network has {', '.join(names)}")
    return info
