"""Small models of every task for a repository of Triton, and a stand-in for Triton that runs their ensemble."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.runtime.arrays import Array
from deploykit.runtime.package.models import network_of, packaged_models
from deploykit.runtime.package.options import TritonOptions
from deploykit.runtime.package.triton import repository_files
from deploykit.runtime.package.writing import write_tree
from deploykit.runtime.session import Session, open_session
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model
from tests.dense_networks import blurrer, brightener, classifier, segmenter
from tests.foreign_exports import SIDE, ULTRALYTICS, names, v8, write_constant

ASSETS = Path(deploykit.__file__).parent / "assets"
TYPES = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT32": np.int32, "TYPE_UINT8": np.uint8}


def png(image: Array) -> bytes:
    """The image as a file."""
    return bytes(cv2.imencode(".png", image)[1])


def noise(height: int, width: int) -> bytes:
    """A file of seeded noise, with larger spots than a pixel."""
    small = np.random.default_rng(height).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return png(np.ascontiguousarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)))


def _masks(file: Path) -> Path:
    prototypes = np.zeros((1, 4, SIDE // 4, SIDE // 4), np.float32)
    prototypes[:, :, 8:20, 10:26] = 4.0
    facts = {**ULTRALYTICS, "task": "segment", "names": names(3)}
    return write_constant(file, {"output0": v8(extra=4), "output1": prototypes}, facts)


Model = Callable[[Mapping[str, Array], Sequence[str]], dict[str, Array]]
"""Input tensors, and the names of the wanted outputs, to output tensors."""

Case = tuple[Callable[[Path], Path], list[bytes]]

BLOCKS = [planted((2, 3, RED), scale=8), planted((1, 1, BLUE), (6, 2, RED), scale=3, wide=2), planted(scale=2)]
CASES: dict[str, Case] = {
    "keypoints": (
        lambda file: write_cell_model(file, batch="n", spec=cell_spec(dynamic=True)),
        [png(image) for image in BLOCKS],
    ),
    "half": (
        lambda file: write_cell_model(file, spec=cell_spec(), half=True),
        [png(BLOCKS[0])],
    ),
    "fixed": (
        lambda file: write_cell_model(file, batch=4, spec=cell_spec(batch=4), external=True),
        [png(image) for image in BLOCKS],
    ),
    "markers": (
        lambda file: Path(shutil.copy(ASSETS / "markers.onnx", file)),
        [ASSETS.joinpath("markers.jpg").read_bytes()],
    ),
    "masks": (_masks, [png(np.full((300, 200, 3), 128, np.uint8))]),
    "classify": (lambda file: classifier(file, dynamic="batch"), [noise(90, 120), noise(40, 33)]),
    "segment": (lambda file: segmenter(file, dynamic="batch"), [noise(70, 50)]),
    "tiles": (lambda file: blurrer(file, dynamic="batch"), [noise(50, 64)]),
    "restore": (lambda file: brightener(file, dynamic="shape"), [noise(50, 64)]),
}
"""Task -> the function that writes a model, and encoded images for one request."""


def repository_of(folder: Path, case: str, options: TritonOptions | None = None) -> tuple[Path, Path]:
    """Write the case's model and a repository with it, and return both."""
    file = CASES[case][0](folder / f"{case}.onnx")
    (model,) = packaged_models([str(file)])
    write_tree(folder / "repository", repository_files(model, network_of(model), options))
    return file, folder / "repository"


