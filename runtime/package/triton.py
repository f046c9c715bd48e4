"""A model repository for Triton: the network, the steps around it, and the ensemble that joins them.

Of a model ``best`` there are four: ``best`` is the ensemble, from an encoded image to a JSON document, and
``best_preprocess``, ``best_network`` and ``best_postprocess`` are its steps. Of a network that takes an image in tiles
there are two: ``best`` is then a Python model that calls ``best_network`` once for each batch of tiles.

The fields of the configuration are described at
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto (BSD-3-Clause).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from deploykit.errors import ArtefactError, SpecError
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.package.models import Network, PackagedModel
from deploykit.runtime.package.options import TritonOptions
from deploykit.runtime.package.text_format import Message, Word, text_of
from deploykit.runtime.package.writing import Content
from deploykit.runtime.session import TensorInfo
from deploykit.runtime.triton.models import NETWORK_FILE, SPEC_FILE
from deploykit.runtime.triton.steps import fixed_spec, in_tiles
from deploykit.runtime.triton.tensors import (
    CANVAS,
    IMAGE,
    PLACEMENT,
    PLACES,
    RESULT,
    TYPES,
    network_tensor,
    result_arrays,
)
from deploykit.spec import OutputTensor

__all__ = ["repository_files"]

KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}
STEP = '''"""A model of Triton's Python backend, by deploykit, which Triton's Python must have."""

from deploykit.runtime.triton.models import {name} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def repository_files(
    model: PackagedModel, network: Network, options: TritonOptions | None = None
) -> dict[str, Content]:
    """Return the files of one model in a repository: path -> content, the ensemble last, because it needs the others.

    Raises:
        SpecError: the network takes RAW files, or its outputs are not those of its spec.
        ArtefactError: a tensor has a type that Triton does not have.
    """
    return _Repository(model, network, options or TritonOptions()).files()


class _Repository:
    """The configurations of one model."""

    def __init__(self, model: PackagedModel, network: Network, options: TritonOptions) -> None:
        self.model, self.network, self.options = model, network, options
        self.spec = fixed_spec(network.spec, network.input)
        self.tiled = in_tiles(self.spec, network.input)
        adapter_of(self.spec).check_outputs(network.outputs)
        batch = network.input.shape[0]
        self.batch = 0 if batch is not None else min(options.max_batch, network.most_batch or options.max_batch)
        self.slots = 1 if batch is None else batch
        steps = ("network",) if self.tiled else ("preprocess", "network", "postprocess")
        self.names = {step: f"{model.name}_{step}" for step in steps}
        self.arrays = result_arrays(self.spec)
        self.outputs = {tensor.name: self._output(tensor) for tensor in self.spec.output_tensors}

    def files(self) -> dict[str, Content]:
        """Return the files of all four."""
        names, spec = self.names, f"{self.spec.to_json()}\n"
        file = "model.plan" if self.model.is_engine else "model.onnx"
        files: dict[str, Content] = {
            f"{names['network']}/config.pbtxt": text_of(self._network()),
            f"{names['network']}/1/{file}": self.model.file,
        }
        if not self.model.is_engine:
            files |= {f"{names['network']}/1/{each.name}": each for each in self.model.beside}
        if self.tiled:
            name = self.model.name
            files[f"{name}/config.pbtxt"] = text_of(self._predict())
            files[f"{name}/1/model.py"] = STEP.format(name="Predict")
            files[f"{name}/1/{SPEC_FILE}"] = spec
            files[f"{name}/1/{NETWORK_FILE}"] = self._facts()
            return files
        for step, config in (("preprocess", self._preprocess()), ("postprocess", self._postprocess())):
            files[f"{names[step]}/config.pbtxt"] = text_of(config)
            files[f"{names[step]}/1/model.py"] = STEP.format(name=step.capitalize())
            files[f"{names[step]}/1/{SPEC_FILE}"] = spec
        files[f"{self.model.name}/config.pbtxt"] = text_of(self._ensemble())
        files[f"{self.model.name}/1/README.txt"] = f"The steps of {self.model.name} are {', '.join(names.values())}.\n"
        return files

    def _output(self, tensor: OutputTensor) -> TensorInfo:
        """Return the network's output that the spec means; a single one is found under any name."""
        found = {info.name: info for info in self.network.outputs}
        if len(found) == 1 and len(self.spec.output_tensors) == 1:
            return self.network.outputs[0]
        if tensor.name not in found:
            raise SpecError(f"the spec names the output {tensor.name!r}, the network has {', '.join(found)}")
        return found[tensor.name]

    def _network(self) -> Message:
        engine = self.model.is_engine
        kind = "KIND_GPU" if engine else KINDS[self.options.device]
        given = self.network.input
        batching = {"max_queue_delay_microseconds": round(1000 * self.options.batch_window)}
        return {
            "name": self.names["network"],
            "platform": "tensorrt_plan" if engine else "onnxruntime_onnx",
            "backend": "tensorrt" if engine else "onnxruntime",
            "max_batch_size": self.batch,
            "input": [self._tensor(given.name, given.dtype, self._dims(given.shape))],
            "output": [self._tensor(o.name, o.dtype, self._dims(o.shape)) for o in self.network.outputs],
            "instance_group": [{"count": self.options.instances, "kind": Word(kind)}],
            **({"dynamic_batching": batching} if self.batch > 1 else {}),
            "model_warmup": [self._warmup(size) for size in dict.fromkeys((1, max(self.batch, 1)))],
        }

    def _preprocess(self) -> Message:
        given = self.network.input
        return {
            **self._step(self.names["preprocess"], self.batch),
            "input": [self._image()],
            "output": [
                self._tensor(CANVAS, given.dtype, self._dims(given.shape)),
                self._tensor(PLACEMENT, "int32", (*self._images, PLACES)),
            ],
        }

    def _postprocess(self) -> Message:
        inputs = [
            self._tensor(network_tensor(name), info.dtype, self._dims(info.shape))
            for name, info in self.outputs.items()
        ]
        return {
            **self._step(self.names["postprocess"], self.batch),
            "input": [*inputs, self._tensor(PLACEMENT, "int32", (*self._images, PLACES))],
            "output": self._results(),
        }

    def _ensemble(self) -> Message:
        given, names = self.network.input, self.names
        internal = {info.name: network_tensor(name) for name, info in self.outputs.items()}
        results = [RESULT, *(array.name for array in self.arrays)]
        return {
            "name": self.model.name,
            "platform": "ensemble",
            "max_batch_size": self.batch,
            "input": [self._image()],
            "output": self._results(),
            "ensemble_scheduling": {
                "step": [
                    self._call(names["preprocess"], {IMAGE: IMAGE}, {CANVAS: CANVAS, PLACEMENT: PLACEMENT}),
                    self._call(names["network"], {given.name: CANVAS}, internal),
                    self._call(
                        names["postprocess"],
                        {**{tensor: tensor for tensor in internal.values()}, PLACEMENT: PLACEMENT},
                        {name: name for name in results},
                    ),
                ]
            },
        }

    def _predict(self) -> Message:
        """Return the configuration of the model that calls the network itself; Triton does not batch its images."""
        arrays = [self._tensor(each.name, each.dtype, (1, *each.dims)) for each in self.arrays]
        image: Message = {"name": IMAGE, "data_type": Word("TYPE_STRING"), "dims": [1]}
        return {**self._step(self.model.name, 0), "input": [image], "output": [{**image, "name": RESULT}, *arrays]}

    def _facts(self) -> str:
        """Return what that model must know about the network, as JSON."""
        tensors = {"inputs": (self.network.input,), "outputs": self.network.outputs}
        facts = {key: [vars(info) for info in infos] for key, infos in tensors.items()}
        return json.dumps({"model": self.names["network"], "batch": max(self.batch, 1), **facts}, indent=1) + "\n"

    def _step(self, name: str, batch: int) -> dict[str, str | int | Sequence[Message]]:
        return {
            "name": name,
            "backend": "python",
            "max_batch_size": batch,
            "instance_group": [{"count": self.options.workers, "kind": Word("KIND_CPU")}],
        }

    def _call(self, name: str, given: dict[str, str], made: dict[str, str]) -> Message:
        maps = {"input_map": given, "output_map": made}
        return {
            "model_name": name,
            "model_version": -1,
            **{key: [{"key": a, "value": b} for a, b in pairs.items()] for key, pairs in maps.items()},
        }

    def _image(self) -> Message:
        return {"name": IMAGE, "data_type": Word("TYPE_STRING"), "dims": list(self._images or (1,))}

    def _results(self) -> list[Message]:
        documents: Message = {"name": RESULT, "data_type": Word("TYPE_STRING"), "dims": list(self._images or (1,))}
        arrays = [self._tensor(each.name, each.dtype, (*self._images, *each.dims)) for each in self.arrays]
        return [documents, *arrays]

    @property
    def _images(self) -> tuple[int, ...]:
        """The axis of the images where Triton does not add it; up to as many as the network has slots."""
        if self.batch:
            return ()
        return (1,) if self.slots == 1 else (-1,)

    def _dims(self, shape: Sequence[int | None]) -> tuple[int, ...]:
        sides = shape[1:] if self.batch else shape
        return tuple(-1 if side is None else side for side in sides)

    def _tensor(self, name: str, dtype: str, dims: tuple[int, ...]) -> Message:
        if dtype not in TYPES:
            raise ArtefactError(f"the tensor {name!r} is {dtype}, which Triton does not have: {', '.join(TYPES)}")
        return {"name": name, "data_type": Word(TYPES[dtype]), "dims": list(dims)}

    def _warmup(self, batch: int) -> Message:
        """Return a run on zeros before the model is ready, of the size that the spec says."""
        given, canvas = self.network.input, self.spec.input
        sides = (self.slots, canvas.channels, *canvas.size)
        shape = tuple(b if a is None else a for a, b in zip(given.shape, sides, strict=True))
        data: Message = {"data_type": Word(TYPES[given.dtype]), "dims": list(self._dims(shape)), "zero_data": True}
        return {"name": f"zeros_{batch}", "batch_size": batch, "inputs": [{"key": given.name, "value": data}]}
