"""What is checked in an environment: run by its Python, outside of the source tree, with the standard library alone.

    python checks.py REPOSITORY import help doctor ...

Each check is a few commands that somebody would type. One line of JSON tells how each ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

LIMIT = 600  # seconds of a command
COMMAND = (sys.executable, "-m", "deploykit")
QUIET = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}

LOADED = """
import importlib.metadata, deploykit
assert importlib.metadata.version("deploykit-vision") == deploykit.__version__
from deploykit import DeployError, ModelSpec, Progress, PredictOptions, Predictor, ImageResult, Result, load
print(deploykit.__version__)
"""
DNG = """
import sys, numpy as np
from deploykit.runtime.raw.dng import dng_bytes
from deploykit.runtime.raw.mosaic import RawImage, read_raw
mosaic = np.random.default_rng(0).integers(64, 1024, (64, 96)).astype(np.uint16)
raw = RawImage(mosaic, (0, 1, 1, 2), (64, 64, 64, 64), 1023)
open("one.dng", "wb").write(dng_bytes(raw))
assert np.array_equal(read_raw("one.dng").mosaic, mosaic)
"""
ANNOTATED = """
import json
lines = [json.loads(line) for line in open("found.jsonl")]
spec = ["qr code", "aruco marker"]
boxes = [(d["label"], d["box"], d["keypoints"]) for d in lines[0]["detections"]]
found = [
    {"id": i, "image_id": 1, "category_id": 1 + label, "iscrowd": 0, "bbox": [x, y, r - x, b - y],
     "area": (r - x) * (b - y), "num_keypoints": 4, "keypoints": [v for k in points for v in (k[0], k[1], 2)]}
    for i, (label, (x, y, r, b), points) in enumerate(boxes, 1)
]
kinds = [{"id": i, "name": name, "keypoints": ["a", "b", "c", "d"]} for i, name in enumerate(spec, 1)]
images = [{"id": 1, "file_name": "markers.jpg", "width": 1200, "height": 800}]
json.dump({"images": images, "annotations": found, "categories": kinds}, open("coco.json", "w"))
"""
KEYS = """
from pathlib import Path
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
key = ec.generate_private_key(ec.SECP256R1())
Path("key.pem").write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
Path("key.pub").write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
"""


def run(*words: str, python: bool = False) -> str:
    """Run a command of deploykit (or Python) and return what it prints; an error is an AssertionError with its end."""
    command = (sys.executable, *words) if python else (*COMMAND, *words)
    environment = {**os.environ, **QUIET}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, check=False, env=environment, encoding="utf-8"
    )
    if done.returncode:
        told = done.stderr.strip().splitlines()[-2:] or done.stdout.strip().splitlines()[:5]
        raise AssertionError(f"{' '.join(words)[:60]}: exit code {done.returncode}: {' '.join(told)}")
    return done.stdout


def imports(_: Path) -> None:
    """The package, its version, and the names that need no extra."""
    run("-c", LOADED, python=True)


def helps(_: Path) -> None:
    """The help of every command."""
    listed = run("--help")
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2:3].isalpha()]
    assert len(names) > 15, names
    for name in names:
        assert f"deploykit {name}" in run(name, "--help")


def doctor(_: Path) -> None:
    """Whatever is installed works."""
    try:
        run("doctor", "--json")
    except AssertionError:  # a busy machine may not import everything in time when the files are new to it
        run("doctor")


def sbom(_: Path) -> None:
    """The list of what is installed names deploykit and numpy with their versions."""
    document = json.loads(run("doctor", "--sbom"))
    assert document["bomFormat"] == "CycloneDX"
    assert "numpy" in {each["name"] for each in document["components"]}


def native(repository: Path) -> None:
    """NMS of the library in the wheel gives what numpy gives."""
    run(str(repository / "scripts" / "check_wheel.py"), python=True)


def predict(_: Path) -> None:
    """The shipped model finds the codes on the shipped image."""
    assert "qr code 4, aruco marker 4" in run("demo")
    Path("found.jsonl").write_text(run("predict", "demo/markers.onnx", "demo/markers.jpg", "--json"))
    assert len(json.loads(Path("found.jsonl").read_text())["detections"]) == 8


def raw(_: Path) -> None:
    """A RAW file is written and read."""
    run("-c", DNG, python=True)


def evaluated(_: Path) -> None:
    """Detections scored against themselves have an AP of 1."""
    predict(_)
    run("-c", ANNOTATED, python=True)
    said = run("eval", "demo/markers.onnx", "--data", "coco.json", "--images", "demo", "--json", "--task", "detect")
    assert '"AP": 1.0' in said, said[:300]


def served(_: Path) -> None:
    """A server answers with the objects of an image."""
    run("demo")
    command = [*COMMAND, "serve", "demo/markers.onnx", "--port", "0", "--log-format", "text"]
    with (
        Path("serve.log").open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **QUIET}) as server,
    ):
        try:
            address = _address(server, Path("serve.log"))
            image = Path("demo/markers.jpg").read_bytes()
            asked = urllib.request.Request(f"{address}/v1/predict", image, {"Content-Type": "image/jpeg"})
            with urllib.request.urlopen(asked, timeout=60) as answer:
                assert len(json.loads(answer.read())["detections"]) == 8
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0, Path("serve.log").read_text()[-300:]


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        for word in log.read_text().split():
            if word.startswith("http://127.0.0.1:"):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{word.rstrip('/,;')}/v2/health/ready"):
                    return word.rstrip("/,;")
        time.sleep(0.2)
    raise AssertionError(f"the server did not start: {log.read_text()[-300:]}")


def cluster(_: Path) -> None:
    """A run by actors of Ray on this machine has a row for the image."""
    run("demo")
    run("cluster", "run", "demo/markers.onnx", "demo/markers.jpg", "--out", "rows", "--address", "local", "--workers=1")
    run("cluster", "check", "rows")


def exported(_: Path) -> None:
    """The shipped checkpoint is exported; without ONNX Runtime nothing verifies it."""
    _shipped()
    run("export", "markers.pt", "--img", "160", "--out", "plain.onnx", "--no-check")


def verified(_: Path) -> None:
    """An export is verified against its checkpoint, and runs."""
    _shipped()
    run("export", "markers.pt", "--img", "160", "--out", "checked.onnx", "--dynamic", "batch")
    run("predict", "checked.onnx", "markers.jpg")


def half(_: Path) -> None:
    """fp16, verified; with NMS in the graph."""
    _shipped()
    run("export", "markers.pt", "--img", "160", "--out", "half.onnx", "--precision", "fp16", "--nms", "graph")


def int8(_: Path) -> None:
    """int8, calibrated on the shipped image."""
    _shipped()
    Path("images").mkdir(exist_ok=True)
    Path("images/markers.jpg").write_bytes(Path("markers.jpg").read_bytes())
    run("export", "markers.pt", "--img", "160", "--out", "int8.onnx", "--precision", "int8", "--calib", "images")


def legacy(_: Path) -> None:
    """The older exporter, with onnxsim."""
    _shipped()
    run("export", "markers.pt", "--img", "160", "--out", "older.onnx", "--exporter", "legacy")


def signed(_: Path) -> None:
    """A model is signed, its signature is valid, and that of a changed model is not."""
    run("demo")
    run("-c", KEYS, python=True)
    run("sign", "demo/markers.onnx", "--private-key", "key.pem")
    verify = (
        "inspect",
        "demo/markers.onnx",
        "--verify",
        "--signature",
        "demo/markers.onnx.sig",
        "--public-key",
        "key.pub",
    )
    run(*verify)
    with Path("demo/markers.onnx").open("ab") as file:
        file.write(b"\0")
    said = ""
    try:
        run(*verify)
    except AssertionError as e:
        said = str(e)
    assert "exit code 50" in said, "the signature of a changed model is valid"


def timm(_: Path) -> None:
    """A network of timm is exported and verified."""
    run("export", "timm:test_resnet", "--out", "timm.onnx")


def _shipped() -> None:
    code = (
        "import deploykit, pathlib, shutil\n"
        "for name in ('markers.pt', 'markers.jpg'):\n"
        "    shutil.copy(pathlib.Path(deploykit.__file__).parent / 'assets' / name, name)\n"
    )
    run("-c", code, python=True)


CHECKS: dict[str, Callable[[Path], None]] = {
    "import": imports, "help": helps, "doctor": doctor, "sbom": sbom, "native": native, "predict": predict, "raw": raw,
    "eval": evaluated, "serve": served, "cluster": cluster, "export": exported, "verify": verified, "half": half,
    "int8": int8, "legacy": legacy, "timm": timm, "signing": signed,
}  # fmt: skip


def main() -> None:
    """Run the checks that are named, each in a folder of its own, and print a line of JSON for each."""
    repository, *names = sys.argv[1:]
    for name in names:
        start, says = time.monotonic(), ""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.chdir(folder):
            try:
                CHECKS[name](Path(repository).resolve())
            except Exception as e:
                says = f"{type(e).__name__}: {e}"
        print(json.dumps({"check": name, "says": says, "seconds": round(time.monotonic() - start, 1)}), flush=True)


if __name__ == "__main__":
    main()
