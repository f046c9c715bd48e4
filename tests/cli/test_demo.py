"""``deploykit demo``: codes are found on the image that ships, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.cli import main
from deploykit.errors import OutputError
from tests.cli.test_main import run_in_process
from tests.error_line import told


def test_it_finds_every_code_on_the_desk_and_draws_it_without_torch(root: Path, tmp_path: Path) -> None:
    done = run_in_process("demo", "--out", str(tmp_path / "d"))
    assert done.returncode == 0, done.stderr
    assert not {"torch", "onnx"} & set(json.loads(done.stderr.splitlines()[-1]))
    assert "markers.jpg: qr code 4, aruco marker 4" in done.stdout
    for name in ("markers.onnx", "markers.pt", "markers.jpg"):
        assert (tmp_path / "d" / name).read_bytes() == (root / "deploykit" / "assets" / name).read_bytes()
    drawn, image = (cv2.imread(str(tmp_path / "d" / name)) for name in ("results/markers.jpg", "markers.jpg"))
    assert drawn.shape == image.shape
    assert np.abs(drawn.astype(int) - image).max() > 100
    for word in ("predict", "bench", "export", "compare"):
        assert f"deploykit {word} {tmp_path / 'd'}" in done.stdout
    again = run_in_process("demo", "--out", str(tmp_path / "d"))
    assert again.returncode == 0


def test_a_file_of_somebody_else_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "markers.pt").write_bytes(b"my own")
    assert main(["demo", "--out", str(tmp_path)]) == OutputError.exit_code
    said = told(capsys.readouterr().err.strip())
    place = tmp_path / "markers.pt"
    assert said == f"{place} exists and is not the file that ships with deploykit: choose another folder with --out"
    assert (tmp_path / "markers.pt").read_bytes() == b"my own"
