"""The messages of the Open Inference Protocol over gRPC, and of Triton's extensions that its clients use.

The names and numbers of fields are the protocol's. The descriptors lie in a pool of their own, so that a client's
module of the same messages can be loaded beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["METHODS", "SERVICE", "message"]

PACKAGE, SERVICE = "inference", "inference.GRPCInferenceService"

PARAMETERS = "parameters 4 {InferParameter}"
TENSOR = "name 1 string; datatype 2 string; shape 3 *int64"
NAMED = "name 1 string; version 2 string"
CHOICE = "bool_param 1 ?bool; int64_param 2 ?int64; string_param 3 ?string"

MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live 1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready 1 bool",
    "ModelReadyRequest": NAMED,
    "ModelReadyResponse": "ready 1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": f"{NAMED}; extensions 3 *string",
    "ModelMetadataRequest": NAMED,
    "ModelMetadataResponse": (
        "name 1 string; versions 2 *string; platform 3 string; "
        "inputs 4 *ModelMetadataResponse.TensorMetadata; outputs 5 *ModelMetadataResponse.TensorMetadata"
    ),
    "ModelMetadataResponse.TensorMetadata": TENSOR,
    "InferParameter": f"{CHOICE}; double_param 4 ?double; uint64_param 5 ?uint64",
    "InferTensorContents": (
        "bool_contents 1 *bool; int_contents 2 *int32; int64_contents 3 *int64; uint_contents 4 *uint32; "
        "uint64_contents 5 *uint64; fp32_contents 6 *float; fp64_contents 7 *double; bytes_contents 8 *bytes"
    ),
    "ModelInferRequest": (
        f"model_name 1 string; model_version 2 string; id 3 string; {PARAMETERS}; "
        "inputs 5 *ModelInferRequest.InferInputTensor; outputs 6 *ModelInferRequest.InferRequestedOutputTensor; "
        "raw_input_contents 7 *bytes"
    ),
    "ModelInferRequest.InferInputTensor": f"{TENSOR}; {PARAMETERS}; contents 5 InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "name 1 string; parameters 2 {InferParameter}",
    "ModelInferResponse": (
        f"model_name 1 string; model_version 2 string; id 3 string; {PARAMETERS}; "
        "outputs 5 *ModelInferResponse.InferOutputTensor; raw_output_contents 6 *bytes"
    ),
    "ModelInferResponse.InferOutputTensor": f"{TENSOR}; {PARAMETERS}; contents 5 InferTensorContents",
    "ModelStreamInferResponse": "error_message 1 string; infer_response 2 ModelInferResponse",
    "ModelConfigRequest": NAMED,
    "ModelConfigResponse": "config 1 ModelConfig",
    "ModelConfig": (
        "name 1 string; platform 2 string; max_batch_size 4 int32; input 5 *ModelInput; output 6 *ModelOutput; "
        "dynamic_batching 11 ModelDynamicBatching; backend 17 string"
    ),
    "ModelInput": "name 1 string; data_type 2 DataType; dims 4 *int64",
    "ModelOutput": "name 1 string; data_type 2 DataType; dims 3 *int64",
    "ModelDynamicBatching": "preferred_batch_size 1 *int32; max_queue_delay_microseconds 2 uint64",
    "ModelStatisticsRequest": NAMED,
    "ModelStatisticsResponse": "model_stats 1 *ModelStatistics",
    "ModelStatistics": (
        f"{NAMED}; last_inference 3 uint64; inference_count 4 uint64; execution_count 5 uint64; "
        "inference_stats 6 InferStatistics; batch_stats 7 *InferBatchStatistics"
    ),
    "InferStatistics": (
        "success 1 StatisticDuration; fail 2 StatisticDuration; queue 3 StatisticDuration; "
        "compute_input 4 StatisticDuration; compute_infer 5 StatisticDuration; compute_output 6 StatisticDuration"
    ),
    "StatisticDuration": "count 1 uint64; ns 2 uint64",
    "InferBatchStatistics": (
        "batch_size 1 uint64; compute_input 2 StatisticDuration; compute_infer 3 StatisticDuration; "
        "compute_output 4 StatisticDuration"
    ),
    "RepositoryIndexRequest": "repository_name 1 string; ready 2 bool",
    "RepositoryIndexResponse": "models 1 *RepositoryIndexResponse.ModelIndex",
    "RepositoryIndexResponse.ModelIndex": f"{NAMED}; state 3 string; reason 4 string",
    "ModelRepositoryParameter": f"{CHOICE}; bytes_param 4 ?bytes",
    "RepositoryModelLoadRequest": (
        "repository_name 1 string; model_name 2 string; parameters 3 {ModelRepositoryParameter}"
    ),
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": (
        "repository_name 1 string; model_name 2 string; parameters 3 {ModelRepositoryParameter}"
    ),
    "RepositoryModelUnloadResponse": "",
}
"""Message -> its fields: name, number and type; ``*``: repeated, ``?``: of the one choice, ``{}``: a map of text."""

TYPES = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
    "STRING", "BF16",
)  # fmt: skip
"""The values of ``DataType`` from 0, without their ``TYPE_``."""

METHODS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
)  # fmt: skip
"""The methods with one request and one answer, whose messages are called after them."""

FIELD = re.compile(r"(\w+) (\d+) ([*?]?)(\{?)([\w.]+)\}?")


def _fields(text: str) -> Iterator[tuple[str, int, str, bool, str]]:
    for part in filter(None, text.split("; ")):
        found = FIELD.fullmatch(part)
        assert found is not None, part
        yield found[1], int(found[2]), found[3], bool(found[4]), found[5]


Field: Any = descriptor_pb2.FieldDescriptorProto


def _typed(field: descriptor_pb2.FieldDescriptorProto, kind: str) -> None:
    """Set the type of a field: a plain one, a message or the enumeration."""
    known = dict(Field.Type.items()).get(f"TYPE_{kind.upper()}")
    if known is not None:
        field.type = known
        return
    field.type = Field.TYPE_ENUM if kind == "DataType" else Field.TYPE_MESSAGE
    field.type_name = f".{PACKAGE}.{kind}"


def _fill(into: descriptor_pb2.DescriptorProto, path: str, text: str) -> None:
    for name, number, mark, is_map, kind in _fields(text):
        field = into.field.add(name=name, number=number, label=Field.LABEL_OPTIONAL)
        if is_map:
            entry = into.nested_type.add(name="".join(map(str.capitalize, name.split("_"))) + "Entry")
            entry.options.map_entry = True
            _fill(entry, f"{path}.{entry.name}", f"key 1 string; value 2 {kind}")
            kind = f"{path}.{entry.name}"  # noqa: PLW2901  # a map is a list of its entries
        if is_map or mark == "*":
            field.label = Field.LABEL_REPEATED
        if mark == "?":
            if not into.oneof_decl:
                into.oneof_decl.add(name="parameter_choice")
            field.oneof_index = 0
        _typed(field, kind)


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    kinds = file.enum_type.add(name="DataType")
    for number, name in enumerate(TYPES):
        kinds.value.add(name=f"TYPE_{name}", number=number)
    places: dict[str, descriptor_pb2.DescriptorProto] = {}
    for path, text in MESSAGES.items():
        outer, _, name = path.rpartition(".")
        places[path] = (places[outer].nested_type if outer else file.message_type).add(name=name)
        _fill(places[path], path, text)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """Return the class of a message by its name without the package."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))
