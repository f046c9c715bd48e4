"""``deploykit inspect``: what a file is, whatever it is."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deploykit.cli import main
from deploykit.errors import ArtefactError, CheckpointError, NotFoundError
from deploykit.export.options import OnnxOptions
from deploykit.export.to_onnx import export_onnx
from tests.cell_model import cell_spec, write_cell_model
from tests.narrow import few_layers, with_layer, write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def inspected(capsys: pytest.CaptureFixture[str], file: Path) -> dict[str, str]:
    """The printed table, long rows joined, the notes under one key."""
    assert main(["inspect", str(file)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [line.rstrip() for line in out.splitlines()]
    width = len(lines[0]) - len(lines[0].removeprefix("kind").lstrip())
    table: dict[str, str] = {}
    for line in lines:
        if name := line[:width].strip():
            table[name] = f"{table[name]}; {line[width:]}" if name in table else line[width:]
        else:
            table[list(table)[-1]] += " " + line[width:]
    return table


def test_a_checkpoint_of_a_model_we_know(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, checkpoint)
    assert (found["kind"], found["family"], found["task"]) == ("checkpoint", "YOLOv7", "keypoints")
    assert found["classes"] == "cat, dog"
    assert found["keypoints"] == "keypoint 0, keypoint 1, keypoint 2"
    assert (found["columns"], found["stride"]) == ("16", "8, 16")
    assert found["preprocessing"].startswith("letterbox ")
    assert found["output"].startswith("0-3: cx cy w h; 4: objectness; 5-6: 2 classes; 7-15: 3 keypoints of x y v;")
    assert found["format"] == "torch-zip"
    assert found["weights from"] == "model"
    assert found["precision"].startswith("float16: ")
    assert found["entries"] == "epoch: -1"
    assert "note" not in found


def test_an_export_and_its_verification(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = export_onnx(checkpoint, img=64, options=OnnxOptions(exporter="legacy"), out=tmp_path / "m.onnx")
    found = inspected(capsys, report.path)
    assert (found["kind"], found["task"], found["dynamic"]) == ("ONNX model", "keypoints", "none")
    assert found["inputs"] == "images float32 (1, 3, 64, 64)"
    assert found["outputs"] == "output float32 (1, 240, 16)"
    assert found["opset"] == "ai.onnx: 18"
    assert found["nodes"] == str(report.nodes)
    assert found["made by"].startswith("deploykit ")
    assert found["checkpoint sha256"] == report.spec.source.sha256
    assert "note" not in found
    assert found["sha256"] == sha256(report.path.read_bytes()).hexdigest()
    weights = bytearray(report.path.read_bytes())
    weights[len(weights) // 2] ^= 1  # a bit of a weight
    report.path.write_bytes(weights)
    assert "is of another file: m.onnx has changed since it was verified" in inspected(capsys, report.path)["note"]
    tmp_path.joinpath("m.onnx.parity.json").unlink()
    assert inspected(capsys, report.path)["note"].startswith("there is no parity report beside it")


def test_a_foreign_export_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, write_cell_model(tmp_path / "cells.onnx", batch="n"))
    assert found["inputs"] == "images float32 (?, 3, 64, 64)"
    assert "task" not in found
    assert "carries no deploykit spec, and the file does not tell task and output" in found["note"]
    assert "there is no parity report" in found["note"]


def test_without_onnx_and_torch_it_shows_the_spec_and_the_interface(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    for module in ("onnx", "torch"):
        monkeypatch.setitem(sys.modules, module, None)  # how Python marks a module that cannot be imported
    found = inspected(capsys, file)
    assert found["classes"] == "red, blue"
    assert found["inputs"].startswith("images float32")
    assert "opset, nodes and operators are not shown: onnx is required here but is not installed" in found["note"]
    assert "operators" not in found


def test_a_spec_that_does_not_read_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    file = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    model = onnx.load(str(file))
    model.metadata_props[0].value = '{"version": 99}'
    onnx.save(model, str(file))
    assert "its spec cannot be used: the spec has version 99" in inspected(capsys, file)["note"]


def test_a_state_dict_of_a_model_that_nobody_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"[conv].weight": torch.zeros(2, 2), "fc": torch.ones(3)}}, tmp_path / "other.pth")
    found = inspected(capsys, tmp_path / "other.pth")
    assert (found["family"], found["classes"], found["stride"]) == ("unknown", "unknown", "unknown")
    assert (found["tensors"], found["values"], found["weights from"]) == ("2", "7", "state_dict")
    assert "deploykit cannot build it: " in found["note"]
    assert "[conv].weight" in found["note"]


def test_a_layer_that_nobody_knows_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_checkpoint(tmp_path / "new.pt", few_layers(), described=with_layer(few_layers(), "HyperConv"))
    found = inspected(capsys, file)
    assert found["family"] == "unknown"
    assert "layer 1 of the model's description is 'HyperConv', which deploykit does not have" in found["note"]


@pytest.mark.parametrize("which", ["checkpoint", "artefact"])
def test_json_is_one_document_and_nothing_else(
    which: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint if which == "checkpoint" else write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    assert main(["inspect", str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out, parse_constant=pytest.fail)
    assert found["bytes"] == file.stat().st_size
    assert found["classes"] == (["cat", "dog"] if which == "checkpoint" else ["red", "blue"])
    assert isinstance(found["notes"], list)


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("photo.pt", b"\xff\xd8\xff\xe0\x00\x10JFIF", CheckpointError, "it is a JPEG image; expected a checkpoint"),
        ("notes.md", b"# Notes on what was trained\n" * 3, CheckpointError, "it is text; expected a checkpoint"),
        ("empty.pt", b"", CheckpointError, "empty"),
        ("empty.onnx", b"", ArtefactError, "is not a complete ONNX file (0 bytes)"),
        ("noise.onnx", np.random.default_rng(0).bytes(999), ArtefactError, "is not a complete ONNX file (999 bytes)"),
    ],
)
def test_what_is_neither_is_one_line(
    name: str, content: bytes, error: type[CheckpointError], said: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / name).write_bytes(content)
    assert main(["inspect", str(tmp_path / name)]) == error.exit_code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("deploykit: ")
    assert said in err


def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none.pt")]) == NotFoundError.exit_code
    assert main(["inspect", str(tmp_path)]) == ArtefactError.exit_code
    missing, folder = capsys.readouterr().err.splitlines()
    assert "there is no such file" in missing
    assert "is a folder: give the path of a file in it" in folder


WEIGHTS = {
    "yolov7-lite-e_face5kpt.pt": {"family": "YOLOv7", "classes": "face", "columns": "21"},
    "yolov7-lite-s_plate4kpt.pt": {"family": "YOLOv7", "classes": "single, double", "columns": "19"},
    "official_yolov7-tiny.structure-randomfill.pt": {"model": "yolov7-tiny", "stride": "8, 16, 32"},
    "yolov5n_official_coco.pt": {"family": "YOLOv5", "model": "yolov5n", "stride": "8, 16, 32"},
    "yolov8n_dill_globals.pt": {"family": "YOLOv8", "model": "yolov8n", "stride": "8, 16, 32"},
    "dncnn_wholemodel_main.pth": {"family": "unknown", "format": "torch-legacy"},
    "resnet20_cifar10.th": {"format": "torch-legacy", "weights from": "state_dict"},
}


@pytest.mark.data
@pytest.mark.parametrize("name", WEIGHTS)
def test_real_checkpoints(name: str, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, shared / "data" / "weights" / name)
    assert {key: found[key] for key in WEIGHTS[name]} == WEIGHTS[name]
    assert ("deploykit cannot build it" in found.get("note", "")) == (found["family"] == "unknown")


@pytest.mark.data
def test_the_real_truncated_checkpoint_is_refused(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shared / "data" / "weights" / "official_yolov7-tiny.truncated.pt"
    assert main(["inspect", str(file)]) == 10
    out, err = capsys.readouterr()
    assert out == ""
    assert "truncated or damaged" in err


@pytest.mark.data
def test_a_real_foreign_export(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, shared / "data" / "onnx" / "yolov7-lite-e_face5kpt.onnx")
    assert (found["inputs"], found["nodes"]) == ("images float32 (1, 3, 640, 640)", "1,013")
    assert found["made by"] == "pytorch 1.8"
    assert "carries no deploykit spec, and the file does not tell classes and output.cls" in found["note"]


def test_what_makes_a_file_large_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    index = numpy_helper.from_array(np.zeros((1, 40, 3), np.int64), "index")
    half = numpy_helper.from_array(np.zeros((7, 3), np.float16), "half")
    table = helper.make_node(
        "Constant", [], ["table"], value=numpy_helper.from_array(np.zeros((10, 3), np.float32), "x")
    )
    graph = helper.make_graph(
        [table, helper.make_node("GatherND", ["x", "index"], ["found"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2, 2])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, [1, 40])],
        [index, half],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    save(model, str(tmp_path / "m.onnx"))
    assert main(["inspect", str(tmp_path / "m.onnx"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["stored tensors"] == 2
    assert facts["stored bytes"] == {"int64": 960, "float32": 120, "float16": 42}
    assert facts["largest"] == [
        "index int64 1x40x3: 960 bytes",
        "table float32 10x3: 120 bytes",
        "half float16 7x3: 42 bytes",
    ]


def test_names_of_a_file_that_are_no_text_are_shown_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_cell_model(tmp_path / "m.onnx", spec=cell_spec())
    model = onnx.load(file)
    model.producer_name = "the_maker"
    model.opset_import.add(domain="another", version=1)
    data = model.SerializeToString().replace(b"the_maker", b"the\xffmaker").replace(b"another", b"anoth\xffr")
    file.write_bytes(data)
    assert main(["inspect", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["made by"] == "the\N{REPLACEMENT CHARACTER}maker"
    assert shown["opset"] == {"ai.onnx": 18, "anoth\N{REPLACEMENT CHARACTER}r": 1}
