"""The record beside an engine file: what the engine is, and the options that it was built with.

An engine is a plain TensorRT plan that any tool can load. Everything else that the runtime must know (the model's spec,
the flavour that built it, whether its outputs were ever verified) lies beside it, in ``X.trt.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deploykit.atomic import write_atomic
from deploykit.errors import ArtefactError, SpecError
from deploykit.runtime.files import exists
from deploykit.spec import ModelSpec, read_value
from deploykit.spec.checks import SPACES, check_text
from deploykit.spec.json_values import LATER
from deploykit.strict_json import JsonError, parse_json, read_json

__all__ = [
    "FLAVOURS",
    "BuilderOptions",
    "EngineRecord",
    "Flavour",
    "HardwareCompatibility",
    "Profile",
    "build_log_path",
    "find_onnx_source",
    "parity_report_path",
    "read_record",
    "record_path",
    "reference_values_path",
    "second_stage_path",
]

FORMAT = 1
KEYS = {"min": "least", "opt": "best", "max": "most"}
"""The fields of a :class:`Profile` -> their keys in the file, which stay as the first version wrote them."""

Flavour = Literal["tensorrt", "tensorrt-rtx"]
HardwareCompatibility = Literal["none", "ampere+", "same-cc"]

FLAVOURS: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Flavour, which is also the name of the extra that installs it -> the Python module."""


