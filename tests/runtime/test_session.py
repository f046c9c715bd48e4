"""Sessions: opening them, refused input, and the ONNX Runtime backend."""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from deploykit.errors import (
    ArtefactError,
    BackendError,
    DeployError,
    MissingDependencyError,
    NotFoundError,
    SpecError,
    UsageError,
    installing,
)
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.model_spec import session_spec
from deploykit.runtime.session import TensorInfo, open_session
from tests.cell_model import cell_spec, write_cell_model

IMAGES = np.zeros((1, 3, 64, 64), np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


def test_a_session_describes_and_runs_its_network(model: Path) -> None:
    with open_session(model) as session:
        assert session.inputs == (TensorInfo("images", (1, 3, 64, 64), "float32"),)
        assert session.outputs == (TensorInfo("output", (1, 64, 10), "float32"),)
        assert session.providers == ("CPUExecutionProvider",)
        assert session_spec(session, "cells") == cell_spec()
        output = session.run({"images": IMAGES + 1})["output"]
    assert output.shape == (1, 64, 10)
    assert (output[0, :, 4] == 1).all()


def test_a_dynamic_axis_is_none(tmp_path: Path) -> None:
    with open_session(write_cell_model(tmp_path / "d.onnx", batch="batch")) as session:
        assert session.inputs[0].shape == (None, 3, 64, 64)
        assert session.run({"images": np.zeros((5, 3, 64, 64), np.float32)})["output"].shape == (5, 64, 10)


def test_an_input_that_is_a_view_is_read_correctly(model: Path) -> None:
    turned = np.zeros((64, 64, 3, 1), np.float32).transpose(3, 2, 0, 1)
    turned[0, 0, :8, 56:] = 1
    with open_session(model, threads=1) as session:
        assert session.run({"images": turned})["output"][0, :, 5].nonzero()[0].tolist() == [7]


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({}, "inputs are images; got none"),
        ({"image": IMAGES}, "inputs are images; got image"),
        ({"images": IMAGES, "more": IMAGES}, "got images, more"),
        ({"images": IMAGES[:, :, :32]}, r"must be float32 \(1, 3, 64, 64\), got float32 \(1, 3, 32, 64\)"),
        ({"images": IMAGES[0]}, r"got float32 \(3, 64, 64\)"),
        ({"images": IMAGES.astype(np.float64)}, r"must be float32 .* got float64"),
    ],
)
def test_inputs_that_do_not_match_are_refused_and_the_error_states_both_sides(
    model: Path, feed: dict, words: str
) -> None:
    fake = FakeSession(lambda _: {}, spec=cell_spec())
    with open_session(model) as session:
        for one in (session, fake):
            with pytest.raises(BackendError, match=words):
                one.run(feed)


def test_a_closed_session_refuses_to_run(model: Path) -> None:
    session = open_session(model)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"images": IMAGES})


def test_missing_files_and_files_that_are_not_models_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean cells\.onnx"):
        open_session(tmp_path / "cell.onnx")
    with pytest.raises(NotFoundError, match="nowhere does not exist either"):
        open_session(tmp_path / "nowhere" / "cells.onnx")
    with pytest.raises(ArtefactError, match="is a folder"):
        open_session(tmp_path)
    (tmp_path / "cells.tflite").write_bytes(b"x")
    with pytest.raises(ArtefactError, match=r"ends in \.onnx, \.trt, \.engine or \.plan, but .* ends in \.tflite"):
        open_session(tmp_path / "cells.tflite")


@pytest.mark.parametrize("keep", [0, 10, 0.5], ids=["empty", "ten bytes", "half"])
def test_a_truncated_file_is_reported_as_incomplete(model: Path, keep: float) -> None:
    data = model.read_bytes()
    model.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(ArtefactError, match=r"cells\.onnx is not a complete ONNX file"):
        open_session(model)


def test_text_in_place_of_a_model_is_reported_as_incomplete(model: Path) -> None:
    model.write_text("<html>404 Not Found</html>")
    with pytest.raises(ArtefactError, match="not a complete ONNX file"):
        open_session(model)


def test_missing_or_truncated_external_weights_are_named(tmp_path: Path) -> None:
    path = write_cell_model(tmp_path / "big.onnx", external=True)
    open_session(path).close()
    data = tmp_path / "big.onnx.data"
    data.write_bytes(data.read_bytes()[:50])
    with pytest.raises(ArtefactError, match="truncated"):
        open_session(path)
    data.unlink()
    with pytest.raises(ArtefactError, match=r"big\.onnx\.data, which is not beside it"):
        open_session(path)


