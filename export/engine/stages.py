"""What an engine is built from: an ONNX file, or the first stage of a detector in two stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.errors import ExportError, SpecError
from deploykit.export.engine.builder import Network, build, default_profile, parse
from deploykit.export.engine.progress import BuildProgress
from deploykit.export.engine.timing_cache import place_of_cache
from deploykit.export.graph.finalize import write
from deploykit.export.graph.passes import initializers_of
from deploykit.export.graph.split import split
from deploykit.export.options import EngineOptions
from deploykit.export.precision.read_back import check_precision
from deploykit.progress import Progress
from deploykit.runtime.backends.kept_bytes import keep_bytes, kept_bytes
from deploykit.runtime.backends.trt.bindings import BuildLog
from deploykit.runtime.cuda import Gpu
from deploykit.runtime.engine_record import Flavour, Profile, second_stage_path
from deploykit.spec import ModelSpec

__all__ = ["EngineJob", "engine_source", "whole_or_first"]


def whole_or_first(spec: ModelSpec, flavour: Flavour) -> tuple[bool, ...]:
    """Return what to try in turn: True for the whole network, False for its first stage.

    TensorRT has NMS as a layer and RoiAlign as a plugin of its own library. TensorRT for RTX has neither.
    """
    if not spec.output.two_stages:
        return (True,)
    return (True, False) if flavour == "tensorrt" else (False,)


def engine_source(file: Path, spec: ModelSpec, folder: Path, place: Path, *, whole: bool) -> Path:
    """Return the file that becomes the engine: the ONNX file, or the first stage of it unless ``whole``.

    The second stage is written into ``folder`` under its final name, because a graph names the file of its external
    weights. The first stage goes into a subfolder.

    Raises:
        ExportError: the second stage could not run.
    """
    if whole:
        return file
    if spec.precision == "bf16":
        raise ExportError(
            "the second stage runs in ONNX Runtime, which has no bf16 convolutions: export the network in fp16"
        )
    first = folder / "first" / file.name
    first.parent.mkdir()
    for graph, path in zip(split(file), (first, second_stage_path(folder / place.name)), strict=True):
        write(graph, path, sum(c.size for c in initializers_of(graph)))
    return first


@dataclass
class EngineJob:
    """One engine that is to be built: with which TensorRT, from which file, and how.

    ``source`` is the file that was tried last: ``file``, or the first stage of its network.
    """

    trt: Any
    file: Path
    spec: ModelSpec
    options: EngineOptions
    flavour: Flavour
    device: Gpu | None
    log: BuildLog
    progress: Progress
    source: Path = field(init=False)

    def __post_init__(self) -> None:
        self.source = self.file

    def built(self, folder: Path, place: Path) -> tuple[Path, Network, tuple[Profile, ...], Any]:
        """Build the whole network, or its first stage where that cannot be, for an engine at ``place``.

        A second stage is written into ``folder``. The result is the file that was built, the network, its profiles and
        the plan.

        Raises:
            ExportError: TensorRT refuses the network.
        """
        ways = whole_or_first(self.spec, self.flavour)
        for whole in ways[:-1]:
            try:
                return self._built(engine_source(self.file, self.spec, folder, place, whole=whole))
            except ExportError as e:
                self.progress.message(f"the whole network cannot become an engine, its first stage does: {e}")
        return self._built(engine_source(self.file, self.spec, folder, place, whole=ways[-1]))

    def _built(self, source: Path) -> tuple[Path, Network, tuple[Profile, ...], Any]:
        self.source = source
        self.progress.step("parsing")
        network = parse(self.trt, source, self.log)
        _check_network(network, self.spec, self.file)
        shapes = _profiles(network, self.spec, self.options.profiles)
        self.progress.step("building")
        cached = self.options.timing_cache and self.flavour == "tensorrt"  # TensorRT for RTX has no timing cache
        return source, network, shapes, _build_plan(network, self.options, shapes, self.device, cached, self.progress)


def _check_network(network: Network, spec: ModelSpec, file: Path) -> None:
    """Check that the parsed network has the input and the precision of the spec."""
    names = [info.name for info in network.inputs]
    if names != [spec.input.name]:
        raise SpecError(f"the spec expects the one input {spec.input.name!r}, {file} has {', '.join(names)}")
    check_precision(network.precision, spec.precision, f"{file}, as TensorRT reads it,")


def _profiles(network: Network, spec: ModelSpec, asked: Sequence[Profile]) -> tuple[Profile, ...]:
    if asked or all(None not in info.shape for info in network.inputs):
        return tuple(asked)
    return (default_profile(spec.input),)


def _build_plan(
    network: Network,
    options: EngineOptions,
    profiles: Sequence[Profile],
    device: Gpu | None,
    cached: bool,
    progress: Progress,
) -> Any:
    place = place_of_cache(network.trt.__version__, device) if cached and device else None
    plan, cache = build(
        network,
        options,
        profiles,
        BuildProgress(progress),
        timing_cache=kept_bytes(place) if place else None,
        bound=device.current() if device else None,
    )
    if place and cache:
        keep_bytes(place, cache)
    return plan
