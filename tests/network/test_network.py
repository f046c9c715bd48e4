"""Nothing but what the user asked for reaches a network: no command, no name in Python, and no library of theirs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from deploykit.cli import COMMANDS
from tests.test_layering import files, imports_of

HERE = Path(__file__).parent

NETWORK = {
    "socket", "ssl", "http", "urllib", "ftplib", "smtplib", "poplib", "imaplib", "telnetlib", "xmlrpc", "socketserver",
    "webbrowser", "asyncio", "requests", "httpx", "aiohttp", "urllib3", "grpc", "uvicorn", "ray", "huggingface_hub",
}  # fmt: skip
"""Modules with which Python reaches a network."""

MAY = {
    "deploykit.connection": "http https of addresses that the user names",
    "deploykit.releases.download": "fetch",
    "deploykit.releases.fetch": "fetch",
    "deploykit.runtime.sources.addresses": "takes addresses apart",
    "deploykit.runtime.sources.web": "images and videos at addresses that the user names",
    "deploykit.runtime.backends.run_limit": "a pair of connected sockets of this process",
    "deploykit.runtime.cluster.on_ray": "cluster with --address",
    "deploykit.runtime.cluster.serving": "cluster serve",
    "deploykit.cli.serve": "serve",
}
"""Modules that may import one of them, and for what; beside those of the server, ``deploykit.runtime.serve``."""

WITHOUT_TORCH = """
import cv2, json, shutil
run("demo", "--out", "demo")
run("predict", "demo/markers.onnx", "demo/markers.jpg", "--out", "drawn", "--coco", "found.json")
run("inspect", "demo/markers.onnx")
run("bench", "demo/markers.onnx", "--runs", "1", "--warmup", "0")
boxes = json.load(open("found.json"))
kinds = [{"id": i, "name": name} for i, name in enumerate(("qr code", "aruco marker"), 1)]
marks = [{"bbox": box["bbox"], "image_id": 1, "category_id": 1, "id": i, "area": 99, "iscrowd": 0}
         for i, box in enumerate(boxes, 1)]
image = {"id": 1, "file_name": "markers.jpg", "width": 1200, "height": 800}
json.dump({"images": [image], "annotations": marks, "categories": kinds}, open("coco.json", "w"))
run("eval", "demo/markers.onnx", "--data", "coco.json", "--images", "demo", "--task", "detect")
run("cluster", "run", "demo/markers.onnx", "demo/markers.jpg", "--out", "rows", "--workers", "1")
run("cluster", "check", "rows")
run("package", "demo/markers.onnx", "--docker", "image")
open("data.yaml", "w").write("path: .\\nval: demo\\nnames: [qr code, aruco marker]\\n")
open("demo/markers.txt", "w").write("0 0.5 0.5 0.1 0.1\\n")
run("data", "convert", "data.yaml", "--out", "yolo.json")
run("plugins", "info")
run("models")
run("completion", "bash")
run("help", "30")
import deploykit
predictor = deploykit.load("demo/markers.onnx")
assert len(predictor("demo/markers.jpg").boxes) == 8
"""
WITH_TORCH = """
import shutil
run("demo", "--out", "demo")
run("export", "demo/markers.pt", "--img", "64", "--out", "x.onnx", "--precision", "fp16", "--no-check")
run("preflight", "x.onnx")
run("quantize", "demo/markers.onnx", "--precision", "fp16", "--out", "half.onnx")
run("create", "yolov7-tiny", "--out", "tiny.pt")
run("compare", "demo/markers.onnx", shutil.copy("demo/markers.onnx", "copy.onnx"))
run("verify", "demo/markers.onnx", "copy.onnx")
run("doctor")
run("models")
"""
ELSEWHERE = {"fetch": "downloads", "serve": "listens", "sign": "needs the extra signing, which is not installed here"}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A library that sees the calls of native code too; None where it cannot be built."""
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        return None
    library = tmp_path_factory.mktemp("shim") / "calls.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HERE / "calls.c", "-ldl"], check=True)
    return library


