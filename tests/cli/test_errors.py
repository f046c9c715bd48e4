"""Everything that can go wrong with ``deploykit export``: one line, an exit code of its own, nothing left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli import main
from deploykit.errors import (
    CheckpointError,
    DeployError,
    DiskFullError,
    ExportError,
    ImageError,
    ImageSizeError,
    MissingDependencyError,
    NoPermissionError,
    NotFoundError,
    OutputError,
    UnknownLayerError,
    UsageError,
    WeightsMismatchError,
)
from deploykit.export import to_onnx
from deploykit.export.graph import finalize
from deploykit.export.parity.inputs import sample_image
from tests.error_line import told
from tests.export.parity.test_parity_gate import contents
from tests.narrow import few_layers, with_layer, write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

OLD = b"an older export"
PROGRESS = ("[", "WARNING: failed to run")  # progress lines, and warnings of onnxsim


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """The working folder: a checkpoint, and in ``out`` an older export with its verification."""
    (tmp_path / "few.pt").write_bytes(checkpoint.read_bytes())
    (tmp_path / "out").mkdir()
    for name in ("m.onnx", "m.onnx.parity.json"):
        (tmp_path / "out" / name).write_bytes(OLD)
    return tmp_path


Export = Callable[..., tuple[int, str]]


@pytest.fixture
def export(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """Run the command in ``folder``; return its exit code and its one error line. Nothing else may have changed."""
    monkeypatch.chdir(folder)

    def run(*words: object, weights: str = "few.pt", out: str = "out/m.onnx", img: int = 64) -> tuple[int, str]:
        before = contents(folder)
        options = ["--weights", weights, "--out", out, "--exporter", "legacy", "--img", str(img), *map(str, words)]
        code = main(["export", *options])
        printed, errors = capsys.readouterr()
        assert printed == ""
        assert contents(folder) == before
        lines = [line for line in errors.splitlines() if not line.startswith(PROGRESS)]
        assert len(lines) == 1, errors
        return code, told(lines[0]) if code < 128 else lines[0].removeprefix("deploykit: ")

    return run


def damaged_weights(folder: Path) -> None:
    """Write every kind of file that is not a usable checkpoint."""
    whole = (folder / "few.pt").read_bytes()
    (folder / "photo.pt").write_bytes(sample_image().read_bytes())
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pt").write_bytes(b"")
    few = few_layers()
    write_checkpoint(folder / "layer.pt", few, described=with_layer(few, "HyperConv"))
    write_checkpoint(folder / "classes.pt", few, described=few_layers(num_classes=5))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("fwe.pt", NotFoundError, "fwe.pt: there is no such file; did you mean few.pt"),
        ("photo.pt", CheckpointError, "photo.pt: it is a JPEG image; expected a checkpoint"),
        ("half.pt", CheckpointError, "half.pt: it begins as a torch zip file and its end is missing"),
        ("empty.pt", CheckpointError, "empty.pt: the file is empty; expected a checkpoint"),
        ("out", CheckpointError, "out: it is a folder; expected the checkpoint file itself"),
        ("layer.pt", UnknownLayerError, "layer 1 of the model's description is 'HyperConv', which deploykit does not"),
        ("classes.pt", WeightsMismatchError, "model.11.m.0.weight is [21, 16, 1, 1], expected [30, 16, 1, 1]"),
    ],
)
def test_weights_that_cannot_be_used(
    weights: str, error: type[DeployError], message: str, folder: Path, export: Export
) -> None:
    damaged_weights(folder)
    code, line = export(weights=weights)
    assert code == error.exit_code
    assert message in line


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("--img", 950), ImageSizeError, "multiples of its stride 16; the next valid size is --img 960 960"),
        (("--img", 64, 950), ImageSizeError, "64x950 (height x width) does not fit yolov7-custom"),
        (("--img", 0), ImageSizeError, "the next valid size is --img 16 16"),
        (("--img", -64), ImageSizeError, "the next valid size is --img 16 16"),
        (("--img", 64, 64, 3), UsageError, "--img takes one side, or height and width; got 3 numbers"),
        (("--img", 800_000), ImageSizeError, "takes 7,152.6 GiB of memory, the limit is"),
        (("--img", 1_600_000), ImageSizeError, "the input's height must lie in 1..1,048,576, got 1.6e+06; choose a sm"),
        (("--batch", 100_000_000), ImageSizeError, "choose a smaller --img or --batch"),
        (("--batch", 0), UsageError, "--batch must be at least 1, got 0"),
        (("--opset", 12), UsageError, "--opset must be from 13 to 23, got 12"),
        (("--opset", 24), UsageError, "--opset must be from 13 to 23, got 24"),
        (("--out", "m.txt"), UsageError, "--out must be a file that ends in .onnx, or a folder; got m.txt"),
        (("--out", "few.pt/m.onnx"), OutputError, "cannot write few.pt/m.onnx: "),
        (("--sample", "none.jpg"), NotFoundError, "an image was expected at none.jpg"),
        (("--sample", "few.pt"), ImageError, "few.pt is not a complete image"),
        (("--sample", "empty.png"), ImageError, "empty.png is empty (0 bytes)"),
        (
            ("--sample", "out"),
            ImageError,
            "expected the file of an image, but out is a directory: give a file or a folder",
        ),
    ],
)
def test_impossible_options(
    words: tuple[object, ...], error: type[DeployError], message: str, folder: Path, export: Export,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (folder / "empty.png").write_bytes(b"")
    # All of these must be found before the long work starts.
    monkeypatch.setattr(to_onnx, "export_to_ir", lambda *_: pytest.fail("the error was found too late"))
    code, line = export(*words)
    assert code == error.exit_code
    assert message in line


@pytest.mark.parametrize("stage", ["fuse_model", "export_to_ir"])
def test_a_refused_export_leaves_no_new_folder(
    stage: str, folder: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ExportError("it does not go")

    monkeypatch.setattr(to_onnx, stage, refused)
    assert export("--out", "new/folder/m.onnx") == (ExportError.exit_code, "it does not go")
    assert not (folder / "new").exists()


@pytest.mark.parametrize("large", [True, False])
def test_a_disk_that_fills_up_while_the_graph_is_written(
    large: bool, export: Export, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("size_limit")  # only now: the existing files are larger than the limit
    monkeypatch.setattr(finalize, "LARGE", 0 if large else 2**31)  # with the weights in a file of their own, or not
    assert export() == (
        DiskFullError.exit_code,
        "cannot write out/m.onnx: File too large; free some space or choose another path with --out",
    )


def failing(monkeypatch: pytest.MonkeyPatch, method: str, ending: str, code: int) -> None:
    """Make the system refuse to write files whose name ends in ``ending``."""
    write: Callable[..., Any] = getattr(Path, method)

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name.endswith(ending):
            write(self, *(a[: len(a) // 2] for a in arguments), **options)
            raise OSError(code, os.strerror(code))
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, method, refused)


def test_a_disk_that_fills_up_with_the_last_file(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "write_text", ".parity.json", errno.ENOSPC)
    code, line = export()
    assert code == DiskFullError.exit_code
    assert line.startswith("cannot write out/m.onnx: No space left on device; free some space")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_path_that_may_not_be_written(code: int, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(to_onnx, "export_to_ir", lambda *_: pytest.fail("the error was found too late"))
    status, line = export()
    assert status == NoPermissionError.exit_code
    assert line.startswith("cannot write out/m.onnx: no permission (")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission(folder: Path, export: Export) -> None:
    (folder / "out").chmod(0o500)
    try:
        code, line = export()
    finally:
        (folder / "out").chmod(0o700)
    assert code == NoPermissionError.exit_code
    assert "cannot write out/m.onnx: no permission" in line


@pytest.mark.parametrize("step", ["reading", "building", "fusing", "tracing", "simplifying", "writing", "checking"])
def test_ctrl_c_at_any_step_ends_with_130(step: str, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = to_onnx.StepTimer.step

    def interrupted(self: to_onnx.StepTimer, name: str) -> None:
        tell(self, name)
        if name == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(to_onnx.StepTimer, "step", interrupted)
    assert export() == (130, "interrupted")


@pytest.mark.parametrize(("module", "extra"), [("onnxruntime", "cpu"), ("onnxsim", "export")])
def test_a_missing_package_that_is_needed_late_is_reported(
    module: str, extra: str, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # how Python marks a module that cannot be imported
    assert export() == (
        MissingDependencyError.exit_code,
        f"{module} is required here but is not installed: pip install 'deploykit-vision[{extra}]'",
    )


ABSENT = "raise ModuleNotFoundError(\"No module named '{0}'\", name='{0}')"
BROKEN = "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory', name='cv2')"


@pytest.mark.parametrize(
    ("module", "source", "words", "message"),
    [
        ("torch", ABSENT, ["inspect", "few.pt"], "not installed: pip install 'deploykit-vision[export]'"),
        ("torch", ABSENT, ["export", "--weights", "few.pt"], "not installed: pip install 'deploykit-vision[export]'"),
        ("onnx", ABSENT, ["export", "--weights", "few.pt"], "not installed: pip install 'deploykit-vision[export]'"),
        ("onnxruntime", ABSENT, ["inspect", "out/m.onnx"], "not installed: pip install 'deploykit-vision[cpu]'"),
        ("onnxruntime", "raise ImportError('a library is gone')", ["inspect", "out/m.onnx"], "(a library is gone)"),
        ("cv2", BROKEN, ["compare", "out/m.onnx", "few.pt"], "replace it with opencv-python-headless"),
        (
            "cv2",
            ABSENT,
            ["predict", "--model", "out/m.onnx", "--source", "."],
            "pip install opencv-python (or opencv-py",
        ),
        ("numpy", ABSENT, ["compare", "out/m.onnx", "few.pt"], "not installed: pip install numpy"),
        ("rich", ABSENT, ["compare", "out/m.onnx", "few.pt"], "not installed: pip install rich"),
    ],
)
def test_a_package_that_is_missing_or_cannot_be_loaded(
    module: str, source: str, words: list[str], message: str, folder: Path, root: Path
) -> None:
    (folder / "stubs").mkdir()
    (folder / "stubs" / f"{module}.py").write_text(source.format(module))
    done = subprocess.run(
        [sys.executable, "-B", "-m", "deploykit", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder / 'stubs'}{os.pathsep}{root}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == MissingDependencyError.exit_code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"deploykit: {'OpenCV' if source is BROKEN else module} ")
    assert message in done.stderr
    assert sorted(contents(folder / "out")) == ["m.onnx", "m.onnx.parity.json"]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("official_yolov7-tiny.truncated.pt", 10, "truncated or damaged"),
        ("dncnn_wholemodel_main.pth", 10, "a model that deploykit does not know"),
    ],
)
def test_real_checkpoints_that_cannot_be_exported(
    name: str, code: int, message: str, shared: Path, export: Export
) -> None:
    status, line = export(weights=str(shared / "data" / "weights" / name))
    assert message in line
    assert status == code
