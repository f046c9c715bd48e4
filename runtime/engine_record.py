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
from typing import Any, Literal

from deploykit.errors import ArtefactError, SpecError
from deploykit.runtime.files import exists, write_whole
from deploykit.spec import ModelSpec, read_value

__all__ = [
    "FLAVOURS",
    "BuilderOptions",
    "EngineRecord",
    "Flavour",
    "HardwareCompatibility",
    "Profile",
    "find_onnx_source",
    "log_of",
    "parity_of",
    "read_record",
    "reference_values_path",
]

FORMAT = 1
KEYS = {"min": "least", "opt": "best", "max": "most"}
"""The fields of a :class:`Profile` -> their keys in the file, which stay as the first version wrote them."""

Flavour = Literal["tensorrt", "tensorrt-rtx"]
HardwareCompatibility = Literal["none", "ampere+", "same-cc"]

FLAVOURS: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Flavour, which is also the name of the extra that brings it -> the Python module."""


@dataclass(frozen=True)
class Profile:
    """The shapes that one optimisation profile covers: every side from ``min`` to ``max``, quickest at ``opt``.

    Each is the shape of the network's input, ``(batch, channels, height, width)``.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise SpecError(f"the three shapes of a profile have as many sides each, got {self}")
        for a, b, c in zip(self.min, self.opt, self.max, strict=True):
            if not 1 <= a <= b <= c:
                raise SpecError(f"each side of a profile must be at least 1 and not shrink from shape to shape: {self}")

    def covers(self, shape: tuple[int, ...]) -> bool:
        """Whether an input of this shape can run in it."""
        return len(shape) == len(self.min) and all(
            a <= side <= b for a, side, b in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        return " .. ".join("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))


@dataclass(frozen=True)
class BuilderOptions:
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
    hardware_compatible: HardwareCompatibility = "none"
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
    options: BuilderOptions = field(default_factory=BuilderOptions)
    layers: int = 0
    precision: dict[str, int] = field(default_factory=dict)
    precision_from: Literal["network", "engine"] = "network"
    verified: bool = False
    unverified: str = ""
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as it stands in the file."""
        profiles = [{KEYS[name]: shape for name, shape in vars(profile).items()} for profile in self.profiles]
        return {**dataclasses.asdict(self), "profiles": profiles}

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

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
        if isinstance(data, dict) and isinstance(profiles := data.get("profiles"), list):
            data["profiles"] = [_with_names(profile) for profile in profiles]
        record = read_value(EngineRecord, data, "record")
        assert isinstance(record, EngineRecord)
        return record


def _with_names(profile: object) -> object:
    """A profile of the file by the names of :class:`Profile`."""
    names = {key: name for name, key in KEYS.items()}
    return {names.get(key, key): shape for key, shape in profile.items()} if isinstance(profile, dict) else profile


def read_record(engine: Path) -> EngineRecord | None:
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


def find_onnx_source(engine: Path) -> Path | None:
    """The ONNX file that an engine was built from, if it lies beside it: by its record, or by its own name."""
    names = [engine.with_suffix(".onnx").name]
    with contextlib.suppress(ArtefactError):  # a damaged record is told by whoever needs it
        record = read_record(engine)
        names = [*([record.onnx] if record else []), *names]
    return next((file for name in names if exists(file := engine.with_name(name))), None)


def reference_values_path(engine: Path) -> Path:
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
