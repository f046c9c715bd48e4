"""What is known about an engine file: the record beside it, and what its builder was asked for.

An engine is a plain TensorRT plan that any tool can load. What the runtime must know besides (the model's spec, which
flavour built it, whether its numbers were ever compared) lies beside it, in ``X.trt.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deploykit.errors import ArtefactError, SpecError
from deploykit.runtime.files import exists, write_whole
from deploykit.spec import ModelSpec, read_value

__all__ = [
    "FLAVOURS",
    "EngineOptions",
    "EngineRecord",
    "Flavour",
    "Profile",
    "expected_of",
    "log_of",
    "parity_of",
    "record_of",
    "source_of",
]

FORMAT = 1

Flavour = Literal["tensorrt", "tensorrt-rtx"]

FLAVOURS: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Flavour, which is also the name of the extra that brings it -> the Python module."""


@dataclass(frozen=True)
class Profile:
    """The shapes that one optimisation profile covers: every side from ``least`` to ``most``, best at ``best``.

    Each is the shape of the network's input, ``(batch, channels, height, width)``.
    """

    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.least) == len(self.best) == len(self.most):
            raise SpecError(f"the three shapes of a profile have as many sides each, got {self}")
        for a, b, c in zip(self.least, self.best, self.most, strict=True):
            if not 1 <= a <= b <= c:
                raise SpecError(f"each side of a profile must be at least 1 and not shrink from shape to shape: {self}")

    def covers(self, shape: tuple[int, ...]) -> bool:
        """Whether an input of this shape can run in it."""
        return len(shape) == len(self.least) and all(
            a <= side <= b for a, side, b in zip(self.least, shape, self.most, strict=True)
        )

    def __str__(self) -> str:
        return " .. ".join("x".join(map(str, shape)) for shape in (self.least, self.best, self.most))


@dataclass(frozen=True)
class EngineOptions:
    """What a builder is asked for.

    Attributes:
        workspace: bytes of device memory that layers may use while they run; None: the builder's default.
        tf32: let fp32 layers round their inputs to TF32. Off: then fp32 means fp32.
        version_compatible: the engine also runs with later TensorRT versions of the same major number.
        hardware_compatible: ``none``: for the GPU model it is built on; ``ampere+``; ``same-cc``: for all GPUs of the
            same compute capability.
        compute_capabilities: for TensorRT for RTX: the GPUs to build for, ``sm89`` and so on; empty: its default,
            every one from Ampere on.
        optimization_level: 0 (quick build) to 5 (quick engine); None: the builder's default.
    """

    workspace: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: Literal["none", "ampere+", "same-cc"] = "none"
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None


@dataclass(frozen=True)
class EngineRecord:
    """The file beside an engine.

    Attributes:
        flavour: which TensorRT built it, and runs it.
        version: of that TensorRT.
        spec: of the model.
        onnx: the name of the ONNX file that it was built from, and ``onnx_sha256`` its hash.
        size: bytes of the engine.
        gpu: the GPU on which it was built; empty: none was there.
        profiles: the input shapes that it takes; none: the spec's only one.
        options: what was asked for.
        layers: how many layers the network had, and ``precision`` how many compute layers of each type.
        precision_from: where ``precision`` was read: in the parsed ``network``, or in the built ``engine``.
        verified: whether the engine ran and gave the numbers of its source.
        unverified: why not.
    """

    flavour: Flavour
    version: str
    spec: ModelSpec
    onnx: str
    onnx_sha256: str
    size: int = 0
    gpu: str = ""
    profiles: tuple[Profile, ...] = ()
    options: EngineOptions = field(default_factory=EngineOptions)
    layers: int = 0
    precision: dict[str, int] = field(default_factory=dict)
    precision_from: Literal["network", "engine"] = "network"
    verified: bool = False
    unverified: str = ""
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    def write(self, engine: Path) -> None:
        """Write it beside the engine.

        Raises:
            OutputError: it cannot be written.
        """
        write_whole(_beside(engine, ".json"), self.to_json().encode())

    @staticmethod
    def from_json(text: str) -> EngineRecord:
        """Read what :meth:`to_json` wrote.

        Raises:
            SpecError: not JSON, of a newer format, or with a field that is missing, unknown or of another type.
        """
        try:
            data = json.loads(text)
        except ValueError as e:
            raise SpecError(f"an engine's record is JSON, but this does not parse: {e}") from e
        known = data.get("format", FORMAT) if isinstance(data, dict) else FORMAT
        if not isinstance(known, int) or known > FORMAT:
            raise SpecError(f"the engine's record has format {known!r}, known is up to {FORMAT}: update deploykit")
        record = read_value(EngineRecord, data, "record")
        assert isinstance(record, EngineRecord)
        return record


def record_of(engine: Path) -> EngineRecord | None:
    """The record beside an engine, or None where there is none.

    Raises:
        SpecError: it cannot be used.
    """
    file = _beside(engine, ".json")
    if not exists(file):
        return None
    try:
        return EngineRecord.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise ArtefactError(f"cannot read {file}, which says what the engine is: {e}") from e
    except SpecError as e:
        raise SpecError(f"{file}: {e}") from e


def source_of(engine: Path) -> Path | None:
    """The ONNX file that an engine was built from, if it lies beside it: by its record, or by its own name."""
    names = [engine.with_suffix(".onnx").name]
    with contextlib.suppress(ArtefactError):  # a damaged record is told by whoever needs it
        record = record_of(engine)
        names = [*([record.onnx] if record else []), *names]
    return next((file for name in names if exists(file := engine.with_name(name))), None)


def expected_of(engine: Path) -> Path:
    """The file with what an engine must give, which is there until it is compared."""
    return _beside(engine, ".parity.npz")


def parity_of(engine: Path) -> Path:
    """The report of the comparison."""
    return _beside(engine, ".parity.json")


def log_of(engine: Path) -> Path:
    """What the builder said."""
    return _beside(engine, ".log")


def _beside(engine: Path, suffix: str) -> Path:
    return engine.with_name(engine.name + suffix)
