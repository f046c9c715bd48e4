"""What says that an exported file is verified, and whether it is about this file.

An ONNX file has its parity report beside it (``X.onnx.parity.json``) with the SHA-256 of the file, of its external
weights, and of the checkpoint that it was made from. An engine has a record (``X.trt.json``) with the SHA-256 of the
engine, of the second stage of its network, and of the ONNX file. Sizes are compared whenever a file is opened, hashes
where that is asked for: reading a large file takes as long as loading it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.errors import ArtefactError
from deploykit.runtime.engine_record import (
    EngineRecord,
    parity_report_path,
    read_record,
    reference_values_path,
    second_stage_path,
)
from deploykit.runtime.files import exists
from deploykit.strict_json import JsonError, read_json

__all__ = ["check_verified", "digests", "engine_doubt", "onnx_doubt", "sha256", "size_doubt"]


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(file: Path, parts: Sequence[Path], checkpoint: str = "") -> dict[str, Any]:
    """Return what a parity report says of its file.

    These are ``sha256``; ``size``, the bytes of the file and its parts together; ``parts``, the SHA-256 of those that
    exist, by name; and ``checkpoint_sha256`` where it is known.
    """
    beside = [part for part in parts if part.exists()]
    about: dict[str, Any] = {
        "sha256": sha256(file),
        "size": sum(each.stat().st_size for each in (file, *beside)),
    }
    if beside:
        about["parts"] = {part.name: sha256(part) for part in beside}
    if checkpoint:
        about["checkpoint_sha256"] = checkpoint
    return about


def size_doubt(file: Path) -> str:
    """Return why an ONNX file cannot be the one that its parity report is about, by its size; empty: it can be.

    No weights are read, so this is done whenever a file is opened. A file without a report is in no doubt here.
    """
    report = parity_report_path(file)
    try:
        about = read_json(report)
        size, parts = about["size"], about.get("parts", {})
        found = sum(file.with_name(name).stat().st_size for name in (file.name, *parts))
    except (OSError, JsonError, KeyError, TypeError, AttributeError, ValueError):
        return ""  # there is none, or it is an older one; what is wrong with it is said where hashes are compared
    if found == size or not isinstance(size, int):
        return ""
    return (
        f"{file} is not the file that was verified: its parity report is of {size:,} bytes, and there are {found:,} "
        f"(deploykit inspect --verify {file})"
    )


def check_verified(file: Path) -> None:
    """Check that an exported file is verified, and unchanged since.

    Raises:
        ArtefactError: nothing says that it is verified, or it is another file than the one that was.
    """
    if file.suffix.lower() == ".onnx":
        doubt = onnx_doubt(file)
    else:
        record = read_record(file)
        doubt = f"there is no record ({file.name}.json) beside it"
        if record is not None:
            doubt = engine_doubt(file, record)
            if not doubt and not record.verified and not exists(reference_values_path(file)):
                doubt = f"its numbers are not verified: {record.unverified or 'it was never compared'}"
    if doubt:
        raise ArtefactError(f"{file} is not known to be verified: {doubt}")


def onnx_doubt(file: Path) -> str:
    """Return why nothing says that an ONNX file is verified; empty: its parity report is about this very file.

    Raises:
        ArtefactError: the file cannot be read.
    """
    report = parity_report_path(file)
    if not exists(report):
        return "there is no parity report beside it: its numbers are not verified"
    try:
        about = read_json(report)
    except (OSError, JsonError):
        return f"the parity report beside it ({report.name}) cannot be read: export again"
    if not isinstance(about, dict) or not isinstance(about.get("sha256"), str):
        return f"the parity report beside it ({report.name}) does not say which file it is about: export again"
    parts = about.get("parts", {})
    expected = {file.name: about["sha256"], **(parts if isinstance(parts, dict) else {})}
    return _difference(file, expected, f"the parity report beside it ({report.name})")


def engine_doubt(engine: Path, record: EngineRecord) -> str:
    """Return why the record beside an engine is not about this engine; empty: it is.

    Raises:
        ArtefactError: a file cannot be read.
    """
    if not record.sha256:
        return f"its record ({engine.name}.json) has no hash of the engine: build it again"
    rest = second_stage_path(engine)
    if exists(rest) and not record.second_stage:
        return f"its record ({engine.name}.json) knows of no second stage, but {rest.name} lies beside it"
    stages = {"": record.sha256, **record.second_stage}
    expected = {f"{engine.name}{ending}": digest for ending, digest in stages.items()}
    return _difference(engine, expected, f"its record ({engine.name}.json)")


def _difference(file: Path, expected: Mapping[str, str], report: str) -> str:
    """Return which of the files beside ``file`` is missing, or is another one; empty: none."""
    for name, digest in expected.items():
        if not name or Path(name).name != name:
            return f"{report} names {name!r}, which does not lie beside it"
        part = file.with_name(name)
        if not exists(part):
            return f"{report} is about a file with {name}, which is missing"
        try:
            same = sha256(part) == digest
        except OSError as e:
            raise ArtefactError(f"cannot read {part}: {e.strerror or e}") from e
        if not same:
            return f"{report} is of another file: {name} has changed since it was verified, or was replaced"
    return ""
