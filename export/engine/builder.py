"""TensorRT's builder, for both flavours: an ONNX file to the bytes of an engine.

Precision is in the ONNX file: TensorRT 11 has no flags for it, so none are used with TensorRT 10 either. Enumerations
are looked up by name, because their numbers differ between versions. Only the interface that TensorRT 10.0 to 11.1 and
TensorRT for RTX share is used; anything else is looked up first.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import DeployError, ExportError, UsageError
from deploykit.export.engine.progress import BuildProgress, monitor
from deploykit.runtime.backends.trt.bindings import BuildLog, dtype_name, logger
from deploykit.runtime.engine_record import BuilderOptions, Flavour, Profile
from deploykit.runtime.session import TensorInfo, shape_matches
from deploykit.spec import InputSpec

__all__ = ["Network", "build", "check_options", "default_profile", "parse"]

MAX_BATCH = 8  # largest batch of the default profile

PRECISIONS = {
    "float32": "fp32", "float16": "fp16", "bf16": "bf16", "int8": "int8", "fp8": "fp8", "int4": "int4", "fp4": "fp4",
}  # fmt: skip
COMPUTE = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
HARDWARE = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}


@dataclass
class Network:
    """A parsed network, with everything that must live as long as it does.

    ``precision`` counts the compute layers (convolutions, matrix products) by the type of their inputs.
    """

    trt: Any
    builder: Any
    definition: Any
    parser: Any
    log: BuildLog
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: int
    precision: dict[str, int]


def parse(trt: Any, file: Path, log: BuildLog) -> Network:
    """Parse an ONNX file with TensorRT.

    Raises:
        ExportError: TensorRT cannot parse it, or cannot create a builder; the message has TensorRT's reason.
    """
    try:
        said = logger(trt, log)
        builder = trt.Builder(said)
    except (TypeError, RuntimeError) as e:  # raised by the constructor if CUDA does not start
        raise ExportError(f"TensorRT cannot create a builder here: {_reason(log, str(e))}") from e
    # Since 11 every network is strongly typed; before, the types of the ONNX file are kept only with this flag.
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    definition = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(definition, said)
    if not parser.parse_from_file(str(file)):
        errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ExportError(f"TensorRT cannot parse {file}: {errors[0] if errors else _reason(log, 'no reason given')}")
    inputs = tuple(_info(definition.get_input(i)) for i in range(definition.num_inputs))
    outputs = tuple(_info(definition.get_output(i)) for i in range(definition.num_outputs))
    precision = _precision(trt, definition)
    return Network(trt, builder, definition, parser, log, inputs, outputs, definition.num_layers, precision)


def _parser_error(error: Any) -> str:
    node = f" ({error.node_operator()} {error.node_name()!r})" if error.node_operator() else ""
    return f"{' '.join(error.desc().split())}{node}"


def _info(tensor: Any) -> TensorInfo:
    return TensorInfo(tensor.name, tuple(None if d < 0 else d for d in tensor.shape), dtype_name(tensor.dtype))


def _precision(trt: Any, definition: Any) -> dict[str, int]:
    """Count the compute layers by the type of their operands, the narrow type if both are dequantized from it."""
    kinds = {getattr(trt.LayerType, name) for name in COMPUTE}
    layers = [definition.get_layer(i) for i in range(definition.num_layers)]
    narrow: dict[str, str] = {}  # tensor -> the type that it was dequantized from
    for layer in layers:
        if layer.type == trt.LayerType.DEQUANTIZE:
            narrow[layer.get_output(0).name] = dtype_name(layer.get_input(0).dtype)
        elif layer.type in (trt.LayerType.SHUFFLE, trt.LayerType.IDENTITY) and layer.get_input(0).name in narrow:
            narrow[layer.get_output(0).name] = narrow[layer.get_input(0).name]
    found: Counter[str] = Counter()
    for layer in layers:
        if layer.type not in kinds:
            continue
        sides = [layer.get_input(i) for i in range(min(layer.num_inputs, 2))]
        stored = [narrow.get(side.name, "") for side in sides if side is not None]
        both = len(stored) == 2 and stored[0] == stored[1]
        name = stored[0] if both and stored[0] else dtype_name(layer.get_input(0).dtype)
        found[PRECISIONS.get(name, name)] += 1
    return dict(found.most_common())


def default_profile(canvas: InputSpec) -> Profile:
    """Return the default profile of a dynamic network.

    It takes batches of 1 to 8, or to the preferred number if that is larger. With a dynamic shape it takes every
    rectangle within the preferred size, because images become such rectangles.
    """
    best = (canvas.batch, canvas.channels, *canvas.size)
    most = (max(MAX_BATCH, canvas.batch), canvas.channels, *canvas.size)
    side = canvas.fit.stride
    least = (1, canvas.channels, side, side) if canvas.dynamic == "shape" else (1, *best[1:])
    return Profile(least, best, most)


def check_options(flavour: Flavour, options: BuilderOptions) -> None:
    """Check early that a flavour has all options that are set.

    Raises:
        UsageError: the flavour lacks an option, or a number is out of range.
    """
    if flavour == "tensorrt-rtx":
        if options.version_compatible:
            raise UsageError("TensorRT for RTX builds no version-compatible engines: build one per version")
        if options.hardware_compatible != "none":
            raise UsageError(
                "TensorRT for RTX builds for several GPUs with --compute-capability (by default for every one from "
                "Ampere on), not with --hardware-compatible"
            )
    elif options.compute_capabilities:
        raise UsageError("--compute-capability is for TensorRT for RTX; TensorRT builds for the GPU that it runs on")
    if options.workspace is not None and options.workspace < 1:
        raise UsageError(f"the workspace must be at least 1 byte, got {options.workspace}")
    if options.optimization_level is not None and not 0 <= options.optimization_level <= 5:
        raise UsageError(f"the optimization level must be from 0 to 5, got {options.optimization_level}")


def build(
    network: Network,
    options: BuilderOptions,
    profiles: Sequence[Profile],
    progress: BuildProgress,
    *,
    timing_cache: bytes | None = None,
    bound: contextlib.AbstractContextManager[None] | None = None,
) -> tuple[Any, bytes | None]:
    """Build an engine in a separate thread, so that Ctrl-C ends the build at its next step.

    Args:
        network: from :func:`parse`.
        options: the builder's options.
        profiles: the profiles of the one input; none for a network whose shapes are all fixed.
        progress: receives how far the build is.
        timing_cache: an old timing cache, or empty bytes for a new one; None builds without a cache.
        bound: a context that makes the GPU current in the building thread; None: there is no GPU.

    Returns:
        The engine in TensorRT's own memory (a buffer, with ``nbytes``), and the timing cache if there is one.

    Raises:
        ExportError: TensorRT built no engine, or failed during the build; the message has its reason.
        DeployError: raised by ``bound``, if the GPU cannot be made current.
        UsageError: this TensorRT lacks an option, or a profile does not fit the network.
    """
    trt, watch = network.trt, monitor(network.trt, progress)
    config = network.builder.create_builder_config()
    _apply(trt, config, options)
    _add_profiles(network, config, profiles)
    cache = _attach_cache(config, timing_cache)
    config.progress_monitor = watch

    def work() -> Any:
        with bound or contextlib.nullcontext():
            return network.builder.build_serialized_network(network.definition, config)

    try:
        plan = run_interruptibly(work, progress)
    except (DeployError, KeyboardInterrupt):
        raise
    except BaseException as e:
        raise ExportError(f"TensorRT built no engine: {type(e).__name__}: {e}") from e
    if plan is None:
        raise ExportError(f"TensorRT built no engine: {_reason(network.log, 'no reason given')}")
    return plan, None if cache is None else bytes(cache.serialize())


def run_interruptibly(work: Callable[[], Any], progress: BuildProgress) -> Any:
    """Run ``work`` in a thread of its own and return its result, or raise what it raised.

    Ctrl-C cancels ``progress``, and this function waits until the work has ended, however often it is pressed: the
    builder uses objects that would be freed without it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    results: list[Any] = []
    failed: list[BaseException] = []
    gate, begun = threading.Lock(), threading.Event()
    ended = threading.Event()  # Thread.join, once interrupted, takes a running thread for one that has ended

    def run() -> None:
        try:
            with gate:
                if progress.cancelled:
                    return
                begun.set()
            results.append(work())
        except BaseException as e:  # raised again in the caller; threading would only print it
            failed.append(e)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="engine build", daemon=True)
    interrupted: KeyboardInterrupt | None = None
    while True:
        try:
            if interrupted is None:
                thread.start()
            ended.wait()
            break
        except KeyboardInterrupt as e:
            interrupted = e
            with gate:
                progress.cancel()
            if not begun.is_set():
                break
    try:
        if interrupted is not None:
            raise interrupted
        if failed:
            raise failed[0]
        return results[0]
    finally:  # an error holds this frame, which must not hold the error: what work needs would wait for the collector
        interrupted = None
        failed.clear()


