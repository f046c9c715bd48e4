"""Two exports of one checkpoint have the same bytes, whoever makes them, where, when and on how many threads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import deploykit
from deploykit.export.options import Calibration, OnnxOptions, PrecisionOptions
from deploykit.export.to_onnx import export_onnx
from deploykit.runtime.verified import sha256

ASSETS = Path(deploykit.__file__).parent / "assets"
VARIANTS = {
    "fp32": "",
    "shape": "--dynamic shape",
    "nms": "--nms graph",
    "legacy": "--exporter legacy",
    "fp16": "--precision fp16",
    "bf16": "--precision bf16",
    "int8": "--precision int8 --calib images",
    "cpu": "--precision int8 --target cpu --calib images",
    "fp8": "--precision fp8 --calib images",
}
"""Name of an export -> its options."""

OLDER_PROCESSOR = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
"""What keeps torch from instructions that not every processor has; its convolutions then have other last bits."""

EXPORTS = """
import shlex, sys
from deploykit.cli import main
model, folder, size = sys.argv[1:4]
for variant in sys.argv[4:]:
    name, options = variant.split("=")
    words = ["export", model, "--img", size, "--out", f"{folder}/{name}.onnx", "--no-check", *shlex.split(options)]
    assert main(words) == 0, name
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images of noise."""
    folder = tmp_path / "images"
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), chance.integers(0, 256, (48, 64, 3), np.uint8))
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another folder, time zone, mask of permissions and number of threads, in this process."""
    folder = tmp_path / "another folder \u00e9"
    folder.mkdir()
    before, mask = torch.get_num_threads(), os.umask(0o077)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("USER", "somebody")
    time.tzset()
    torch.set_num_threads(3)
    yield folder
    torch.set_num_threads(before)
    os.umask(mask)
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_bytes_do_not_depend_on_where_when_and_how(
    precision: str, checkpoint: Path, images: Path, tmp_path: Path, elsewhere: Path
) -> None:
    other = elsewhere / "renamed.pth"
    other.write_bytes(checkpoint.read_bytes())
    calibration = Calibration(images) if precision == "int8" else None
    options = OnnxOptions(img=64, precision=PrecisionOptions(precision, calibration=calibration, cache=False))
    second = export_onnx(Path("renamed.pth"), options=options, check=False, out="second.onnx")
    torch.set_num_threads(1)
    first = export_onnx(checkpoint, options=options, check=False, out=tmp_path / "first.onnx")
    assert first.path.read_bytes() == Path(second.path).read_bytes()
    for word in (str(tmp_path), "renamed", checkpoint.stem, "somebody"):
        assert word.encode() not in first.path.read_bytes()


def exported(model: Path, folder: Path, size: int, variants: dict[str, str], environment: dict[str, str]) -> None:
    """Export in a process of its own, whose folder is that of the model."""
    words = [f"{name}={options}" for name, options in variants.items()]
    folder.mkdir()
    source = str(Path(deploykit.__file__).resolve().parents[1])
    subprocess.run(
        [sys.executable, "-c", EXPORTS, model.name, str(folder), str(size), *words],
        cwd=model.parent,
        env={**os.environ, "PYTHONPATH": source, "XDG_CACHE_HOME": str(folder / "cache"), **environment},
        check=True,
    )


def compared(
    model: Path, images: Path, folder: Path, size: int, variants: dict[str, str]
) -> dict[str, tuple[str, str]]:
    """The hashes of exports by two processes that have little in common, not even the processor's instructions."""
    for name, weights in (("one", model.name), ("two", "other name.pth")):
        place = folder / name
        place.mkdir()
        (place / weights).write_bytes(model.read_bytes())
        (place / "images").symlink_to(images)
    machine = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "LC_ALL": "C", "TZ": "UTC", "USER": "one"}
    exported(folder / "one" / model.name, folder / "first", size, variants, machine)
    machine = {
        "PYTHONHASHSEED": "4242",
        "OMP_NUM_THREADS": "2",
        "LC_ALL": "C.UTF-8",
        "TZ": "Asia/Kathmandu",
        "USER": "two",
        **OLDER_PROCESSOR,
    }
    before = os.umask(0o077)
    try:
        exported(folder / "two" / "other name.pth", folder / "second", size, variants, machine)
    finally:
        os.umask(before)
    files = {name: [folder / place / f"{name}.onnx" for place in ("first", "second")] for name in variants}
    return {name: (sha256(first), sha256(second)) for name, (first, second) in files.items()}


@pytest.mark.slow
def test_processes_that_have_little_in_common_write_the_same_bytes(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    found = compared(checkpoint, images, tmp_path, 64, VARIANTS)
    assert {name: first for name, (first, _) in found.items()} == {name: second for name, (_, second) in found.items()}
    assert len({first for first, _ in found.values()}) == len(VARIANTS)


@pytest.mark.slow
def test_a_trained_network_is_quantized_to_the_same_bytes(tmp_path: Path) -> None:
    """Here the last bits of activations decide which layers are quantized, if the number of threads changes them."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("markers.jpg", "apollo11_crew.jpg"):
        (images / name).write_bytes((ASSETS / name).read_bytes())
    first, second = compared(ASSETS / "markers.pt", images, tmp_path, 320, {"int8": VARIANTS["int8"]})["int8"]
    assert first == second
