"""``--quiet`` and ``--verbose``: results stay the same, what is said besides changes."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from deploykit.cli import main
from tests.cell_model import cell_spec, write_cell_model


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and an image, which is the current one."""
    import cv2
    import numpy as np

    write_cell_model(tmp_path / "m.onnx", spec=cell_spec())
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", ["predict m.onnx a.png --json", "compare m.onnx m2.onnx"])
def test_quiet_leaves_the_results_and_says_nothing_else(
    line: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "m2.onnx").write_bytes((files / "m.onnx").read_bytes())
    assert main(line.split()) == 0
    loud = capsys.readouterr()
    assert loud.out
    assert loud.err
    for words in (["-q", *line.split()], [*line.split(), "--quiet"]):
        assert main(words) == 0
        quiet = capsys.readouterr()
        assert quiet.out.splitlines()[0].partition('"timings')[0] == loud.out.splitlines()[0].partition('"timings')[0]
        assert len(quiet.out.splitlines()) == len(loud.out.splitlines())
        assert quiet.err == ""


def test_quiet_still_says_what_went_wrong(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "m.onnx", "none.png", "-q"]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("[deploykit help 4]\n")


def test_quiet_leaves_notes_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from deploykit.cli import models

    def warn(_: object) -> int:
        logging.getLogger("deploykit.runtime.session").warning("something")
        return 0

    monkeypatch.setattr(models, "run", warn)
    assert main(["models", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["models"]) == 0
    assert capsys.readouterr() == ("", "deploykit: note: something\n")


def test_verbose_says_what_is_loaded_by_what_and_how_long_it_takes(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-v", "predict", "m.onnx", "a.png"]) == 0
    err = capsys.readouterr().err
    assert "deploykit: debug: deploykit 0." in err
    assert "deploykit: debug: m.onnx: opened by onnxruntime in " in err
    assert " ms, on CPUExecutionProvider, with " in err
    assert "deploykit: debug: m.onnx: inputs images float32 (" in err
    assert "deploykit: debug: predict ended with 0 after " in err


def test_the_level_of_the_library_is_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("deploykit")
    before = logger.level
    for option in ("-v", "-q"):
        assert main(["models", option]) == 0
        assert logger.level == before
    capsys.readouterr()


def test_verbose_says_what_a_checkpoint_is(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(checkpoint), "-v"]) == 0
    err = capsys.readouterr().err
    assert f"debug: {checkpoint}: torch-zip, " in err
    assert " tensors, read in " in err
    assert f"debug: {checkpoint} is " in err


def test_verbose_gives_the_time_of_every_step_of_an_export() -> None:
    from deploykit.export.step_timer import StepTimer

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("deploykit.export.step_timer")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        timer = StepTimer()
        timer.step("reading")
        timer.step("tracing")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert said == ["reading took 0.00 s"]


class _Writes(io.StringIO):
    """A stream that keeps what each call writes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def write(self, text: str) -> int:
        self.calls.append(text)
        return super().write(text)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("line", "code"), [("predict m.onnx a.png", 0), ("predict m.onnx a.png --json", 0), ("-v predict m.onnx no.png", 4)]
)
def test_each_line_is_written_at_once(line: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal or another thread between a line and its end would leave a line that the next one continues."""
    streams = {"stdout": _Writes(), "stderr": _Writes()}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(line.split()) == code
    calls = [call for stream in streams.values() for call in stream.calls]
    assert calls
    assert [call for call in calls if not call.endswith("\n")] == []