def _apply(trt: Any, config: Any, options: BuilderOptions) -> None:
    flags = trt.BuilderFlag
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector reports the layers' types
    (config.set_flag if options.tf32 else config.clear_flag)(flags.TF32)  # TensorRT's default is on
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options.hardware_compatible != "none":
        level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[options.hardware_compatible], None)
        if level is None:
            raise UsageError(
                f"TensorRT {trt.__version__} has no hardware compatibility {options.hardware_compatible!r}: it needs "
                "10.9 or newer"
            )
        config.hardware_compatibility_level = level
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.compute_capabilities:
        known = {name.lower(): member for name, member in trt.ComputeCapability.__members__.items()}
        config.num_compute_capabilities = len(options.compute_capabilities)
        for i, name in enumerate(options.compute_capabilities):
            if name not in known:
                have = ", ".join(n for n in known if n.startswith("sm"))
                raise UsageError(f"TensorRT for RTX {trt.__version__} builds for {have}, not for {name!r}")
            config.set_compute_capability(known[name], i)


def _add_profiles(network: Network, config: Any, profiles: Sequence[Profile]) -> None:
    dynamic = [info for info in network.inputs if None in info.shape]
    if not dynamic:
        if profiles:
            raise UsageError("a profile needs a dynamic input, and all shapes are fixed: export it with --dynamic")
        return
    if len(dynamic) > 1:
        raise UsageError(f"profiles are for one dynamic input, the network has {', '.join(i.name for i in dynamic)}")
    (info,) = dynamic
    for wanted in profiles:
        for shape in (wanted.min, wanted.opt, wanted.max):
            if not shape_matches(info.shape, shape):
                raise UsageError(f"a profile's shape must match {info}, got {'x'.join(map(str, shape))}")
        profile = network.builder.create_optimization_profile()
        profile.set_shape(info.name, wanted.min, wanted.opt, wanted.max)
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"TensorRT refused the profile {wanted}: {_reason(network.log, 'no reason given')}")


def _attach_cache(config: Any, old: bytes | None) -> Any:
    """Attach a timing cache; a new one replaces an old one that TensorRT refuses (another version or GPU)."""
    if old is None:
        return None
    cache = config.create_timing_cache(old)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _reason(log: BuildLog, otherwise: str) -> str:
    """Return the first error of the log, from which the others follow; ``otherwise`` if there is none."""
    errors = log.errors()
    return " ".join(errors[0].split()) if errors else otherwise
