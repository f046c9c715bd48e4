"""The exported file itself: equal bytes from equal checkpoints, nothing of this machine in it, and its spec."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import deploykit
from deploykit.errors import ArtefactError
from deploykit.export.graph import finalize
from deploykit.export.options import OnnxOptions
from deploykit.export.parity.compare import compare
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import export_onnx, onnx_from_model
from deploykit.facade import open_session
from deploykit.spec import METADATA_KEY, ModelSpec
from tests.narrow import model_of


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def artefact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported by the default exporter, from a copy of the checkpoint in a folder of its own."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "few.pt").write_bytes(checkpoint.read_bytes())
    return export_onnx(folder / "few.pt", img=64).path


def test_two_exports_from_two_folders_and_processes_are_equal_bytes(
    artefact: Path, checkpoint: Path, tmp_path: Path, root: Path
) -> None:
    there = tmp_path / "somewhere else" / "few.pt"
    there.parent.mkdir()
    there.write_bytes(checkpoint.read_bytes())
    code = f"import sys, deploykit; sys.path.append('x'); deploykit.export_onnx({str(there)!r}, img=64, check=False)"
    environment = {"PYTHONPATH": str(root), "PYTHONHASHSEED": "12345", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert sha256(there.with_suffix(".onnx")) == sha256(artefact)


def test_nothing_of_this_machine_is_in_the_file(artefact: Path, root: Path) -> None:
    data = artefact.read_bytes()
    assert data.count(b"images") >= 1  # what follows looks for things that are spelt out
    for trace in (str(root), str(artefact.parent), sys.prefix, "site-packages", ".py", "/tmp", "stack_trace"):
        assert trace.encode() not in data, trace
    assert not re.search(rb"20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d", data)


def test_metadata_and_doc_strings_are_the_specs_alone(artefact: Path) -> None:
    model = onnx.load(str(artefact))
    assert [prop.key for prop in model.metadata_props] == [METADATA_KEY]
    assert (model.producer_name, model.producer_version) == ("deploykit", deploykit.__version__)
    graph = model.graph
    assert model.doc_string == graph.doc_string == ""
    assert list(graph.metadata_props) == []
    assert {value.name for value in graph.value_info} <= {stored.name for stored in graph.initializer}
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        assert part.doc_string == ""
        assert list(part.metadata_props) == []
    assert not model.functions


def test_the_spec_in_the_file_is_the_reports_and_names_its_source(artefact: Path, checkpoint: Path) -> None:
    with open_session(artefact) as session:
        spec = ModelSpec.from_json(session.metadata[METADATA_KEY])
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert (spec.input.size, spec.input.batch, spec.input.dynamic) == ((64, 64), 1, "none")
    assert (spec.task, spec.classes, spec.opset, spec.precision) == ("keypoints", ("cat", "dog"), 18, "fp32")
    assert spec.source.sha256 == sha256(checkpoint)
    assert (spec.source.model, spec.source.deploykit) == ("yolov7-custom", deploykit.__version__)


@pytest.mark.parametrize(
    ("name", "images", "rows"),
    [
        ("static", [1, 3, 64, 64], [1, 240, 16]),
        ("batch", ["batch", 3, 64, 64], ["batch", 240, 16]),
        ("shape", ["batch", 3, "height", "width"], ["batch", "rows", 16]),
    ],
)
def test_inputs_outputs_and_free_axes_have_their_names(
    name: str, images: list[int | str], rows: list[int | str], exported: Path
) -> None:
    graph = onnx.load(str(exported / f"{name}.onnx")).graph
    found = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert found == {"images": images, "output": rows}


def test_a_predictor_finds_in_the_file_all_it_needs(exported: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)
    with deploykit.load(exported / "static.onnx") as model:
        result = model(image)
    assert len(result) > 0
    assert result.keypoints is not None
    assert result.keypoints.shape[1:] == (3, 3)


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if protobuf could only hold 10 kB, which this network's weights exceed."""
    monkeypatch.setattr(finalize, "LARGE", 10_000)


def export_large(out: Path, seed: int = 0) -> ExportReport:
    return onnx_from_model(
        model_of("few", num_keypoints=3, seed=seed), out=out, img=64, options=OnnxOptions(exporter="legacy")
    )


@pytest.mark.usefixtures("little_room")
def test_a_large_models_weights_lie_beside_it_under_its_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (moved.append(self.name), replace(self, target))[1])
    out = tmp_path / "m.onnx"
    report = export_large(out)
    # Who opens the graph finds its weights already there, and a verification only where the graph is.
    assert moved == ["m.onnx.data", "m.onnx", "m.onnx.parity.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(moved)
    assert report.parity is not None
    assert report.parity.ok
    weights = out.with_name("m.onnx.data")
    assert report.size == out.stat().st_size + weights.stat().st_size
    assert weights.stat().st_size > report.weight_size * 0.9
    with open_session(out) as session:
        assert session.run({"images": np.zeros((1, 3, 64, 64), np.float32)})["output"].shape == (1, 240, 16)
    weights.unlink()
    with pytest.raises(ArtefactError, match=r"keeps its weights in m\.onnx\.data"):
        open_session(out)


@pytest.mark.slow
@pytest.mark.usefixtures("little_room")
def test_old_weights_are_replaced_with_their_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.onnx"
    export_large(out, seed=1)
    old = sha256(tmp_path / "m.onnx.data")
    export_large(out)
    assert sha256(tmp_path / "m.onnx.data") != old
    monkeypatch.undo()
    small = export_large(tmp_path / "small.onnx")
    assert compare(small.path, out).ok
    # A graph that holds its own weights leaves no others beside it.
    export_large(out)
    assert sorted(p.name for p in tmp_path.glob("m.*")) == ["m.onnx", "m.onnx.parity.json"]
