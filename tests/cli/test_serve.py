"""``deploykit serve``: what is typed, what is refused, and a server that begins and ends as a program."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import deploykit
from deploykit.cli import command_parser, main
from deploykit.cli.serve import serve_flags, size_in_bytes, streams_of
from deploykit.errors import MissingDependencyError, UsageError
from tests.error_line import told

MARKERS = Path(deploykit.__file__).with_name("assets") / "markers.onnx"


def test_what_is_typed_fills_the_options() -> None:
    words = [
        "serve", "x.onnx", "--port", "9", "--grpc-port", "0", "--max-body", "2k", "--allow-url", "a.example",
        "--allow-url", "b.example", "--allow-reload", "--stream", "door=rtsp://u:p@camera/1?x=y", "--stream", "0",
        "--log-format", "json",
    ]  # fmt: skip
    options = serve_flags().fill(command_parser(words).parse_args(words))
    assert (options.port, options.grpc_port, options.max_body, options.allow_reload) == (9, 0, 2048, True)
    assert options.allow_url == ("a.example", "b.example")
    assert options.streams == {"door": "rtsp://u:p@camera/1?x=y", "1": "0"}
    assert options.log_format == "json"
    assert options.host == "127.0.0.1"


def test_sizes_and_streams() -> None:
    assert [size_in_bytes(text) for text in ("7", "2K", "3m", "1g")] == [7, 2048, 3 << 20, 1 << 30]
    for text in ("", "k", "-1", "1.5m", "1t"):
        with pytest.raises(argparse.ArgumentTypeError):
            size_in_bytes(text)
    assert streams_of(["rtsp://h/x?a=b"]) == {"0": "rtsp://h/x?a=b"}
    with pytest.raises(UsageError, match="two streams are called 'a'"):
        streams_of(["a=1", "a=2"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "whoever reaches 0.0.0.0 could use this server"),
        (["--token-file", "nowhere"], "a file was expected at nowhere"),
        (["--queue", "0"], "queue must be at least 1"),
        (["--workers", "0"], "workers must be a number from 1 on"),
    ],
)
def test_what_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(MARKERS), "--port", "0", *words]) in (2, 4)
    assert message in told(capsys.readouterr().err.splitlines()[-1])


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(MARKERS)]) == MissingDependencyError.exit_code
    assert "deploykit-vision[serve]" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="the signals are those of POSIX")
def test_it_serves_until_sigterm_and_ends_well(tmp_path: Path) -> None:
    model = tmp_path / "codes.onnx"
    model.write_bytes(MARKERS.read_bytes())
    words = ["serve", str(model), "--port", "0", "--grpc-port", "0", "--threads", "1", "--log-format", "json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(deploykit.__file__).resolve().parents[1])}
    with subprocess.Popen(
        [sys.executable, "-m", "deploykit", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            found = re.match(r"listening on (http://127\.0\.0\.1:\d+)", process.stdout.readline())
            assert found
            assert process.stdout.readline() == "ready: codes\n"
            image = MARKERS.with_suffix(".jpg").read_bytes()
            answer = httpx.post(f"{found[1]}/v1/predict", content=image, timeout=30)
            assert len(answer.json()["detections"]) == 8
            model.write_bytes(b"damaged")
            process.send_signal(signal.SIGHUP)  # which changes nothing, because the file cannot be loaded
            assert httpx.post(f"{found[1]}/v1/predict", content=image, timeout=30).status_code == 200
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert '"request": "POST /v1/predict", "status": 200' in said
    assert "Traceback" not in said
