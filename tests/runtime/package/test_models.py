"""Which models are packaged, under which names, and with which files."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.errors import ArtefactError, DeployError, NotFoundError, UsageError
from deploykit.runtime.backends.onnx_weights import external_files
from deploykit.runtime.engine_record import EngineRecord, Profile
from deploykit.runtime.package.models import network_of, packaged_models
from tests.cell_model import cell_spec, write_cell_model


def test_names_are_those_of_the_files_unless_they_are_given(tmp_path: Path) -> None:
    first, second = (write_cell_model(tmp_path / f"{name}.onnx", spec=cell_spec()) for name in ("best.v2", "my model"))
    models = packaged_models([str(first), f"other={second}"])
    assert [(model.name, model.file) for model in models] == [("best.v2", first), ("other", second)]
    with pytest.raises(UsageError, match=r"got 'my model': write NAME=MODEL"):
        packaged_models([str(second)])
    with pytest.raises(UsageError, match=r"two models are called 'best.v2'"):
        packaged_models([str(first), f"best.v2={second}"])


def test_what_is_no_exported_model_is_refused(tmp_path: Path) -> None:
    for name in ("best.pt", "best.tflite"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"best.pt is a checkpoint, .*: deploykit export"):
        packaged_models([str(tmp_path / "best.pt")])
    with pytest.raises(ArtefactError, match=r"ends in \.onnx"):
        packaged_models([str(tmp_path / "best.tflite")])
    with pytest.raises(NotFoundError):
        packaged_models([str(tmp_path / "none.onnx")])


def test_external_weights_go_with_the_model(tmp_path: Path) -> None:
    file = write_cell_model(tmp_path / "m.onnx", spec=cell_spec(), external=True)
    assert external_files(file) == ["m.onnx.data"]
    assert external_files(write_cell_model(tmp_path / "whole.onnx", spec=cell_spec())) == []
    (model,) = packaged_models([str(file)])
    assert model.files == (file, tmp_path / "m.onnx.data")
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(NotFoundError, match=r"keeps weights in m\.onnx\.data, which does not lie beside it"):
        packaged_models([str(file)])


@pytest.mark.parametrize("data", [b"", b"no onnx file", b"\x3a\x05"])
def test_a_file_that_is_no_message_is_an_error(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(data)
    with pytest.raises(ArtefactError, match="expected an ONNX file"):
        external_files(file)


def engine(folder: Path, *profiles: Profile, batch: int | str = "n") -> Path:
    """A file that stands for an engine, with its record, and beside it the ONNX file that it was built from."""
    write_cell_model(folder / "best.onnx", batch=batch, spec=cell_spec(dynamic=batch == "n"))
    file = folder / "best.trt"
    file.write_bytes(b"plan")
    spec = cell_spec(dynamic=batch == "n")
    EngineRecord("tensorrt", "10.13", spec, "best.onnx", "0" * 64, size=4, profiles=profiles).write(file)
    return file


def test_an_engines_tensors_are_those_of_its_onnx_file_and_its_batch_that_of_its_profile(tmp_path: Path) -> None:
    shapes = [(n, 3, 64, 64) for n in (1, 2, 4)]
    (model,) = packaged_models([str(engine(tmp_path, Profile(*shapes)))])
    assert model.files == (tmp_path / "best.trt", tmp_path / "best.trt.json")
    network = network_of(model)
    assert (network.most_batch, network.input.shape) == (4, (None, 3, 64, 64))
    assert [output.name for output in network.outputs] == ["output"]


def test_an_engine_without_profiles_has_the_shape_of_its_spec(tmp_path: Path) -> None:
    (model,) = packaged_models([str(engine(tmp_path))])
    network = network_of(model)
    assert (network.input.shape, network.outputs[0].shape) == ((1, 3, 64, 64), (1, 64, 10))


def test_an_engine_of_two_stages_is_refused(tmp_path: Path) -> None:
    file = engine(tmp_path, batch=1)
    record = EngineRecord("tensorrt", "10", cell_spec(), "best.onnx", "0" * 64, second_stage={".rest.onnx": "0" * 64})
    record.write(file)
    with pytest.raises(DeployError, match=r"the first of two stages.*package its \.onnx file"):
        network_of(packaged_models([str(file)])[0])
