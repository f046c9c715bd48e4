"""Networks on ONNX Runtime's WebGPU provider against its CPU provider, where there is a device.

Run by test_webgpu.py on a Vulkan driver for the CPU. On a machine with a GPU and a driver, run it as it is:

    python -m pytest --import-mode=importlib tests/runtime/backends/webgpu_checks.py
"""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.cli import main
from deploykit.errors import BackendError
from deploykit.export.parity.compare import Given, prepared
from deploykit.facade import load
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.ort_webgpu import WEBGPU
from deploykit.runtime.session import open_session
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape, np.float32)


def write_network(path: Path, channels: tuple[int, ...], seed: int = 0) -> Path:
    """Convolutions of 3 x 3 with these numbers of channels, a sigmoid and attention over places, of any size."""
    rng, nodes, weights, last = np.random.default_rng(seed), [], [], "images"
    for i, (inputs, outputs) in enumerate(pairwise(channels)):
        values = rng.normal(0, 1 / (3 * inputs**0.5), (outputs, inputs, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Sigmoid", [f"c{i}"], [f"s{i}"]))
        nodes.append(helper.make_node("Mul", [f"c{i}", f"s{i}"], [f"a{i}"]))
        last = f"a{i}"
    weights.append(numpy_helper.from_array(np.array([0, channels[-1], -1], np.int64), "rows"))
    nodes += [
        helper.make_node("Reshape", [last, "rows"], ["values"]),
        helper.make_node("Transpose", ["values"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["keys", "values"], ["products"]),
        helper.make_node("Softmax", ["products"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "keys"], ["output"]),
    ]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", channels[0], "height", "width"])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "places", channels[-1]])
    graph = helper.make_graph(nodes, "network", [image], [output], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


def write_convolution(path: Path, inputs: int, kernel: int, stride: int) -> Path:
    """One convolution to eight channels."""
    values = np.random.default_rng(0).normal(0, 1, (8, inputs, kernel, kernel)).astype(np.float32)
    node = helper.make_node("Conv", ["images", "w"], ["output"], pads=[kernel // 2] * 4, strides=[stride] * 2)
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, inputs, 10, 10])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "convolution", [image], [output], [numpy_helper.from_array(values, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("inputs", [3, 4, 6, 15])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_one_convolution_gives_what_it_gives_on_the_cpu(tmp_path: Path, inputs: int, kernel: int, stride: int) -> None:
    path = write_convolution(tmp_path / "c.onnx", inputs, kernel, stride)
    images = {"images": noise(1, inputs, 10, 10)}
    with open_session(path, provider="cpu") as cpu, open_session(path, provider="webgpu") as session:
        found, expected = (each.run(images)["output"] for each in (session, cpu))
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("channels", [(3, 8, 16), (3, 6, 8), (9, 12, 12)])
def test_values_are_those_of_the_cpu_for_every_shape(tmp_path: Path, channels: tuple[int, ...]) -> None:
    """With 6 and 9 input channels too, which the provider gets wrong in the layout that it prefers."""
    path = write_network(tmp_path / "network.onnx", channels)
    with open_session(path, provider="cpu") as cpu, open_session(path, provider="webgpu") as session:
        assert session.providers[0] == WEBGPU
        assert any("channels first" in note for note in session.notes) is bool({6, 9} & set(channels))
        for shape in ((1, 8, 8), (2, 8, 8), (1, 12, 6), (1, 8, 8)):
            images = noise(shape[0], channels[0], *shape[1:])
            found, expected = (each.run({"images": images})["output"] for each in (session, cpu))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_layout_that_is_avoided_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails once the provider is mended; then :func:`layout_for` is no longer needed."""
    path = write_network(tmp_path / "network.onnx", (3, 6, 8))
    monkeypatch.setattr("deploykit.runtime.backends.ort.layout_for", lambda provider, file: ({}, ""))
    images = {"images": noise(1, 3, 8, 8)}
    with open_session(path, provider="cpu") as cpu, open_session(path, provider="webgpu") as session:
        assert np.abs(session.run(images)["output"] - cpu.run(images)["output"]).max() > 0.01


def test_binding_gives_the_same_values(tmp_path: Path) -> None:
    path = write_network(tmp_path / "network.onnx", (3, 8))
    with open_session(path, provider="webgpu") as session:
        raw, images = session._session, noise(1, 3, 8, 8)  # type: ignore[attr-defined]  # ONNX Runtime's own
        binding = raw.io_binding()
        binding.bind_cpu_input("images", images)
        binding.bind_output("output", "webgpu")
        raw.run_with_iobinding(binding)
        np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], session.run({"images": images})["output"])


def test_predictions_are_those_of_the_cpu_in_batches_and_with_workers(tmp_path: Path) -> None:
    path = write_cell_model(tmp_path / "cells.onnx", batch="batch", spec=cell_spec(batch=2, dynamic=True))
    images = [planted((2, 3, RED)), planted((1, 1, BLUE), (5, 6, RED), scale=3), planted((0, 0, BLUE), scale=2)] * 2
    with load(path, device="webgpu", workers=2) as found, load(path, device="cpu") as expected:
        assert found.session.providers[0] == WEBGPU
        ours: Any
        theirs: Any
        for ours, theirs in zip(found.stream(images), expected.stream(images), strict=True):
            assert ours.counts() == theirs.counts()
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)


def test_the_command_compares_it_with_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    with prepared(path, write_cell_model(tmp_path / "same.onnx", spec=cell_spec()), Given()) as pair:
        pair.expected.save(tmp_path / "known.npz")  # by the CPU
    assert main(["verify", str(tmp_path / "known.npz"), str(path), "--device", "webgpu", "--quiet"]) == 0
    assert "is verified against" in capsys.readouterr().out


def test_several_sessions_in_several_threads_give_what_each_gives_alone(tmp_path: Path) -> None:
    paths = [write_network(tmp_path / f"{i}.onnx", (3, width), seed=i) for i, width in enumerate((8, 12))]
    sessions = [open_session(path, provider="webgpu") for path in paths]
    images = [noise(1, 3, 8, 8, seed=i) for i in range(3)]
    alone = [[session.run({"images": image})["output"] for image in images] for session in sessions]
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(12):
            which = turn % len(images)
            found = sessions[number].run({"images": images[which]})["output"]
            if not np.array_equal(found, alone[number][which]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    with open_session(paths[0], provider="webgpu") as another:  # opened and closed meanwhile
        np.testing.assert_array_equal(another.run({"images": images[0]})["output"], alone[0][0])
    for thread in threads:
        thread.join()
    for session in sessions:
        session.close()
    assert not wrong


def test_a_closed_session_does_not_run_and_the_file_opens_again(tmp_path: Path) -> None:
    path, images = write_network(tmp_path / "network.onnx", (3, 8)), {"images": noise(1, 3, 8, 8)}
    outputs = []
    for _ in range(2):
        session = open_session(path, provider="webgpu")
        outputs.append(session.run(images)["output"])
        session.close()
        session.close()
        with pytest.raises(BackendError, match="closed"):
            session.run(images)
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_float16_runs_or_says_that_the_device_has_none(tmp_path: Path) -> None:
    path = write_cell_model(tmp_path / "cells.onnx", half=True)
    images = {"images": noise(1, 3, 64, 64).astype(np.float16)}
    with open_session(path, provider="cpu") as cpu, open_session(path, provider="webgpu") as session:
        try:
            found, said = session.run(images)["output"], ""
        except BackendError as e:
            found, said = None, str(e)
        if found is None:
            assert "requires f16 but the device does not support it" in said
        else:
            np.testing.assert_allclose(found, cpu.run(images)["output"], atol=1e-2)


def test_the_default_device_stays_the_cpu(tmp_path: Path) -> None:
    path = write_network(tmp_path / "network.onnx", (3, 8))
    with open_session(path, provider="webgpu") as session:
        assert session.providers[0] == WEBGPU
    assert WEBGPU in onnxruntime.get_available_providers()
    with open_session(path) as session:
        assert session.providers == ("CPUExecutionProvider",)
