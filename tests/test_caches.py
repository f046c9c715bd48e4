"""Everything that is kept between runs: what is damaged is as if it were not there, and is made again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import BackendError
from deploykit.export.parity.reference_cache import keep_values, kept_values
from deploykit.export.precision import calibration
from deploykit.export.precision.calibration import Activations
from deploykit.runtime.backends.kept_bytes import keep_bytes, kept_bytes
from deploykit.runtime.files import cache_folder
from deploykit.runtime.native.library import FOLDER, SUMS, abi_of, check_undamaged, cpu_library
from deploykit.runtime.parity.expected import ParityInputs

IMAGE = np.zeros((1, 3, 4, 4), np.float32)
VALUES = np.random.default_rng(0).random((2, 30))
COUNTS = np.random.default_rng(1).random((1, calibration.BINS))


def of_a_library() -> Callable[[], object]:
    place = cache_folder() / "timing" / "tensorrt.cache"
    keep_bytes(place, bytes(range(256)) * 8)
    return lambda: kept_bytes(place) or None


def of_reference_values() -> Callable[[], object]:
    feeds = ParityInputs({"noise": IMAGE, "image": IMAGE}, ())
    keep_values("0" * 64, {"noise": VALUES, "image": VALUES[:1]})

    def read() -> object:
        found = kept_values("0" * 64, feeds)
        return found and [each.tobytes() for each in found.values()]

    return read


def of_ranges() -> Callable[[], object]:
    path = cache_folder() / "calibration" / "key.npz"
    calibration._write_cache(path, Activations({"x": 2.0}, {"x": COUNTS[0]}, 1))

    def read() -> object:
        found = calibration._read(path, ["x"], 1)
        return found and (found.largest, found.counts["x"].tobytes())

    return read


@pytest.mark.parametrize("keep", [of_a_library, of_reference_values, of_ranges])
def test_damage_is_noticed(
    keep: Callable[[], Callable[[], object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One changed byte or a lost end: the content is the same or is not there, and never another one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    read = keep()
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole, content, noticed = file.read_bytes(), read(), 0
    assert content is not None

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(whole) - 1), st.integers(0, 255))
    def damaged(place: int, change: int) -> None:
        nonlocal noticed
        changed = bytearray(whole)
        changed[place] ^= change
        file.write_bytes(changed if change else changed[:place])
        found = read()
        assert found in (None, content)
        noticed += found is None

    damaged()
    assert noticed > 50
    assert keep()() == content  # it is kept again in the same place


def test_a_damaged_library_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It could end the process."""
    library = tmp_path / "libdeploykit_cpu.so"
    library.write_bytes(b"as it was built")
    lines = [f"{hashlib.sha256(library.read_bytes()).hexdigest()}  {library.name}", "nothing"]
    (tmp_path / SUMS).write_text("\n".join(lines))
    check_undamaged(library)
    library.write_bytes(b"as it was buiIt")
    with pytest.raises(BackendError, match=r"cpu\.so is damaged, it has not the SHA-256 of SHA256SUMS: deploykit plug"):
        abi_of(library)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert cpu_library() is None
    assert "is damaged" in caplog.text
    assert "until then numpy does its work" in caplog.text
    (tmp_path / SUMS).write_bytes(b"\xff\xfe")
    check_undamaged(library)  # as a wheel's, which has no sums


def test_built_libraries_have_their_sums(cpu_library: Path) -> None:
    (line,) = (cpu_library / SUMS).read_text().splitlines()
    digest, name = line.split("  ")
    assert hashlib.sha256((cpu_library / name).read_bytes()).hexdigest() == digest
