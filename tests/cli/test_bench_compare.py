"""``deploykit bench --compare`` and ``--baseline`` as a person or a script uses them. No test judges a time."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest

from deploykit.cli import main
from deploykit.errors import DataError, NotFoundError, OutputError, SlowerError, UsageError
from tests.cell_model import RED, cell_spec, planted, write_cell_model
from tests.error_line import told

SHORT = ("--runs", 12, "--warmup", 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "two.png"
    path.write_bytes(cv2.imencode(".png", planted((1, 2, RED), (4, 4, RED), scale=4))[1].tobytes())
    return path


def _bench(*words: object) -> int:
    return main(["bench", *map(str, words)])


def _json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_compare_measures_what_lies_beside_and_recommends_one(
    model: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(model, model.with_name("cells-int8.onnx"))
    model.with_name("cells-fp16.onnx").write_bytes(b"broken")
    assert _bench(model, "--compare", "--source", image, "--runs", 12, "--device", "cpu", "--threads", 1, "--json") == 0
    facts = _json(capsys)
    names = [one["name"] for one in facts["variants"]]
    assert names == ["cells.onnx on cpu, 1 thread", "cells-int8.onnx on cpu, 1 thread"]
    assert facts["recommended"] in names
    assert list(facts["left_out"]) == ["cells-fp16.onnx on cpu, 1 thread"]
    assert "is not a complete ONNX file" in facts["left_out"]["cells-fp16.onnx on cpu, 1 thread"]
    assert facts["rounds"] == 12
    assert facts["images"]["bytes"] == image.stat().st_size
    first, other = facts["variants"]
    assert first["ratio"]["value"] == 1.0
    assert other["ratio"]["low"] <= other["ratio"]["value"] <= other["ratio"]["high"]
    assert first["bytes"] == model.stat().st_size
    assert (first["objects"], first["threads"]) == (2.0, 1)
    assert "samples" not in first["end_to_end"]


def test_compare_prints_a_table_and_what_follows(
    model: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_cell_model(tmp_path / "other.onnx", spec=cell_spec())
    assert _bench(model, "--compare", other, "--source", image, "--runs", 3) == 0
    out = capsys.readouterr().out
    assert "3 rounds in " in out
    assert {"cells.onnx", "other.onnx"} <= {line.split(" ")[0].rstrip(",") for line in out.splitlines()}
    assert "3 rounds are too few to recommend anything" in out
    assert "deploykit eval --against" in out


def test_a_baseline_of_equal_times_is_no_error_and_a_faster_one_is(
    model: Path,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _bench(model, "--source", image, *SHORT, "--json", "--samples") == 0
    facts = _json(capsys)
    old = tmp_path / "old.json"

    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.1, 0.1))  # a busy machine gets no verdict

    def keep(factor: float) -> None:
        changed = json.loads(json.dumps(facts))
        changed["machine"]["load"] = 0.1
        for part in ("model_only", "end_to_end"):
            times = changed[part]["total_ms"]
            times["samples"] = [factor * ms for ms in times["samples"]]
        old.write_text(json.dumps(changed))

    keep(1000.0)
    assert _bench(model, "--source", image, *SHORT, "--baseline", old) == 0
    assert "times the median of" in (out := " ".join(capsys.readouterr().out.split()))
    assert "faster than the baseline" in out
    keep(0.001)
    assert _bench(model, "--source", image, *SHORT, "--baseline", old, "--json") == SlowerError.exit_code == 85
    out, err = capsys.readouterr()
    parts = json.loads(out)["baseline"]["parts"]
    assert {part["verdict"] for part in parts.values()} == {"slower"}
    assert "accept it with a new baseline" in err
    assert _bench(model, "--source", image, "--runs", 3, "--warmup", 0, "--baseline", old) == 0
    assert "3 runs are too few for a verdict" in capsys.readouterr().out


def test_a_baseline_of_another_image_is_refused(
    model: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(model, *SHORT, "--json", "--samples") == 0
    old = tmp_path / "old.json"
    old.write_text(capsys.readouterr().out)
    assert _bench(model, "--source", image, *SHORT, "--baseline", old) == DataError.exit_code
    assert "the bytes of the images was " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--compare", "--baseline", "x.json"), UsageError.exit_code, "--baseline is for one model"),
        (("--tolerance", "3"), UsageError.exit_code, "--tolerance is for --baseline FILE"),
        (("--baseline", "x.json", "--tolerance", "-1"), UsageError.exit_code, "got -1"),
        (("--baseline", "gone.json"), NotFoundError.exit_code, "the baseline gone.json does not exist"),
        (("--compare", "gone.onnx"), NotFoundError.exit_code, "the model gone.onnx does not exist"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_measured(
    model: Path, words: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(model, *words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in told(err.strip())


def test_report_writes_one_page_with_the_operators(
    model: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out.html"
    assert _bench(model, "--source", image, *SHORT, "--report", page) == 0
    text = page.read_text()
    assert "Operators of the network" in text
    assert "between operators" in text
    assert str(image) in text
    assert _bench(model, "--source", image, "--runs", 3, "--compare", "--report", page, "--threads", 1) == 0
    assert "Ratios to the first line" in page.read_text()
    capsys.readouterr()
    assert _bench(model, *SHORT, "--report", tmp_path) == OutputError.exit_code
    assert "is a folder" in capsys.readouterr().err