def test_an_operator_that_this_onnx_runtime_lacks_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Other", ["x"], ["y"], domain="elsewhere")
    values = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(tmp_path / "p.onnx"))
    with pytest.raises(BackendError, match="needs the operator elsewhere:Other"):
        open_session(tmp_path / "p.onnx")


def test_a_failure_inside_the_network_is_a_backend_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    values = [helper.make_tensor_value_info("x", 1, [4]), helper.make_tensor_value_info("shape", 7, [2])]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", 1, [None, None])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, str(tmp_path / "r.onnx"))
    with open_session(tmp_path / "r.onnx") as session, pytest.raises(BackendError, match="failed while running"):
        session.run({"x": np.zeros(4, np.float32), "shape": np.array([3, 3])})


def test_a_requested_provider_that_this_build_lacks_is_refused(model: Path) -> None:
    with pytest.raises(BackendError, match="no TensorrtExecutionProvider, only"):
        open_session(model, provider="TensorrtExecutionProvider")
    with pytest.raises(UsageError, match="'rubber'"):
        open_session(model, provider="rubber")
    assert open_session(model, provider="cpu").providers == ("CPUExecutionProvider",)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="a GPU would load here")
def test_a_silent_fallback_to_the_cpu_is_an_error_for_a_requested_gpu_and_a_note_otherwise(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A build with the CUDA provider on a machine that cannot load it: the provider is listed, but not in effect.
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider did not load.*CPUExecutionProvider is in effect"):
        open_session(model, provider="cuda")
    session = open_session(model)
    assert session.providers == ("CPUExecutionProvider",)
    assert "did not load" in session.notes[0]
    assert caplog.messages == [*session.notes]


def test_a_missing_onnx_runtime_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=re.escape(installing("cpu"))):
        open_session(model)


def test_unknown_backends_and_bad_thread_counts_are_usage_errors(model: Path) -> None:
    with pytest.raises(UsageError, match=r"must be auto or onnxruntime, got 'caffe'"):
        open_session(model, backend="caffe")
    with pytest.raises(UsageError, match="at least 1, got 0"):
        open_session(model, threads=0)
    assert open_session(model, backend="onnxruntime").notes == ()


def test_threads_are_as_requested_or_the_backends_choice(model: Path) -> None:
    assert [open_session(model, threads=threads).threads for threads in (None, 1, 2)] == [None, 1, 2]
    assert FakeSession(lambda _: {}, spec=cell_spec()).threads is None


def test_the_error_for_a_model_without_a_spec_says_how_to_pass_one(tmp_path: Path) -> None:
    with (
        open_session(write_cell_model(tmp_path / "bare.onnx")) as session,
        pytest.raises(SpecError, match="--spec FILE"),
    ):
        session_spec(session, "bare.onnx")


def test_a_fake_session_answers_with_its_function_until_it_is_closed() -> None:
    fake = FakeSession(lambda inputs: {"output": inputs["images"] * 2}, spec=cell_spec())
    assert session_spec(fake, "fake") == cell_spec()
    assert fake.run({"images": IMAGES + 1})["output"].max() == 2
    fake.close()
    with pytest.raises(BackendError, match="closed"):
        fake.run({"images": IMAGES})


@pytest.mark.parametrize("place", [b'{"classes"', b"images", b"deploykit"])
def test_a_flipped_bit_in_a_text_of_the_file_is_damage(model: Path, place: bytes) -> None:
    data = bytearray(model.read_bytes())
    data[data.rindex(place) + 4] |= 0x80
    model.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"cells\.onnx is damaged: its metadata .* copy it again") as found:
        open_session(model)
    assert found.value.exit_code == 50


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    (tmp_path / "null.onnx").symlink_to(os.devnull)
    for file in (pipe, tmp_path / "null.onnx"):
        with pytest.raises(ArtefactError, match=r"expected a model, but .*onnx is a pipe or a device"):
            open_session(file)


def test_what_is_damaged_is_an_error_of_the_tree_and_prints_nothing(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng, whole = random.Random(0), model.read_bytes()
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        model.write_bytes(data[: rng.choice((None, rng.randrange(len(data))))])
        try:
            with open_session(model) as session:
                session_spec(session, "cells")
        except DeployError:
            refused += 1
    assert refused > 100
    assert capfd.readouterr() == ("", "")
