"""Every name of TensorRT's Python API that is used exists in every version that is supported.

TensorRT itself cannot be installed on every machine that runs these tests, and its versions differ: 11 has neither
precision flags nor calibrators nor EXPLICIT_BATCH. So the names in our sources are held against those that the Python
bindings of NVIDIA/TensorRT define (``python/src``, Apache-2.0; looked up at the tags v10.0.0, v10.3.0, v10.16, v11.1).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = (
    *(ROOT / "export" / "engine" / name for name in ("builder.py", "progress.py")),
    *(
        ROOT / "runtime" / "backends" / "trt" / name
        for name in ("session.py", "context.py", "bindings.py", "load_errors.py")
    ),
)

NAMES = """
    __version__ __init__ __members__
    Builder build_serialized_network create_builder_config create_network create_optimization_profile
    add_optimization_profile builder_optimization_level clear_flag create_timing_cache hardware_compatibility_level
    progress_monitor set_flag set_memory_pool_limit set_timing_cache
    get_input get_layer get_output num_inputs num_layers num_outputs set_shape shape dtype name type
    OnnxParser parse_from_file num_errors get_error desc node_name node_operator
    profiling_verbosity ProfilingVerbosity DETAILED create_engine_inspector get_engine_information
    LayerInformationFormat JSON
    DEQUANTIZE IDENTITY SHUFFLE
    BuilderFlag TF32 VERSION_COMPATIBLE HardwareCompatibilityLevel LayerType MemoryPoolType WORKSPACE
    NetworkDefinitionCreationFlag IProgressMonitor ILogger IOutputAllocator serialize
    Runtime deserialize_cuda_engine num_io_tensors get_tensor_name get_tensor_mode get_tensor_format
    get_tensor_format_desc get_tensor_shape get_tensor_dtype get_tensor_location get_tensor_profile_shape
    num_optimization_profiles create_execution_context TensorIOMode INPUT TensorLocation HOST TensorFormat LINEAR
    set_optimization_profile_async set_input_shape infer_shapes set_tensor_address set_output_allocator
    execute_async_v3 get_plugin_registry load_library
"""
IN_ALL = set(NAMES.split())

ASKED_FOR_FIRST = {
    # TensorRT for RTX only: behind check_options, hasattr, or its flavour.
    "ComputeCapability", "num_compute_capabilities", "set_compute_capability",
    "engine_header_size", "get_engine_validity", "EngineInvalidityDiagnostics", "MALFORMED_ENGINE", "UNSUPPORTED_CC",
    "create_runtime_config", "create_runtime_cache", "set_runtime_cache", "deserialize",
}  # fmt: skip

GONE_IN_11 = {"EXPLICIT_BATCH", "FP16", "BF16", "INT8", "int8_calibrator", "IInt8EntropyCalibrator2"}

THEIRS = {
    "trt", "config", "flags", "builder", "definition", "parser", "error", "layer", "tensor", "profile", "cache",
    "engine", "runtime", "_engine", "_runtime", "_context", "_cache", "_config", "_trt",
}  # fmt: skip
"""Names of variables and attributes that hold objects of TensorRT."""
OURS = {"covers", "close", "run", "size", "best", "least", "most", "errors"}
"""Attributes of our own objects that are held by variables of those names too."""


def used_in(file: Path) -> set[str]:
    """The attributes that are asked of TensorRT's objects."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            holder = node.value
            name = holder.attr if isinstance(holder, ast.Attribute) else getattr(holder, "id", "")
            if name in THEIRS or (name[:1].isupper() and isinstance(holder, ast.Attribute)):
                found.add(node.attr)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_only_names_that_every_version_has_are_used(file: Path) -> None:
    used = used_in(file) - OURS
    assert not used - IN_ALL - ASKED_FOR_FIRST - {"items"}


def test_the_sources_are_looked_at() -> None:
    used = {name for file in FILES for name in used_in(file)}
    assert {"set_memory_pool_limit", "execute_async_v3", "deserialize_cuda_engine", "TF32", "WORKSPACE"} <= used
    assert not used & GONE_IN_11


def test_tensorrt_for_rtx_has_them_too() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    used = {name for file in FILES for name in used_in(file)} - OURS - {"items", "__members__"}
    kinds = [getattr(trt, name) for name in dir(trt) if not name.startswith("_")]
    missing = {name for name in used if not hasattr(trt, name) and not any(hasattr(kind, name) for kind in kinds)}
    assert not missing


def test_enumerations_are_not_written_as_numbers() -> None:
    """Their numbers differ between versions: 10.16 and 11 call different flags 26."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            function = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            if function in ("set_flag", "clear_flag", "get_flag", "set_memory_pool_limit"):
                assert isinstance(node, ast.Call)
                assert not isinstance(node.args[0], ast.Constant), f"{file.name}:{node.lineno}"
