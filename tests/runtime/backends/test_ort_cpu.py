"""Memory and threads of a network on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import ArtefactError, BackendError, UsageError
from deploykit.runtime.backends import ort_cpu
from deploykit.runtime.backends.ort import OrtSession
from deploykit.runtime.session import open_session

MIB = 1 << 20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from Linux's /proc")
CHANNELS = 512


def write_network(path: Path, *, layers: int = 2, constant: bool = False, wide: bool = False) -> Path:
    """Write convolutions of 9 MiB each.

    ``constant``: followed by a tensor as large, which is used as it is. ``wide``: by activations of 32 MiB.
    """
    chance = np.random.default_rng(0)
    shape = (CHANNELS, CHANNELS, 3, 3)
    weights = [chance.normal(0, 0.02, shape).astype(np.float32) for _ in range(layers)]
    nodes = [
        helper.make_node("Conv", [f"x{n}", f"w{n}"], [f"x{n + 1}"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
        for n in range(layers)
    ]
    tensors = [numpy_helper.from_array(value, f"w{n}") for n, value in enumerate(weights)]
    last = f"x{layers}"
    if constant:
        tensors.append(numpy_helper.from_array(chance.random((64, CHANNELS, 8, 8), np.float32), "constant"))
        nodes += [
            helper.make_node("ReduceMean", [last], ["mean"], keepdims=1),
            helper.make_node("Add", ["mean", "constant"], ["y"]),
        ]
        last = "y"
    if wide:
        tensors.append(numpy_helper.from_array(np.array([1, 1, 32, 32], np.int64), "times"))
        nodes += [
            helper.make_node("Tile", [last, "times"], ["tiled"]),
            helper.make_node("Sin", ["tiled"], ["sine"]),
            helper.make_node("Add", ["tiled", "sine"], ["y"]),
        ]
        last = "y"
    x = helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, CHANNELS, 4, 4])
    y = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "large", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def image() -> dict[str, Any]:
    return {"x0": np.random.default_rng(1).random((1, CHANNELS, 4, 4), np.float32)}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("network") / "large.onnx")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Whether each load of ONNX Runtime was that of a path or of bytes."""
    seen: list[type] = []
    original: Callable[..., Any] = onnxruntime.InferenceSession

    def load(model: str | bytes, *rest: Any, **named: Any) -> Any:
        seen.append(type(model))
        return original(model, *rest, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", load)
    return seen


def plain(path: Path) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return list(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, image()))


def outputs(path: Path) -> list[Any]:
    with open_session(path, device="cpu", threads=1) as session:
        return list(session.run(image()).values())


@LINUX
def test_mapped_weights_compute_the_same_bits_and_are_not_mapped_afterwards(network: Path, loads: list[type]) -> None:
    with open_session(network, device="cpu", threads=1) as session:
        assert loads == [bytes]
        assert str(network) not in Path("/proc/self/maps").read_text()
        found = list(session.run(image()).values())
    np.testing.assert_array_equal(found, plain(network))


@LINUX
def test_a_link_is_followed(network: Path, tmp_path: Path, loads: list[type]) -> None:
    (tmp_path / "link.onnx").symlink_to(network)
    found = outputs(tmp_path / "link.onnx")
    assert loads == [bytes]
    np.testing.assert_array_equal(found, plain(network))


@LINUX
def test_a_file_that_would_stay_mapped_is_read(tmp_path: Path, loads: list[type]) -> None:
    path = write_network(tmp_path / "added.onnx", constant=True)
    with open_session(path, device="cpu", threads=1) as session:
        assert loads == [bytes, str]
        assert str(path) not in Path("/proc/self/maps").read_text()
        path.write_bytes(b"")  # as cp over the file does; the session has its weights
        session.run(image())