def calls_of(code: str, folder: Path, shim: Path | None, **environment: str) -> list[str]:
    """The calls to a network that a program made, which has its own home, and none of the switches of this run."""
    calls = folder / "calls"
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    own = {"HOME": str(folder), "NETWORK_CALLS": str(calls), "DEPLOYKIT_REFERENCE_CACHE": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "every_command.py"), str(calls), code]
    done = subprocess.run(
        command, env={**inherited, **own, **({"LD_PRELOAD": str(shim)} if shim else {}), **environment},
        capture_output=True, text=True, check=False, cwd=folder, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    return calls.read_text().splitlines() if calls.exists() else []


def test_the_modules_that_reach_a_network_are_known() -> None:
    any_of_them = re.compile(rf"\b({'|'.join(NETWORK)})\b")  # parsing is slow
    texts = {name: text for name, file in files().items() if any_of_them.search(text := file.read_text())}
    found = {
        name
        for name, text in texts.items()
        if any(each.module.split(".")[0] in NETWORK and each.where != "types" for each in imports_of(text))
        or NETWORK & set(re.findall(r"""import_(?:extra|module)\(["'](\w+)""", text))
    }
    assert {name for name in found if not name.startswith("deploykit.runtime.serve.")} == set(MAY)


def test_every_command_is_run_here_or_is_one_that_the_user_sends_to_the_network() -> None:
    run_here = set(re.findall(r'run\("(\w+)"', WITHOUT_TORCH + WITH_TORCH))
    assert run_here | set(ELSEWHERE) == set(COMMANDS)
    assert not run_here & set(ELSEWHERE)


def test_what_reaches_a_network_is_seen(tmp_path: Path, shim: Path | None) -> None:
    code = "import urllib.request, contextlib\nwith contextlib.suppress(OSError):\n urllib.request.urlopen('http://127.0.0.1:9')"
    calls = calls_of(code, tmp_path, shim)
    assert {"urllib.Request", "socket.getaddrinfo"} <= {call.split()[0] for call in calls}
    if shim is not None:
        assert "getaddrinfo 127.0.0.1" in calls
        native = "import ctypes\nctypes.CDLL(None).getaddrinfo(b'localhost', None, None, None)"
        assert calls_of(native, tmp_path, shim)[-1] == "getaddrinfo localhost"


def test_commands_without_torch_stay_on_this_machine(tmp_path: Path, shim: Path | None) -> None:
    assert calls_of(WITHOUT_TORCH, tmp_path, shim) == []
    assert not (tmp_path / ".cache" / "Microsoft").exists()


@pytest.mark.slow
def test_commands_with_torch_stay_on_this_machine(tmp_path: Path, shim: Path | None) -> None:
    assert calls_of(WITH_TORCH, tmp_path, shim) == []
    assert not (tmp_path / ".cache" / "Microsoft").exists()


SESSION = "import deploykit\ndeploykit.load({!r}).close()"


@pytest.mark.skipif(sys.platform != "linux", reason="where ONNX Runtime keeps its identifier is known for Linux")
def test_onnx_runtime_reports_nothing_unless_the_user_lets_it(tmp_path: Path, shim: Path | None, root: Path) -> None:
    model = str(root / "deploykit" / "assets" / "markers.onnx")
    kept = tmp_path / ".cache" / "Microsoft"
    assert calls_of(SESSION.format(model), tmp_path, shim) == []
    assert not kept.exists()
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if shim is not None and version >= (1, 29):  # the shim lets nothing through
        calls_of(SESSION.format(model), tmp_path, shim, ORT_DISABLE_TELEMETRY="0")
        assert list(kept.rglob("deviceid")), "ONNX Runtime keeps no identifier any more: look whether it still reports"


def test_the_switch_of_the_user_stays(root: Path) -> None:
    code = "import deploykit, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for value in (None, "0"):
        environment = {name: each for name, each in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        environment |= {} if value is None else {"ORT_DISABLE_TELEMETRY": value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == (value or "1")
