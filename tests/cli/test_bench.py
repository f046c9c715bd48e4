"""``deploykit bench`` as a person or a script uses it. No test judges a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from deploykit.cli import main
from deploykit.errors import (
    ArtefactError,
    BackendError,
    DeployError,
    DeviceError,
    ImageError,
    NotFoundError,
    SpecError,
    UsageError,
)
from deploykit.runtime import session
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.runtime.engine_record import EngineRecord
from deploykit.runtime.session import Session
from tests.cell_model import RED, cell_spec, planted, write_cell_model
from tests.error_line import told

SHORT = ("--runs", 3, "--warmup", 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "two.png"
    path.write_bytes(cv2.imencode(".png", planted((1, 2, RED), (4, 4, RED), scale=4))[1].tobytes())
    return path


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Session]], None]:
    """Register ``open_session`` as the backend of engines."""

    def register(open_session: Callable[..., Session]) -> None:
        module = ModuleType("tests.backend_of_engines")
        module.open_session = open_session  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for suffix in (".trt", ".engine"):
            monkeypatch.setitem(session.BACKENDS, suffix, {"fake": module.__name__})

    return register


def _bench(*words: object) -> int:
    return main(["bench", *map(str, words)])


def _line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of complaint."""
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, err
    return told(lines[0])