@LINUX
def test_a_file_that_is_replaced_meanwhile_is_read_anew(
    network: Path, tmp_path: Path, loads: list[type], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(network.read_bytes())
    original = ort_cpu.graph_without_weights

    def slow(file: Path) -> bytes | None:
        graph = original(file)
        write_network(tmp_path / "new.onnx", layers=3).replace(path)
        return graph

    monkeypatch.setattr(ort_cpu, "graph_without_weights", slow)
    found = outputs(path)
    assert loads[-1] is str
    np.testing.assert_array_equal(found, plain(path))


def test_a_large_file_that_is_cut_is_reported_as_incomplete(network: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(network.read_bytes()[:-5000])
    with pytest.raises(ArtefactError, match="not a complete ONNX file"):
        open_session(tmp_path / "cut.onnx")


MEASURE = """
import json, sys
import numpy, onnxruntime
from deploykit.runtime import machine
from deploykit.runtime.session import open_session
def held():
    return machine.resident_memory()
image = {"x0": numpy.zeros((1, 512, 4, 4), numpy.float32)}
with open_session(sys.argv[2], threads=1) as warm:  # what a first session brings for good
    warm.run(image)
base, found = held(), {}
resets = machine.reset_peak_memory()
first = open_session(sys.argv[1], threads=1)
found["peak"] = machine.peak_memory() - base if resets else None
found["loaded"] = held() - base
first.run(image)
found["one image"] = held() - base
for _ in range(3):
    first.run(image)
found["four images"] = held() - base
second = open_session(sys.argv[1], threads=1)
found["two sessions"] = held() - base
first.close()
found["one closed"] = held() - base
second.close()
found["both closed"] = held() - base
print(json.dumps(found))
"""


def measured(path: Path, small: Path, **environment: str) -> dict[str, float]:
    """Bytes that a fresh process holds for a network, in sizes of its file."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(small)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    size = path.stat().st_size
    return {name: value / size for name, value in json.loads(done.stdout).items() if value is not None}


@LINUX
def test_a_network_holds_its_size_and_gives_it_back(network: Path, tmp_path: Path) -> None:
    path = write_network(tmp_path / "six.onnx", layers=6, wide=True)  # 54 MiB, and 32 MiB for each activation
    found, low = measured(path, network), measured(path, network, DEPLOYKIT_LOW_MEMORY="1")
    assert found["loaded"] < 1.3
    assert found.get("peak", 0) < 2.4  # the file and the weights in another layout
    assert found["four images"] < found["one image"] + 0.1
    assert found["two sessions"] - found["four images"] < 1.3
    assert found["two sessions"] - found["one closed"] > 0.9
    assert found["both closed"] < 0.2
    activations = found["four images"] - found["loaded"]
    assert activations > 0.5
    assert low["four images"] - low["loaded"] < 0.1
    assert low["both closed"] < 0.2


@pytest.mark.parametrize("low", ["0", "1"])
def test_low_memory_computes_the_same(network: Path, low: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYKIT_LOW_MEMORY", low)
    with open_session(network, device="cpu", threads=1) as session:
        for _ in range(2):
            np.testing.assert_array_equal(list(session.run(image()).values()), plain(network))


def test_low_memory_is_0_or_1(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYKIT_LOW_MEMORY", "yes")
    with pytest.raises(UsageError, match="DEPLOYKIT_LOW_MEMORY must be 0 or 1, got 'yes'"):
        open_session(network)


def test_threads_look_for_work_for_a_moment_only(network: Path) -> None:
    with open_session(network, device="cpu", threads=2) as session:
        assert isinstance(session, OrtSession)
        options = session._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "200"


AFFINITY = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from deploykit.runtime.session import open_session
import numpy, onnxruntime
before = len(os.listdir("/proc/self/task"))
with open_session(sys.argv[1]) as session:
    session.run({"x0": numpy.zeros((1, 512, 4, 4), numpy.float32)})
    print(session.threads, len(os.listdir("/proc/self/task")) - before, session.threads_from)
"""


@LINUX
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a second core that can be forbidden")
def test_taskset_is_obeyed(network: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DEPLOYKIT_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", AFFINITY, str(network)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"1 0 1 of {os.cpu_count()} cores are allowed to this process"


def test_an_operator_newer_than_onnx_runtimes_is_named_with_its_opset(tmp_path: Path) -> None:
    node = helper.make_node("RoiAlign", ["x", "rois", "batch"], ["y"])
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 4, 4)),
        helper.make_tensor_value_info("rois", TensorProto.FLOAT, (1, 4)),
        helper.make_tensor_value_info("batch", TensorProto.INT64, (1,)),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 1, 1, 1))]
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 22)], ir_version=10
    )
    onnx.save(model, tmp_path / "m.onnx")
    try:
        onnxruntime.InferenceSession(model.SerializeToString())
    except Exception:
        with pytest.raises(BackendError, match=r"If its RoiAlign is float32, export with an --opset below 22"):
            open_session(tmp_path / "m.onnx")
    else:
        pytest.skip("this ONNX Runtime has RoiAlign of opset 22")
