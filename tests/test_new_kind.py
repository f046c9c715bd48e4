"""A kind of output that only the tests know is exported, verified, predicted with, evaluated and measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import deploykit
from deploykit.cli import main
from deploykit.errors import ParityError, UsageError
from deploykit.export import outputs as export_floor
from deploykit.export import to_onnx
from deploykit.export.inspection import inspect_file
from deploykit.export.report import ExportReport
from deploykit.models.registry import ReferenceModel
from deploykit.runtime import outputs as runtime_floor
from deploykit.runtime.bench.benchmark import benchmark
from deploykit.runtime.evaluate.report import ImageEvaluation
from deploykit.spec import OUTPUTS, Fit, InputSpec, ModelSpec, register_output
from tests.counting.at_export import CountExport
from tests.counting.at_run_time import Count, CountAdapter
from tests.counting.output import CountOutput

TABLES = (OUTPUTS, runtime_floor.ADAPTERS, export_floor.ADAPTERS)
PIXELS = 4  # a thing is of so many white pixels
SPEC_INPUT = InputSpec(size=(32, 32), fit=Fit(kind="resize", stride=1))


@pytest.fixture(scope="module", autouse=True)
def kind() -> Iterator[None]:
    """The kind is known as long as this file is run."""
    register_output(CountOutput)
    runtime_floor.register_runtime_adapter("count", CountAdapter)
    export_floor.register_export_adapter("count", CountExport)
    yield
    for table in TABLES:
        table.pop("count")  # type: ignore[attr-defined]  # each is a dictionary by the kind


class Counter(nn.Module):
    """The sum of an image's brightness, in things."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Conv2d(3, 1, 1)
        nn.init.constant_(self.grey.weight, 1 / 3 / PIXELS)
        nn.init.zeros_(self.grey.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.grey(images).sum((2, 3))
        return found


def reference() -> ReferenceModel:
    spec = ModelSpec("count", SPEC_INPUT, CountOutput(), classes=("dots",))
    return ReferenceModel("counter", "counters", Counter().eval(), spec)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    out = tmp_path_factory.mktemp("counter") / "counter.onnx"
    return to_onnx.onnx_from_model(reference(), out=out, dynamic="batch")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 0, 1, 2 and 5 dots; their counts lie beside them."""
    folder = tmp_path_factory.mktemp("dots")
    counts = {f"{n}.png": n for n in (0, 1, 2, 5)}
    for name, count in counts.items():
        image = np.zeros((32, 32, 3), np.uint8)
        for i in range(count):
            image[4 * i : 4 * i + 2, 8:10] = 255
        cv2.imwrite(str(folder / name), image)
    (folder / "counts.json").write_text(json.dumps({**counts, "5.png": 6}))  # one of which is wrong
    return folder


def test_its_spec_is_read_and_written(exported: ExportReport) -> None:
    assert ModelSpec.from_json(exported.spec.to_json()) == exported.spec
    assert exported.spec.output == CountOutput()


def test_its_file_is_verified_against_the_network(exported: ExportReport) -> None:
    assert exported.parity is not None
    assert exported.parity.ok
    assert {d.values for d in exported.parity.differences} == {"count"}
    assert {m.what for m in exported.parity.matchings} == {"values"}
    assert [str(output) for output in exported.outputs] == ["count float32 (batch, 1)"]


def damaged(file: Path) -> None:
    """The weights are a tenth too large."""
    model = onnx.load(str(file))
    stored = next(t for t in model.graph.initializer if t.name == "grey.weight")
    stored.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored) * np.float32(1.1), stored.name))
    onnx.save(model, str(file))


def test_a_damaged_file_is_refused(exported: ExportReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = to_onnx.write

    def damaging(*words: object) -> Path:
        file = write(*words)  # type: ignore[arg-type]  # as they are
        damaged(file)
        return file

    monkeypatch.setattr(to_onnx, "write", damaging)
    with pytest.raises(ParityError, match=r"count of out\.onnx differ"):
        to_onnx.onnx_from_model(reference(), out=tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())
    copy = tmp_path / "copy.onnx"
    shutil.copy(exported.path, copy)
    assert deploykit.compare(exported.path, copy).ok
    damaged(copy)
    assert not deploykit.compare(exported.path, copy).ok


def test_the_screen_of_an_export_describes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "counter.pth"
    torch.save({}, weights)
    monkeypatch.setattr(to_onnx, "load_model", lambda *_, **__: reference())
    assert main(["export", "--weights", str(weights)]) == 0
    out = capsys.readouterr().out
    assert "how many dots the image shows" in out
    assert "count" in out
    assert main(["export", "--weights", str(weights), "--nms", "graph"]) == UsageError.exit_code
    assert "this model's task is count, and it finds no boxes" in capsys.readouterr().err


def test_inspect_describes_it(exported: ExportReport, capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspect_file(exported.path).facts
    assert (facts["task"], facts["output"]) == ("count", "how many dots the image shows")
    assert main(["inspect", str(exported.path)]) == 0
    assert "how many dots" in capsys.readouterr().out


def test_it_predicts(exported: ExportReport, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with deploykit.load(exported.path) as predict:
        found = predict(images / "2.png")
        assert isinstance(found, Count)
        assert found.count == pytest.approx(2.0, abs=1e-4)
        assert [r.count for r in predict.stream(images) if isinstance(r, Count)] == pytest.approx(
            [0, 1, 2, 5], abs=1e-4
        )
    with pytest.raises(UsageError, match="conf: not for the task count of this model"):
        deploykit.load(exported.path, conf=0.5)
    words = ["predict", "--model", exported.path, "--source", images, "--out", tmp_path / "drawn"]
    assert main([*map(str, words)]) == 0
    out = capsys.readouterr().out
    assert "2.png: 2.0 of them" in out
    assert "4 images: counted" in out
    assert len(list((tmp_path / "drawn").iterdir())) == 4
    assert main(["predict", "--model", str(exported.path), "--source", str(images / "1.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == pytest.approx(1.0, abs=1e-4)


def test_it_is_evaluated(exported: ExportReport, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = deploykit.evaluate(exported.path, images / "counts.json", images=images, batch=3)
    assert isinstance(found, ImageEvaluation)
    assert found.metrics["MAE"] == pytest.approx(1 / 4, abs=1e-4)
    assert found.counts == {"images": 4}
    words = ["eval", "--model", exported.path, "--data", images / "counts.json", "--images", images]
    assert main([*map(str, words), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == pytest.approx(found.metrics, abs=1e-6)
    assert main([*map(str, words), "--against", str(exported.path), "--per-class"]) == 0
    out = capsys.readouterr().out
    assert "MAE" in out
    assert "5.png" in out


def test_it_is_measured(exported: ExportReport, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = benchmark(lambda: deploykit.load(exported.path), images, runs=2, warmup=0)
    assert report.end_to_end.includes.startswith("encoded images in memory to their counts,")
    words = ["bench", "--engine", exported.path, "--source", images, "--runs", 2, "--warmup", 0]
    assert main([*map(str, words)]) == 0
    assert "images per second from image to result" in capsys.readouterr().out


def test_nothing_of_it_stays_where_it_is_not_registered(
    exported: ExportReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(OUTPUTS, "count")
    with pytest.raises(
        deploykit.DeployError,
        match=r"output\.kind must be one of rows, anchor-heads, pose-objects, nms, end-to-end, tensor",
    ):
        deploykit.load(exported.path)