def test_two_tables_that_say_what_they_include(model: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench("--engine", model, "--source", image, *SHORT, "--threads", 1) == 0
    out, err = capsys.readouterr()
    told = " ".join(out.split())
    assert [line.split("] ")[1] for line in err.splitlines()] == ["loading", "measuring"]
    facts, alone, whole = out.split("\n\n")[:3]
    for word in ("file ", "model ", "input ", "preprocessing ", "machine ", "versions ", "images ", "memory "):
        assert f"\n{word}" in f"\n{facts}"
    assert "CPUExecutionProvider; threads: 1 for the network (as asked for), " in told
    assert "images float32 (1, 3, 64, 64); run with (1, 3, 64, 64)" in told
    assert f"{image}: 1 image, 256x256 (width x height), {image.stat().st_size} bytes encoded" in told
    assert "0 runs of warm-up in 0.0 s, not counted; then 3 measured in" in told
    assert "the first run of an input shape does not count: 1 such after the warm-up" in told
    assert "synthetic" not in told
    assert alone.startswith("MODEL ONLY (ms per run of 1 image): the network's call on a ready float32 batch")
    assert [line.split()[0] for line in alone.splitlines()[2:-1]] == ["ms", "network"]
    assert alone.splitlines()[-1].endswith("images per second through the network alone")
    assert whole.startswith("END TO END (ms per run of 1 image): encoded images in memory to objects")
    rows = ["ms", "decode", "letterbox", "inference", "postprocess", "rest", "end"]
    assert [line.split()[0] for line in whole.splitlines()[2:-1]] == rows
    assert whole.splitlines()[-1].endswith("images per second from image to objects; objects per image: 2.0")
    assert "p99*" in alone
    assert "* 3 runs, too few for p90, p99: the value lies between the two slowest runs" in told


def test_many_sources_are_not_listed_one_by_one(model: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench("--engine", model, "--source", *[image] * 4, *SHORT) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"images 4 sources from {image} to {image}: 4 images, 256x256 (width x height)" in told


def test_enough_runs_carry_no_star(model: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench("--engine", model, "--source", image, "--runs", 100, "--warmup", 0) == 0
    out = capsys.readouterr().out
    assert "*" not in out
    assert "too few" not in out


def test_by_default_the_image_is_synthetic_and_that_is_reported(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench("--engine", model, "--runs", 1, "--warmup", 0.001) == 0  # three runs
    told = " ".join(capsys.readouterr().out.split())
    assert "synthetic frame (seed 0): 1 image, 1920x1080 (width x height), " in told
    assert "note the image is synthetic: detections in it are meaningless" in told
    assert "3 runs of warm-up in " in told
    assert "threads: one per core for the network (the default of the backend), " in told
    assert "* 1 run, too few for p50, p90, p99" in told


def test_json_is_one_document_and_has_every_run_on_request(
    model: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--engine", model, "--source", image, *SHORT, "--json")
    assert _bench(*words) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["file"], data["bytes"]) == (str(model), model.stat().st_size)
    assert data["network"]["providers"] == ["CPUExecutionProvider"]
    assert (data["runs"], data["objects"]) == (3, 2)
    assert "samples" not in data["end_to_end"]["total_ms"]
    assert _bench(*words, "--samples") == 0
    times = json.loads(capsys.readouterr().out)["end_to_end"]["total_ms"]
    assert len(times["samples"]) == times["count"] == 3
    assert times["p50"] == pytest.approx(np.median(times["samples"]))
    assert _bench("--engine", model, "--samples") == UsageError.exit_code
    assert "add --json" in _line(capsys)


def test_external_weights_count_as_part_of_the_file(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_cell_model(tmp_path / "big.onnx", spec=cell_spec(), external=True)
    assert _bench("--engine", path, "--source", image, *SHORT, "--json") == 0
    data = tmp_path / "big.onnx.data"
    assert json.loads(capsys.readouterr().out)["bytes"] == path.stat().st_size + data.stat().st_size


def test_batch_thresholds_and_spec_come_from_options(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_cell_model(tmp_path / "bare.onnx", batch="n")
    assert _bench("--engine", bare, "--source", image, *SHORT) == SpecError.exit_code
    assert "--spec FILE" in _line(capsys)
    (tmp_path / "spec.json").write_text(cell_spec(dynamic=True).to_json())
    words = ("--engine", bare, "--spec", tmp_path / "spec.json", "--source", image, *SHORT, "--json")
    for more, batch, objects in (((), 1, 2), (("--batch", 3), 3, 2), (("--max-det", 1), 1, 1), (("--conf", 1), 1, 0)):
        assert _bench(*words, *more) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["batch"], data["objects"]) == (batch, objects)
        assert data["network"]["shapes"] == [[batch, 3, 64, 64]]
    assert _bench(*words, "--iou", 2) == UsageError.exit_code


def test_a_checkpoint_is_measured_like_an_export(
    checkpoint: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    threads = torch.get_num_threads()
    assert _bench("--engine", checkpoint, "--source", image, *SHORT, "--threads", 1, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["network"]["providers"] == ["PyTorch CPU float32"]
    assert data["network"]["threads"] == 1
    assert data["versions"]["torch"] == torch.__version__
    assert torch.get_num_threads() == threads
    assert _bench("--engine", checkpoint, "--provider", "cuda") == DeviceError.exit_code
    assert "for cuda" in _line(capsys)


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("--duration", -1), UsageError, "duration must be over 0 seconds"),
        (("--duration", "nan"), UsageError, "duration must be over 0 seconds"),
        (("--warmup", -1), UsageError, "warmup at least 0"),
        (("--runs", 0), UsageError, "runs must be at least 1, got 0"),
        (("--threads", 0), UsageError, "threads must be at least 1, got 0"),
        (("--batch", 2), UsageError, "a fixed batch of 1, got 2"),
        (
            ("--device", "rubber"),
            UsageError,
            "the device of an ONNX file must be auto, cpu, cuda",
        ),
        (("--provider", "TensorrtExecutionProvider"), BackendError, "no TensorrtExecutionProvider, only"),
        (("--source", "none.png"), NotFoundError, "none.png, which does not exist"),
        (("--source", "empty"), ImageError, "holds no image"),
        (("--source", "film.mp4"), UsageError, "film.mp4 is a video"),
        (("--engine", "none.onnx"), NotFoundError, "a model was expected at none.onnx"),
        (("--engine", "none.pt"), NotFoundError, "a checkpoint was expected at none.pt"),
        (("--engine", "two.png"), ArtefactError, "ends in .png"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    words: tuple[object, ...],
    error: type[DeployError],
    said: str,
    model: Path,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(image.parent)
    Path("empty").mkdir()
    named = () if "--engine" in words else ("--engine", model)
    assert _bench(*named, "--source", image, *words) == error.exit_code
    assert said in _line(capsys)


@pytest.mark.skipif(gpu_unavailable_reason() is None, reason="this machine has a GPU")
@pytest.mark.parametrize("suffix", [".trt", ".engine"])
@pytest.mark.parametrize(
    ("onnx", "recorded", "said"),
    [
        ("m.onnx", None, "; try deploykit bench {folder}/m.onnx"),
        ("m.onnx", "other.onnx", "; try deploykit bench {folder}/m.onnx"),
        ("o t.onnx", "o t.onnx", "; try deploykit bench '{folder}/o t.onnx'"),
        (None, "gone.onnx", "; its ONNX file runs here: deploykit bench MODEL.onnx"),
        (None, None, "deploykit bench MODEL.onnx"),
    ],
)
def test_an_engine_without_a_gpu_is_explained_with_the_command_that_works_here(
    suffix: str,
    onnx: str | None,
    recorded: str | None,
    said: str,
    tmp_path: Path,
    image: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = tmp_path / f"m{suffix}"
    engine.write_bytes(b"plan")
    if onnx:
        write_cell_model(tmp_path / onnx, spec=cell_spec())
    if recorded:
        EngineRecord("tensorrt-rtx", "1.7", cell_spec(), recorded, "00", size=4).write(engine)
    assert _bench("--engine", engine, "--source", image) == DeviceError.exit_code
    line = _line(capsys)
    assert line.startswith(f"{engine} is a TensorRT engine: an NVIDIA GPU is required, but ")
    assert line.endswith(said.format(folder=tmp_path))


def test_an_engine_that_runs_is_measured(
    tmp_path: Path,
    image: Path,
    backend: Callable[[Callable[..., Session]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"output": np.zeros((1, 4, 10), np.float32)}

    def open_session(*_: object, **__: object) -> Session:
        opened = FakeSession(answer, spec=cell_spec())
        opened.providers, opened.device_memory = ("TensorRT 10.9 CUDA",), 25_000_000
        opened.stage_ms = {"copy in": 1.0, "compute": 2.5, "copy out": 0.5}
        return opened

    backend(open_session)
    (tmp_path / "m.trt").write_bytes(b"plan")
    assert _bench("--engine", tmp_path / "m.trt", "--source", image, *SHORT) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"computes TensorRT 10.9 CUDA; threads: {cv2.getNumThreads()} for OpenCV" in told
    assert "; on the GPU 25.0 MB" in told
    assert "compute 2.50 2.50 2.50 2.50 2.50 2.50 on the GPU" in told


def test_ctrl_c_while_measuring_ends_with_130_and_nothing_else(
    tmp_path: Path,
    image: Path,
    backend: Callable[[Callable[..., Session]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Any] = []

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        calls.append(None)
        if len(calls) == 9:
            signal.raise_signal(signal.SIGINT)
        return {"output": np.zeros((1, 4, 10), np.float32)}

    opened = FakeSession(answer, spec=cell_spec())
    backend(lambda *_, **__: opened)
    (tmp_path / "m.trt").write_bytes(b"plan")
    assert _bench("--engine", tmp_path / "m.trt", "--source", image) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith("[")] == ["deploykit: interrupted"]
    with pytest.raises(BackendError, match="closed"):
        opened.run({"images": np.zeros((1, 3, 64, 64), np.float32)})


def test_on_a_terminal_there_is_a_bar_that_no_thread_draws(
    model: Path, image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    started: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(self.name), start(self)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert _bench("--engine", model, "--source", image, *SHORT) == 0
    out, err = capsys.readouterr()
    assert "measuring" in err
    assert "measuring" not in out
    assert set(started) <= {"interrupts", "run limit"}  # one waits for a signal, one looks at the clock


def test_a_measurement_of_an_export_loads_no_torch(model: Path, image: Path, root: Path) -> None:
    script = (
        "import sys; from deploykit.cli import main\n"
        f"main(['bench', '--engine', {str(model)!r}, '--source', {str(image)!r}, '--runs', '2', '--warmup', '0'])\n"
        "assert not {'torch', 'onnx'} & set(sys.modules), 'loaded'"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stdout


@pytest.mark.data
def test_a_trained_face_model_finds_faces_while_it_is_measured(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--engine", shared / "data" / "weights" / "yolov7-lite-e_face5kpt.pt", "--threads", 1, "--json")
    source = shared / "data" / "images" / "faces-wider"
    assert _bench(*words, "--source", source, "--runs", 3, "--warmup", 0) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["images"]["count"] == 24
    assert data["objects"] > 1
    assert len(data["network"]["shapes"]) >= 1