def config_of(folder: Path) -> Any:
    """The configuration of a model, read by the schema of Triton's own client; a misspelt field is an error."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


class Ensemble:
    """Runs the ensemble of a repository as Triton would, and refuses tensors that are not as configured."""

    def __init__(self, repository: Path, name: str, patch: pytest.MonkeyPatch) -> None:
        self._repository, self._models = repository, dict[str, Model]()
        patch.setitem(sys.modules, "triton_python_backend_utils", backend_module(self._models))
        self.config = config_of(repository / name)
        names = [step.model_name for step in self._steps] or [f"{name}_network", name]
        self.configs = {name: config_of(repository / name) for name in names}
        for each in names:
            self._models[each] = self._opened(each)

    @property
    def _steps(self) -> Sequence[Any]:
        found: Sequence[Any] = self.config.ensemble_scheduling.step
        return found

    def __call__(self, images: Sequence[bytes], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Return the outputs of a request, all of them unless some are named."""
        wanted = list(outputs) or [each.name for each in self.config.output]
        given = np.array(list(images), np.object_)
        tensors = {"image": given[:, None] if self.config.max_batch_size else given}
        if not self._steps:  # a model that calls the network itself
            _check(tensors, self.config.input, 0)
            found = self._models[self.config.name](tensors, wanted)
            _check(found, self.config.output, 0)
            return found
        for step in self._steps:
            config = self.configs[step.model_name]
            inputs = {name: tensors[tensor] for name, tensor in step.input_map.items()}
            made = {name: tensor for name, tensor in step.output_map.items()}
            asked = [name for name, tensor in made.items() if step is not self._steps[-1] or tensor in wanted]
            _check(inputs, config.input, config.max_batch_size)
            found = self._models[step.model_name](inputs, asked)
            _check(found, config.output, config.max_batch_size)
            tensors |= {made[name]: value for name, value in found.items()}
        return {name: tensors[name] for name in wanted}

    def _opened(self, name: str) -> Model:
        config, version = self.configs[name], self._repository / name / "1"
        if config.backend != "python":
            session: Session = open_session(version / "model.onnx", device="cpu")
            return lambda inputs, asked: session.run(inputs)
        model = python_model(version / "model.py")
        model.initialize(
            {"model_config": _json_of(config), "model_repository": str(self._repository / name), "model_version": "1"}
        )

        def run(inputs: Mapping[str, Array], asked: Sequence[str]) -> dict[str, Array]:
            tensors = [SimpleNamespace(name=name, as_numpy=lambda value=value: value) for name, value in inputs.items()]
            request = SimpleNamespace(tensors=tensors, requested_output_names=lambda: list(asked))
            (response,) = model.execute([request])
            if response.error is not None:
                raise ValueError(response.error.message)
            return {tensor.name: tensor.value for tensor in response.tensors}

        return run


def python_model(file: Path) -> Any:
    """The model of a ``model.py``, as the backend creates it."""
    found = importlib.util.spec_from_file_location(f"model_of_{file.parent.parent.name}", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.TritonPythonModel()


def backend_module(models: Mapping[str, Model]) -> ModuleType:
    """A stand-in for the module that Triton gives its Python models, which may call these models."""
    module: Any = ModuleType("triton_python_backend_utils")

    class TritonError:
        INVALID_ARG = 3

        def __init__(self, message: str, code: int) -> None:
            self.message, self.code = message, code

    def response(tensors: Sequence[Any] = (), error: TritonError | None = None) -> SimpleNamespace:
        return SimpleNamespace(tensors=list(tensors), error=error)

    module.TritonError, module.InferenceResponse = TritonError, response
    module.Tensor = lambda name, value: SimpleNamespace(name=name, value=value)
    module.get_input_tensor_by_name = lambda request, name: next(t for t in request.tensors if t.name == name)

    def call(model_name: str, requested_output_names: list[str], inputs: list[Any], preferred_memory: Any) -> Any:
        assert preferred_memory == ("CPU", 0)
        found = models[model_name]({each.name: each.value for each in inputs}, requested_output_names)
        tensors = [SimpleNamespace(name=name, as_numpy=lambda value=value: value) for name, value in found.items()]
        return SimpleNamespace(exec=lambda: SimpleNamespace(tensors=tensors, has_error=lambda: False))

    module.InferenceRequest, module.PreferredMemory = call, lambda *where: where
    module.TRITONSERVER_MEMORY_CPU = "CPU"
    module.get_output_tensor_by_name = module.get_input_tensor_by_name
    made: ModuleType = module
    return made


def _json_of(config: Any) -> str:
    """The configuration as Triton hands it over: JSON with the schema's own names, numbers of 64 bits as text."""
    json_format = pytest.importorskip("google.protobuf.json_format")
    document = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return json.dumps({"max_batch_size": 0, **document})


def _check(tensors: Mapping[str, Array], declared: Sequence[Any], most: int) -> None:
    """Compare tensors with a configuration: names, types, dimensions, and the same batch in all."""
    kinds = {each.name: each for each in declared}
    batches = set()
    for name, value in tensors.items():
        config = kinds[name]
        kind = type(config).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[config.data_type].name
        expected = np.object_ if kind == "TYPE_STRING" else TYPES[kind]
        shape = value.shape[1:] if most else value.shape
        assert value.dtype == expected, (name, value.dtype, kind)
        assert len(shape) == len(config.dims), (name, shape, config.dims)
        assert all(want in (-1, got) for want, got in zip(config.dims, shape, strict=True)), (name, shape, config.dims)
        batches.add(len(value) if most else 0)
    assert len(batches) == 1
    assert batches <= {*range(most + 1)}