@dataclass(frozen=True)
class Profile:
    """The shapes of one optimisation profile: each dimension ranges from ``min`` to ``max``.

    The engine is optimised for ``opt``. Each is a shape of the network's input, ``(batch, channels, height, width)``.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise SpecError(f"the three shapes of a profile must have equally many dimensions, got {self}")
        for a, b, c in zip(self.min, self.opt, self.max, strict=True):
            if not 1 <= a <= b <= c:
                raise SpecError(
                    f"the dimensions of a profile must be at least 1 and not decrease from shape to shape, got {self}"
                )

    def covers(self, shape: tuple[int, ...]) -> bool:
        """Return whether an input of this shape can run in the profile."""
        return len(shape) == len(self.min) and all(
            a <= side <= b for a, side, b in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        return " .. ".join("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))


@dataclass(frozen=True)
class BuilderOptions:
    """Options of the builder.

    Attributes:
        workspace: bytes of device memory that layers may use while they run; None: the builder's default.
        tf32: let fp32 layers round their inputs to TF32. False: fp32 layers compute in fp32.
        version_compatible: the engine also runs with later TensorRT versions of the same major version.
        hardware_compatible: ``none``: the engine runs on the GPU model that it is built on; ``ampere+``: on all GPUs
            from Ampere on; ``same-cc``: on all GPUs of the same compute capability.
        compute_capabilities: TensorRT for RTX only: the GPUs to build for, such as ``sm89``; empty: its default, every
            one from Ampere on.
        optimization_level: 0 (fast build) to 5 (fast engine); None: the builder's default.
    """

    workspace: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: HardwareCompatibility = "none"
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None


@dataclass(frozen=True)
class EngineRecord:
    """The content of the file beside an engine.

    Attributes:
        flavour: the TensorRT flavour that built the engine and runs it.
        version: the version of that TensorRT.
        spec: the spec of the model.
        onnx: the name of the ONNX file that the engine was built from; ``onnx_sha256`` is its hash.
        size: size of the engine in bytes; ``sha256`` is its hash.
        second_stage: the hashes of the second stage's files, by what their names add to the engine's.
        onnx_parts: the hashes of the ONNX file's external data, by the names of these files.
        reports: the hashes of the files that say something about the engine, by what their names add to the engine's.
        gpu: the GPU on which the engine was built; empty: it was built without a GPU.
        profiles: the input shapes that the engine accepts; empty: only the shape of the spec.
        options: the options of the build.
        layers: number of layers in the network; ``precision`` counts the compute layers per type.
        precision_from: the source of ``precision``: the parsed ``network`` or the built ``engine``.
        verified: whether the engine ran and its outputs agreed with its source.
        unverified: the reason if it is not verified.
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
    sha256: str = field(default="", metadata=LATER)
    second_stage: dict[str, str] = field(default_factory=dict, metadata=LATER)
    onnx_parts: dict[str, str] = field(default_factory=dict, metadata=LATER)
    reports: dict[str, str] = field(default_factory=dict, metadata=LATER)

    def __post_init__(self) -> None:
        if not _is_name(self.onnx):
            raise SpecError(f"the record's onnx must be the name of a file beside the engine, got {self.onnx[:80]!a}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as it stands in the file."""
        profiles = [{KEYS[name]: shape for name, shape in vars(profile).items()} for profile in self.profiles]
        later = [f.name for f in dataclasses.fields(self) if f.metadata.get("later")]
        absent = [name for name in later if not getattr(self, name)]
        return {k: v for k, v in (dataclasses.asdict(self) | {"profiles": profiles}).items() if k not in absent}

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def write(self, engine: Path) -> None:
        """Write the record beside the engine.

        Raises:
            OutputError: it cannot be written.
        """
        write_atomic(record_path(engine), self.to_json().encode())

    @staticmethod
    def from_json(text: str) -> EngineRecord:
        """Read a record that :meth:`to_json` wrote.

        Raises:
            SpecError: the text is not JSON, is of a newer format, or a field is missing, unknown or of another type.
        """
        try:
            return EngineRecord.from_dict(parse_json(text))
        except JsonError as e:
            raise SpecError(f"an engine record must be JSON, but this one cannot be parsed: {e}") from e

    @staticmethod
    def from_dict(data: Any) -> EngineRecord:
        """Read a record from parsed JSON.

        Raises:
            SpecError: see :meth:`from_json`.
        """
        found = data.get("format", FORMAT) if isinstance(data, dict) else FORMAT
        if not isinstance(found, int) or not 1 <= found <= FORMAT:
            raise SpecError(
                f"expected an engine record of format {FORMAT} or older, got format {found!r:.80}: update deploykit"
            )
        if isinstance(data, dict) and isinstance(profiles := data.get("profiles"), list):
            data["profiles"] = [_with_names(profile) for profile in profiles]
        record = read_value(EngineRecord, data, "record")
        assert isinstance(record, EngineRecord)
        texts = {name: value for name, value in vars(record).items() if isinstance(value, str)}
        for name, text in texts.items():
            check_text(f"record.{name}", text, allowed=SPACES)
        for name in (*record.precision, *record.options.compute_capabilities):
            check_text("a name in the record", name)
        return record


def _is_name(name: str) -> bool:
    """Return whether a name in the folder of an engine leads nowhere else."""
    return name == Path(name).name and name not in ("", "..") and "\x00" not in name


def _with_names(profile: object) -> object:
    """A profile of the file by the names of :class:`Profile`."""
    names = {key: name for name, key in KEYS.items()}
    return {names.get(key, key): shape for key, shape in profile.items()} if isinstance(profile, dict) else profile


def read_record(engine: Path) -> EngineRecord | None:
    """Read the record beside an engine; None where there is none.

    Raises:
        ArtefactError: the file cannot be read.
        SpecError: the record is invalid.
    """
    file = record_path(engine)
    if not exists(file):
        return None
    try:
        return EngineRecord.from_dict(read_json(file))
    except (OSError, JsonError) as e:
        raise ArtefactError(
            f"cannot read the engine record {file} ({e}): copy it again, or build the engine again"
        ) from e
    except SpecError as e:
        raise SpecError(f"{file}: {e}") from e


def find_onnx_source(engine: Path) -> Path | None:
    """Return the ONNX file that an engine was built from, or None if it does not lie beside the engine.

    The name in the record comes first, then the engine's own name with the suffix ``.onnx``.
    """
    names = [engine.with_suffix(".onnx").name]
    with contextlib.suppress(ArtefactError):  # a damaged record is reported where it is needed
        record = read_record(engine)
        names = [*([record.onnx] if record else []), *names]
    return next((file for name in names if exists(file := engine.with_name(name))), None)


def record_path(engine: Path) -> Path:
    """Return the path of the record beside an engine."""
    return _beside(engine, ".json")


def reference_values_path(engine: Path) -> Path:
    """Return the path of an engine's reference values, written if the build could not verify the engine."""
    return _beside(engine, ".parity.npz")


def parity_report_path(file: Path) -> Path:
    """Return the path of the parity report of an engine or an ONNX file."""
    return _beside(file, ".parity.json")


def second_stage_path(engine: Path) -> Path:
    """Return the path of the network's second stage, which follows an engine; the file may not exist."""
    return _beside(engine, ".rest.onnx")


def build_log_path(engine: Path) -> Path:
    """Return the path of the builder's log."""
    return _beside(engine, ".log")


def _beside(engine: Path, suffix: str) -> Path:
    return engine.with_name(engine.name + suffix)
