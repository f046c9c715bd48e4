"""The server on a real Ray Serve with two replicas, by the command line."""

from __future__ import annotations

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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


@pytest.mark.slow
def test_two_replicas_answer_as_the_predictor_does_and_one_that_is_killed_is_replaced(root: Path) -> None:
    model, image = root / "deploykit/assets/markers.onnx", (root / "deploykit/assets/markers.jpg").read_bytes()
    port = free_port()
    words = [str(model), "--port", str(port), "--min-replicas", "2", "--max-replicas", "2"]
    command = [sys.executable, "-m", "deploykit", "cluster", "serve", *words]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with deploykit.load(model, threads=1) as predictor:
        expected = {key: value for key, value in predictor(image).to_dict().items() if key in ("size", "detections")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("serving at "):
                    break
            assert process.poll() is None
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
        finally:
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=90)[1]
    assert process.returncode == 143, said
    assert said.rstrip().endswith("deploykit: terminated"), said


def test_a_model_that_is_missing_is_told_at_once(root: Path) -> None:
    command = [sys.executable, "-m", "deploykit", "cluster", "serve", "none.onnx"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4
    assert "none.onnx" in done.stderr
