"""ONNX Runtime's WebGPU provider: on a Vulkan driver for the CPU where there is one, and what needs no device."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import ArtefactError, BackendError
from deploykit.runtime.backends import ort, ort_providers
from deploykit.runtime.backends.onnx_weights import Convolution, convolutions
from deploykit.runtime.backends.ort_webgpu import NO_ADAPTER, WEBGPU, layout_for, turn_of
from deploykit.runtime.session import TensorInfo
from tests.cell_model import write_cell_model
from tests.forked import forked
from tests.software_vulkan import run_with_device, why_not

CHECKS = Path(__file__).with_name("webgpu_checks.py")


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_networks_run_on_a_vulkan_driver_for_the_cpu(tmp_path: Path, root: Path) -> None:
    options = ["-q", "--import-mode=importlib", "-p", "no:cacheprovider", f"--rootdir={root}"]
    done = run_with_device(["-m", "pytest", *options, str(CHECKS)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed in", done.stdout.splitlines()[-1]), done.stdout  # and nothing is skipped


def write_convolutions(
    path: Path, shapes: list[tuple[int, ...]], *, quantized: bool = False, **attributes: Any
) -> Path:
    """Convolutions of one input each, with weights of these shapes."""
    nodes, inputs, weights = [], [], []
    for i, shape in enumerate(shapes):
        name = f"w{i}"
        values = np.ones(shape, np.int8 if quantized else np.float32)
        weights.append(numpy_helper.from_array(values, f"q{i}" if quantized else name))
        if quantized:
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", "scale"], [name]))
        nodes.append(helper.make_node("Conv", [f"x{i}", name], [f"y{i}"], **attributes))
        sides: list[Any] = ["batch", shape[1], *(side + 2 for side in shape[2:])]
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, sides))
    weights.append(numpy_helper.from_array(np.float32(1), "scale"))
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(len(shapes))]
    graph = helper.make_graph(nodes, "convolutions", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


SHAPES = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200), st.integers(1, 3), st.integers(1, 3)), max_size=5)


@settings(max_examples=30)
@given(shapes=SHAPES, quantized=st.booleans())
def test_the_weights_of_convolutions_are_found(
    shapes: list[tuple[int, ...]], quantized: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("c") / "c.onnx"
    found = convolutions(write_convolutions(path, shapes, quantized=quantized))
    assert found == [Convolution(shape, False) for shape in shapes]
    for attributes in ({"strides": [1, 2]}, {"pads": [0, 0, 1, 0]}):
        write_convolutions(path, shapes, quantized=quantized, **attributes)
        assert convolutions(path) == [Convolution(shape, True) for shape in shapes]
    write_convolutions(path, shapes, quantized=quantized, strides=[1, 1], pads=[0] * 4, dilations=[2, 2])
    assert convolutions(path) == found


def test_a_file_that_is_no_network_has_no_weights(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(ArtefactError, match="expected an ONNX file"):
        convolutions(tmp_path / "x.onnx")
    assert layout_for(WEBGPU, tmp_path / "x.onnx") == ({}, "")


@pytest.mark.parametrize(
    ("shape", "wrong"),
    [
        ((8, 6, 3, 3), True), ((64, 18, 1, 3), True), ((4, 9, 3, 3), True),
        ((8, 3, 3, 3), False), ((8, 12, 3, 3), False), ((6, 6, 3, 3), False), ((8, 6, 1, 1), False),
        ((8, 5, 3, 3), False),
    ],
)  # fmt: skip
def test_what_webgpu_gets_wrong_is_computed_with_channels_first(
    tmp_path: Path, shape: tuple[int, ...], wrong: bool
) -> None:
    file = write_convolutions(tmp_path / "c.onnx", [(16, 8, 3, 3), shape])
    options, note = layout_for(WEBGPU, file)
    assert (options == {"preferredLayout": "NCHW"}) is (f"convolutions of {shape[1]} input channels" in note) is wrong
    assert layout_for("CPUExecutionProvider", file) == ({}, "")


def test_a_kernel_of_one_pixel_is_wrong_with_a_stride(tmp_path: Path) -> None:
    file = write_convolutions(tmp_path / "c.onnx", [(8, 6, 1, 1)], strides=[2, 2])
    assert layout_for(WEBGPU, file)[0] == {"preferredLayout": "NCHW"}


def test_a_plugin_that_is_registered_stays_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime lists it among the available providers from then on, and does not load it by that name."""
    monkeypatch.setattr(ort_providers, "_registered", set())
    registered: list[str] = []
    module = SimpleNamespace(get_ep_name=lambda: WEBGPU, get_library_path=lambda: "/somewhere/lib.so")
    monkeypatch.setattr(ort_providers, "import_module", lambda name: module)
    runtime = SimpleNamespace(
        register_execution_provider_library=lambda name, path: registered.append(name),
        get_available_providers=lambda: ["CPUExecutionProvider", *registered],
        get_ep_devices=lambda: [SimpleNamespace(ep_name=WEBGPU)],
    )
    for _ in range(3):
        chosen = ort_providers.plugin_for(runtime, "webgpu")
        assert chosen is not None
        assert chosen[0] == WEBGPU
    assert registered == [WEBGPU]
    assert ort_providers.own_providers(runtime) == ["CPUExecutionProvider"]


def test_a_machine_whose_gpu_has_no_driver_is_told_what_it_needs(tmp_path: Path) -> None:
    said = f"/src/plugin.cc:71 Error creating execution provider: x.cc:136 {NO_ADAPTER}: No supported adapters"
    error = ort._load_error(write_cell_model(tmp_path / "c.onnx"), RuntimeError(said))
    assert isinstance(error, BackendError)
    assert str(error) == (
        "WebGPU finds no driver that it can use for the GPU of this machine: it needs a GPU with a driver for Vulkan "
        "(and libvulkan.so.1), Direct3D 12 or Metal"
    )


class Network:
    """What is used of ONNX Runtime's session; notes how many runs and closings of all of them happen at once."""

    inside, most = 0, 0

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", shape=[1], type="tensor(float)")]

    get_outputs = get_inputs

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map={})

    def get_providers(self) -> list[str]:
        return [self.provider, "CPUExecutionProvider"]

    def __init__(self, provider: str) -> None:
        self.provider = provider

    def run(self, names: None, feed: dict[str, Any], options: Any) -> list[Any]:
        Network.inside += 1
        Network.most = max(Network.most, Network.inside)
        time.sleep(0.02)
        Network.inside -= 1
        return [feed["x"]]

    def __del__(self) -> None:
        Network.most = max(Network.most, Network.inside + 1)


def run_two(provider: str) -> int:
    """The most runs, and ends of sessions, that were on their way at once in two sessions of a provider."""
    Network.most = 0
    sessions = [ort.OrtSession(Path("x.onnx"), Network(provider), provider, requested=True) for _ in "ab"]
    assert sessions[0].inputs == (TensorInfo("x", (1,), "float32"),)

    def work(session: ort.OrtSession) -> None:
        for _ in range(3):
            session.run({"x": np.zeros(1, np.float32)})
        session.close()

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(BackendError, match="closed"):
        sessions[0].run({"x": np.zeros(1, np.float32)})
    return Network.most


def test_one_session_of_webgpu_runs_or_ends_at_a_time() -> None:
    """Two threads that run two of them end the process; those of other providers do not wait."""
    assert run_two(WEBGPU) == 1
    assert run_two("SomeExecutionProvider") == 2


def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with turn_of(WEBGPU):
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)

    def work() -> None:
        with turn_of(WEBGPU):
            pass

    try:
        forked(work)
    finally:
        done.set()
        thread.join()
