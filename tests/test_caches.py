"""Everything that is kept between runs: what is damaged is as if it were not there, and is made again."""

from __future__ import annotations

import hashlib
import os
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
from deploykit.export.precision.search.journal import Journal
from deploykit.runtime.backends import kept_bytes as kept_module
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

    @settings(max_examples=150, database=None, suppress_health_check=list(HealthCheck))
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


def test_a_folder_of_the_cache_has_a_limit_and_the_oldest_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches, ranges and reference values were kept for ever."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept_module, "MOST", 40_000)
    ranges = cache_folder() / "calibration"
    for number in range(9):
        Journal.of(bytes([number]), [], {}).recall(["layer"], lambda: "x" * 9_000)
        counts = np.random.default_rng(number).random(calibration.BINS, np.float32)
        calibration._write_cache(ranges / f"{number}.npz", Activations({"x": 2.0}, {"x": counts}, 1))
        if number == 3:
            for file in (cache_folder() / "keep").iterdir():
                os.utime(file, (0, 0))
            for old in range(4):
                os.utime(ranges / f"{old}.npz", (old, old))
            # The first ones are used again, and so are not the oldest.
            assert Journal.of(bytes([0]), [], {}).recall(["layer"], lambda: "") == "x" * 9_000
            assert calibration._read(ranges / "0.npz", ["x"], 1) is not None
        if number == 5:
            assert Journal.of(bytes([0]), [], {}).recall(["layer"], lambda: "gone") == "x" * 9_000
            assert (ranges / "0.npz").exists()
            assert not (ranges / "1.npz").exists()
    for name in ("keep", "calibration"):
        assert 20_000 < sum(file.stat().st_size for file in (cache_folder() / name).iterdir()) <= 40_000
    assert Journal.of(bytes([8]), [], {}).recall(["layer"], lambda: "gone") == "x" * 9_000
    assert Journal.of(bytes([1]), [], {}).recall(["layer"], lambda: "gone") == "gone"


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
