"""The server on a real Ray Serve with two replicas, by the command line."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit

MISSING = [module for module in ("ray", "starlette", "prometheus_client") if importlib.util.find_spec(module) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} is not installed")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def asked(port: int, image: bytes) -> dict[str, Any] | int:
    """The document for an image, without its times, or the status of the refusal."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/predict", image, {"content-type": "image/jpeg"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except urllib.error.HTTPError as e:
        return e.code
    return {name: value for name, value in found.items() if name in ("size", "detections")}


def replicas() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::ServeReplica:deploykit"):
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def served(root: Path, replicas: int) -> Iterator[int]:
    """Serve the markers on Ray while the context lasts, and give the port; it must end as SIGTERM asks."""
    port = free_port()
    words = [str(root / "deploykit/assets/markers.onnx"), "--port", str(port)]
    words += ["--min-replicas", str(replicas), "--max-replicas", str(replicas)]
    command = [sys.executable, "-m", "deploykit", "cluster", "serve", *words]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("serving at "):
                    break
            assert process.poll() is None
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=90)[1]
    assert process.returncode == 143, said
    assert said.rstrip().endswith("deploykit: terminated"), said


@pytest.mark.slow
def test_two_replicas_answer_as_the_predictor_does_and_one_that_is_killed_is_replaced(root: Path) -> None:
    model, image = root / "deploykit/assets/markers.onnx", (root / "deploykit/assets/markers.jpg").read_bytes()
    with deploykit.load(model, threads=1) as predictor:
        expected = {key: value for key, value in predictor(image).to_dict().items() if key in ("size", "detections")}
    with served(root, 2) as port:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: asked(port, image), range(12))) == [expected] * 12
        before = replicas()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        deadline = time.monotonic() + 90
        while (set(replicas()) & set(before) == set(before) or len(replicas()) < 2) and time.monotonic() < deadline:
            time.sleep(0.2)
        while asked(port, image) != expected and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(replicas()) == 2
        assert asked(port, image) == expected


@pytest.mark.slow
def test_tritons_client_speaks_to_it_as_it_is(root: Path) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] (extra dev) is not installed")
    image = (root / "deploykit/assets/markers.jpg").read_bytes()
    tensor = np.random.default_rng(0).random((2, 3, 64, 96), np.float32)
    with deploykit.load(root / "deploykit/assets/markers.onnx", threads=1) as predictor:
        document, outputs = predictor(image).to_dict(), predictor.session.run({"images": tensor})
    with served(root, 1) as port, triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("markers")
        assert [each["name"] for each in client.get_model_metadata("markers")["inputs"]][:1] == ["images"]
        images = triton.InferInput("images", list(tensor.shape), "FP32")
        images.set_data_from_numpy(tensor)
        answer = client.infer("markers", [images])
        for name, values in outputs.items():
            np.testing.assert_allclose(answer.as_numpy(name), values, rtol=1e-5, atol=1e-4)
        encoded = triton.InferInput("image", [1], "BYTES")
        encoded.set_data_from_numpy(np.array([image], object))
        found = json.loads(client.infer("markers", [encoded]).as_numpy("result")[0])
        assert found["detections"] == document["detections"]


def test_a_model_that_is_missing_is_told_at_once(root: Path) -> None:
    command = [sys.executable, "-m", "deploykit", "cluster", "serve", "none.onnx"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4
    assert "none.onnx" in done.stderr
