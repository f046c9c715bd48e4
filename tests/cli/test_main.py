"""The frame of the command line: help, version, unknown arguments, and the cost of help."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit
from deploykit.cli import COMMANDS, main
from deploykit.errors import ArtefactError, DiskFullError, ParityError

HEAVY = {"torch", "onnx", "onnxruntime", "cv2", "numpy", "rich", "onnxscript", "onnx_ir"}

OPTIONS = {
    "export": {
        "MODEL", "--model", "--weights",
        "--img", "--batch", "--dynamic", "--opset", "--simplify", "--no-simplify", "--exporter", "--out",
        "--sample", "--check", "--no-check", "--json", "--format", "--profile", "--workspace", "--tf32",
        "--version-compatible", "--hardware-compatible", "--compute-capability", "--optimization-level",
        "--timing-cache", "--no-timing-cache", "--device", "--build-log", "--spec", "--nms",
        "--conf", "--iou", "--max-det", "--pre-nms-topk", "--preprocessing", "--rewrite", "--heads",
    },
    "predict": {
        "MODEL", "SOURCE", "--model", "--source",
        "--out", "--json", "--conf", "--iou", "--max-det", "--spec", "--heads", "--verify",
        "--time-limit", "--workers", "--line-width", "--no-labels", "--no-conf", "--font",
    },
    "bench": {
        "MODEL", "--model", "--engine",
        "--source", "--batch", "--threads", "--device", "--duration", "--runs", "--warmup", "--conf", "--compare",
        "--iou", "--max-det", "--spec", "--json", "--samples", "--heads", "--verify", "--time-limit", "--report",
        "--baseline", "--tolerance",
    },
    "eval": {
        "MODEL", "--model",
        "--data", "--images", "--task", "--limit", "--allow-missing", "--batch", "--img", "--rectangles",
        "--conf", "--iou", "--max-det", "--metrics", "--spec", "--preprocessing", "--detections", "--per-class",
        "--json", "--heads", "--verify", "--time-limit", "--workers",
    },
    "compare": {"A", "B", "--sample", "--spec", "--json", "--heads"},
    "verify": {"A", "B", "--sample", "--spec", "--tolerance", "--junit", "--json", "--heads"},
    "cluster": {
        "{run", "check", "serve", "manifest}", "MODEL", "SOURCE", "--model", "--source", "--recursive", "--out",
        "--format", "--join", "--per-part", "--json", "--address", "--workers", "--cpus", "--gpus", "--conf",
        "--iou", "--max-det", "--classes", "--batch", "--max-pixels", "--time-limit",
        "--device", "--threads", "--spec", "--verify",
        "--host", "--port", "--token-file", "--max-batch", "--batch-window", "--queue", "--timeout", "--log-format",
        "--min-replicas",
        "--max-replicas", "--ongoing", "--image", "--name", "--memory",
    },
    "package": {
        "MODEL", "--triton", "--docker", "--kserve", "--systemd", "--name", "--image", "--storage-uri", "--host",
        "--executable", "--models-at", "--device", "--max-batch", "--batch-window", "--workers", "--instances",
        "--spec", "--force", "--json",
    },
    "quantize": {
        "MODEL", "--model", "--out", "--spec", "--sample", "--tolerance", "--input", "--json", "--img", "--colour",
        "--scale", "--mean", "--std", "--fit", "--precision", "--keep", "--calib", "--target", "--max-drop", "--data",
    },
    "preflight": {"FILE", "--target", "--time-limit", "--json"},
    "inspect": {
        "FILE", "--model", "--json", "--heads", "--verify", "--signature", "--public-key", "--certificate-chain",
        "--identity", "--identity-provider", "--trust-config",
    },
    "sign": {
        "PATH", "--private-key", "--signing-certificate", "--certificate-chain", "--sigstore", "--signature", "--force",
        "--use-ambient-credentials", "--identity-token-file", "--trust-config", "--json",
    },
    "models": {"--json"},
    "fetch": {"MODEL", "--list", "--out", "--url", "--sha256", "--force", "--max-size"},
    "create": {"MODEL", "--seed", "--classes", "--out"},
    "data": {"{convert}", "DATA", "--out", "--split", "--json"},
    "completion": {"{bash", "zsh", "fish}"},
    "demo": {"--out"},
    "serve": {
        "MODEL", "--host", "--port", "--grpc-port", "--token-file", "--tls-cert", "--tls-key", "--tls-client-ca",
        "--allow-host", "--allow-url", "--allow-reload", "--max-batch", "--batch-window", "--queue", "--timeout",
        "--max-body", "--max-pixels", "--connections", "--drain", "--log-format", "--stream", "--device", "--threads",
        "--workers", "--verify", "--memory-limit",
    },
    "help": {"WHAT", "TOPIC"},
    "doctor": {"--json", "--sbom"},
    "plugins": {
        "{build", "info", "test}", "--json", "--out", "--only", "--tensorrt", "--onnxruntime", "--architecture",
        "--allow-none",
    },
}  # fmt: skip


def run_in_process(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """``deploykit WORDS`` in a fresh interpreter, which finally prints the modules that it has loaded."""
    script = (
        "import sys\nfrom deploykit.cli import main\n"
        f"try:\n    status = main({list(words)!r})\nexcept SystemExit as e:\n    status = e.code\n{code}\n"
        "import json; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    # A wide terminal, so that sentences stay on their lines.
    environment = {**os.environ, "PYTHONPATH": str(Path(deploykit.__file__).resolve().parents[1]), "COLUMNS": "300"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)


def test_every_command_has_its_options_listed_here() -> None:
    assert set(OPTIONS) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_and_loads_nothing_heavy(command: str) -> None:
    done = run_in_process(command, "--help", "all")
    assert done.returncode == 0
    words = set(done.stdout.replace(",", " ").replace("[", " ").replace("]", " ").split())
    assert OPTIONS[command] | {"--help", "--traceback"} <= words
    assert COMMANDS[command][1:] in done.stdout
    assert not HEAVY & set(json.loads(done.stderr))


def test_the_help_names_every_command_and_loads_nothing_heavy() -> None:
    done = run_in_process("--help")
    assert done.returncode == 0
    for command, summary in COMMANDS.items():
        assert f"  {command} " in done.stdout
        assert summary.split()[0] in done.stdout
    assert not HEAVY & set(json.loads(done.stderr))
    assert "deploykit.cli.export" not in done.stderr


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"deploykit {deploykit.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-q"], "missing: COMMAND (see deploykit --help)"),
        (["exprot"], "unknown command 'exprot': did you mean deploykit export? (see deploykit --help)"),
        (["models", "--jsn"], "unknown option --jsn: did you mean --json? (see deploykit models --help)"),
        (["create"], "missing: MODEL (see deploykit create --help)"),
        (["models", "yolov5n"], "unexpected argument 'yolov5n' (see deploykit models --help)"),
        (
            ["create", "unet", "--seed", "big"],
            "--seed: expected a whole number, got 'big' (see deploykit create --help)",
        ),
        (["create", "unet", "--seed"], "--seed: expected one value (N) (see deploykit create --help)"),
        (
            ["export", "--weights", "x.pt", "--dynamic", "all"],
            "--dynamic: expected none, batch or shape, got 'all' (see deploykit export --help)",
        ),
        (
            ["export", "--weights", "x.pt", "--precision", "int88"],
            "--precision: expected fp32, fp16, bf16, int8 or fp8, got 'int88': did you mean int8? (see "
            "deploykit export --help)",
        ),
        (
            ["export", "--weights", "x.pt", "--profile", "1x8x8"],
            "--profile: expected 3 values (MIN OPT MAX) (see deploykit export --help)",
        ),
    ],
)
def test_arguments_that_cannot_be_parsed_end_with_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr() == ("", f"deploykit: {message} [deploykit help 2]\n")


def test_an_error_is_one_line_with_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.cli import models

    def fail(_: object) -> int:
        raise ParityError("first line\n   second line")

    monkeypatch.setattr(models, "run", fail)
    assert main(["models"]) == ParityError.exit_code == 42
    out, err = capsys.readouterr()
    assert (out, err) == ("", "deploykit: first line second line [deploykit help 42]\n")
    with pytest.raises(ParityError):
        main(["models", "--traceback"])


def test_a_warning_of_the_library_is_one_line_on_stderr_and_shown_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.cli import models

    def warn(_: object) -> int:
        for _ in range(2):
            logging.getLogger("deploykit.runtime.session").warning("%s did not load,\n  the CPU is in effect", "CUDA")
            logging.getLogger("deploykit.runtime.session").info("it is fine")
        return 0

    monkeypatch.setattr(models, "run", warn)
    for _ in range(2):  # each call of main is a program of its own
        assert main(["models"]) == 0
        assert capsys.readouterr() == ("", "deploykit: note: CUDA did not load, the CPU is in effect\n")


def test_the_library_by_itself_says_nothing() -> None:
    code = "import deploykit, logging; logging.getLogger('deploykit.runtime.session').warning('said')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ImportError("cannot import name 'x' from 'deploykit.spec'", name="deploykit.spec"), 90,
         "unexpected ImportError: cannot import name 'x' from 'deploykit.spec' (test_main.py:"),
        (IndexError("index\n out of range"), 90, "unexpected IndexError: index out of range (test_main.py:"),
        (RecursionError(), 90, "unexpected RecursionError (test_main.py:"),
        (OSError(5, "Input/output error"), 90, "unexpected OSError: [Errno 5] Input/output error (test_main.py:"),
        (MemoryError(), 91, "there is not enough memory for this model and this input: take smaller images"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), 91,
         "there is not enough memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_an_exception_of_any_other_kind_is_one_line_too(
    raised: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.cli import models

    def fail(_: object) -> int:
        raise raised

    monkeypatch.setattr(models, "run", fail)
    assert main(["models"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"deploykit: {said}")
    assert err.count("\n") == 1
    assert "--traceback shows where" in err
    with pytest.raises(type(raised)):
        main(["models", "--traceback"])


SLEEPER = """
import sys, time, deploykit.cli.models as models
from deploykit.cli import main
def run(args):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
models.run = run
sys.exit(main(["models"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
def test_sigterm_cleans_up_as_ctrl_c_does_and_ends_with_143(root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (143, "cleaned up\n", "deploykit: terminated\n")


def test_sigterm_is_left_to_a_program_that_handles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from deploykit.cli import models

    seen: list[object] = []

    def own(number: int, frame: object) -> None:
        seen.append(number)

    def raised(_: object) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(models, "run", raised)
    before = signal.signal(signal.SIGTERM, own)
    try:
        assert main(["models"]) == 0
        assert (seen, signal.getsignal(signal.SIGTERM)) == ([signal.SIGTERM], own)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line(root: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deploykit", "models"],
            cwd=root, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == DiskFullError.exit_code == 32
    assert (
        done.stderr
        == "deploykit: cannot write the output: No space left on device; free some space [deploykit help 32]\n"
    )


def test_the_option_traceback_shows_the_traceback(tmp_path: Path) -> None:
    done = run_in_process("inspect", str(tmp_path / "none.pt"), "--traceback")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "deploykit.errors.NotFoundError" in done.stderr


@pytest.mark.parametrize(
    "words",
    [["predict", "--model", "M", "--source", "."], ["bench", "--engine", "M"], ["eval", "--model", "M", "--data", "."]],
    ids=["predict", "bench", "eval"],
)
def test_a_model_without_a_parity_report_is_refused_on_request(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cell_model import cell_spec, write_cell_model

    file = write_cell_model(tmp_path / "m.onnx", spec=cell_spec())
    (tmp_path / "image.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert main([str(file) if word == "M" else word for word in words] + ["--verify"]) == ArtefactError.exit_code == 50
    assert "m.onnx is not known to be verified: there is no" in capsys.readouterr().err


def test_python_m_deploykit_is_the_same_program(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploykit", "inspect", "none.pt"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr.startswith("deploykit: ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_closes_the_pipe_causes_no_error_message(root: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-u", "-m", "deploykit", "models"],
            cwd=root, stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""
