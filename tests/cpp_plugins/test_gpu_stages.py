"""Letterbox, network, decode and NMS on one stream: the algorithm of the kernels on threads, and on a GPU itself."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deploykit.errors import BackendError, SpecError, UsageError
from deploykit.export.plugins_check import expected_outputs
from deploykit.facade import load
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends import ort, ort_cuda
from deploykit.runtime.backends.ort_cuda import CUDA, DeviceRuns
from deploykit.runtime.backends.ort_providers import CUDA_SETTINGS
from deploykit.runtime.backends.trt import session as trt
from deploykit.runtime.bench.benchmark import benchmark
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.native.cuda_library import CudaLibrary
from deploykit.runtime.native.library import FOLDER
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.predict.on_gpu import GpuPredictor, GpuStages, check_kernels, predictor_on_gpu
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.session import open_session
from deploykit.spec import AnchorHeads, Fit, ModelSpec, RawDetections, Thresholds
from tests import cpu_tensorrt
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model
from tests.cpu_cuda_ort import CudaSession
from tests.cpu_tensorrt import CpuGpu


@contextlib.contextmanager
def on_device(path: Path, library: CudaLibrary) -> Iterator[ort.OrtSession]:
    """A session whose runs are bound to memory of the library's device."""
    gpu = library._gpu
    if not isinstance(gpu, CpuGpu):
        if CUDA not in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has no CUDA")
        with ort.open_session(path, provider="cuda") as session:
            yield session
        return
    with ort.open_session(path, provider="cpu") as session:
        with gpu.current():
            stream = gpu.new_stream()
        session.runs = DeviceRuns(onnxruntime, session._session, gpu, stream, kind="cpu")
        yield session


def noise(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_all_stages_give_what_the_reference_gives(library: CudaLibrary, tmp_path: Path, half: bool, batch: int) -> None:
    """Images of the network's own size, on which the letterbox is exact."""
    spec, thresholds = cell_spec(), Thresholds(conf=0.3, max_det=20)
    path = write_cell_model(tmp_path / "cells.onnx", batch=batch, half=half)
    images = [noise(i, 64, 64) for i in range(batch)]
    images[0][8:16, 8:16] = 255
    boxes = [Letterbox.fit((64, 64), (64, 64), spec.input.fit) for _ in images]
    with on_device(path, library) as session:
        stages = GpuStages(session.runs, spec, thresholds, library)  # type: ignore[arg-type]
        found = stages(images, boxes)
        assert set(stages.stage_ms) == {"copy in", "letterbox", "network", "decode and NMS", "copy out"}
        feed = to_nchw(images, spec.input).astype(np.float16 if half else np.float32)
        rows = session.run({"images": feed})["output"]
        stages.close()
    expected = expected_outputs(rows, spec.output, thresholds, 1)  # type: ignore[arg-type]
    assert expected["num_dets"].min() > 0
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("fixed", [1, 4])
def test_a_predictor_finds_the_same_objects(library: CudaLibrary, tmp_path: Path, fixed: int) -> None:
    spec = cell_spec(batch=fixed)
    path = write_cell_model(tmp_path / "cells.onnx", batch=fixed, spec=spec)
    images = [
        planted((2, 3, RED)), planted((1, 1, BLUE), (5, 6, RED), scale=3), planted((0, 0, BLUE), scale=2, wide=2),
        planted(), planted((7, 7, RED), scale=5),
    ]  # fmt: skip
    with on_device(path, library) as session, load(path, device="cpu") as usual:
        predictor: Any = GpuPredictor(session, spec, library=library)
        for found, expected in zip(predictor(images), usual(images), strict=True):
            assert found.counts() == expected.counts()
            np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
            np.testing.assert_allclose(found.scores, expected.scores, atol=1.01 / 255)
            np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=1e-4)
            assert set(found.timings) == set(expected.timings)
        predictor.stages.close()


def test_an_engine_takes_them_too(library: CudaLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stages around TensorRT's stand-in: one copy in, one out, and the network as a graph."""
    gpu = library._gpu
    if not isinstance(gpu, CpuGpu):
        pytest.skip("the stand-ins replace a GPU")
    monkeypatch.setattr(trt, "open_gpu", lambda index=0: gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", cpu_tensorrt)
    monkeypatch.setattr(trt, "installed", lambda: ("tensorrt",))
    onnx_file, copies = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec()), []
    image = planted((1, 1, BLUE), (5, 6, RED), scale=3)
    engine = cpu_tensorrt.write_engine(tmp_path / "cells.trt", onnx_file)
    with open_session(engine) as session, load(onnx_file, device="cpu") as usual:
        predictor: Any = GpuPredictor(session, cell_spec(), library=library)
        for name in ("to_device", "to_host"):
            copy = getattr(gpu, name)
            monkeypatch.setattr(gpu, name, lambda *given, n=name, c=copy: (copies.append(n), c(*given)))
        launches = gpu.launches
        for _ in range(3):
            found, expected = predictor(image), usual(image)
            assert found.counts() == expected.counts() == {"red": 1, "blue": 1}
            np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
        assert copies == ["to_device", "to_host"] * 3
        assert gpu.launches == launches + 3
        predictor.close()


def test_a_stricter_threshold_reaches_the_kernels(library: CudaLibrary, tmp_path: Path) -> None:
    path = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    image = planted((2, 3, RED), (4, 4, (0, 0, 150)))
    with on_device(path, library) as session:
        for conf, count in ((0.25, 2), (0.7, 1)):
            predictor: Any = GpuPredictor(session, None, PredictOptions(conf=conf), library=library)
            assert len(predictor(image).boxes) == count
            predictor.stages.close()


def test_one_batch_is_one_copy_in_and_one_small_copy_out(
    library: CudaLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copies = write_cell_model(tmp_path / "cells.onnx", batch="batch", spec=cell_spec(batch=3, dynamic=True)), []
    originals = {name: getattr(library._gpu, name) for name in ("to_device", "to_host")}

    def watch(name: str) -> None:
        def copy(*given: Any) -> None:
            copies.append((name, next(each for each in given if isinstance(each, np.ndarray)).nbytes))
            originals[name](*given)

        monkeypatch.setattr(library._gpu, name, copy)

    watch("to_device")
    watch("to_host")
    with on_device(path, library) as session:
        predictor: Any = GpuPredictor(session, None, PredictOptions(max_det=10), library=library)
        copies.clear()
        predictor([noise(i, 100 + i, 120) for i in range(3)])
        predictor.stages.close()
    (up, sent), (down, fetched) = copies
    assert (up, down) == ("to_device", "to_host")
    assert 0 <= sent - sum(3 * (100 + i) * 120 for i in range(3)) < 3 * 256
    assert fetched < 3 * 10 * (16 + 4 + 4 + 12) + 6 * 256


def test_threads_copy_at_the_same_time_and_get_their_own_objects(library: CudaLibrary, tmp_path: Path) -> None:
    path = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    images = [
        planted((column, row, RED), scale=scale) for scale in (1, 2, 4) for column, row in ((1, 2), (6, 3), (0, 7))
    ]
    with on_device(path, library) as session:
        predictor: Any = GpuPredictor(session, None, library=library)
        alone = [predictor(image).boxes for image in images]
        with ThreadPoolExecutor(4) as threads:
            for found, expected in zip(threads.map(predictor, images * 5), alone * 5, strict=True):
                np.testing.assert_array_equal(found.boxes, expected)
        predictor.stages.close()
        streamed: Any = GpuPredictor(session, None, PredictOptions(workers=2), library=library)
        for found, expected in zip(streamed.stream(images * 3), alone * 3, strict=True):
            np.testing.assert_array_equal(found.boxes, expected)
        streamed.stages.close()


def write_heads(path: Path, channels: int, batch: int) -> Path:
    """A network that gives two levels of raw maps: 1x1 convolutions of the pooled image with fixed weights."""
    rng, nodes, weights, outputs = np.random.default_rng(0), [], [], []
    for name, stride in (("fine", 8), ("coarse", 16)):
        weights.append(
            onnx.numpy_helper.from_array(rng.normal(0, 3, (channels, 3, 1, 1)).astype(np.float32), f"w_{name}")
        )
        sides = [stride, stride]
        nodes.append(helper.make_node("AveragePool", ["images"], [f"p_{name}"], kernel_shape=sides, strides=sides))
        nodes.append(helper.make_node("Conv", [f"p_{name}", f"w_{name}"], [name]))
        shape = [batch, channels, 64 // stride, 64 // stride]
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 64, 64])
    graph = helper.make_graph(nodes, "heads", [image], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


def test_raw_maps_of_anchors_are_decoded_on_the_device(library: CudaLibrary, tmp_path: Path) -> None:
    output = AnchorHeads(
        outputs=("fine", "coarse"), strides=(8, 16), anchors=((4, 5, 8, 10), (16, 12, 30, 33)), num_columns=7
    )
    spec = replace(cell_spec(), task="detect", output=output, keypoints=None)
    path = write_heads(tmp_path / "heads.onnx", 2 * 7, 1)
    with on_device(path, library) as session:
        usual, predictor = Predictor[Any](session, spec), GpuPredictor[Any](session, spec, library=library)
        found, expected = predictor(noise(3, 64, 64)), usual(noise(3, 64, 64))
        assert len(expected.boxes) > 5
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_array_equal(found.labels, expected.labels)
        predictor.stages.close()


def test_what_the_kernels_do_not_do_is_refused_and_stays_on_the_cpu(
    library: CudaLibrary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = cell_spec()

    def changed(**fit: Any) -> ModelSpec:
        return replace(spec, input=replace(spec.input, fit=Fit(**fit)))

    for wrong, words in (
        (changed(shrink="area"), "by areas"),
        (changed(resample="bilinear"), "as Pillow does"),
        (changed(pad_colour=(1, 2, 3)), "border has a colour"),
        (replace(spec, output=RawDetections(cls=(5, 7), keypoints=(7, 10), columns_first=True)), "neither rows of"),
    ):
        with pytest.raises(UsageError, match=words):
            check_kernels(wrong, Thresholds())
    with pytest.raises(UsageError, match="more than 3840 candidates"):
        check_kernels(spec, Thresholds(pre_nms_topk=4000))
    path = write_cell_model(tmp_path / "cells.onnx", spec=spec)
    with open_session(path, provider="cpu") as session:
        predictor = predictor_on_gpu(session, spec, PredictOptions())
        assert type(predictor) is Predictor
        assert (
            "letterbox and NMS stay on the CPU: its session is not of ONNX Runtime or TensorRT on an NVIDIA GPU"
            in caplog.text
        )
    with on_device(path, library) as session, pytest.raises(UsageError, match="one label each"):
        GpuPredictor(session, spec, PredictOptions(multi_label=True), library=library)


def test_an_output_that_is_not_what_the_spec_says_is_refused(library: CudaLibrary, tmp_path: Path) -> None:
    path, spec = write_cell_model(tmp_path / "cells.onnx"), cell_spec()
    wrong = replace(spec, task="detect", keypoints=None, output=RawDetections(cls=(5, 30)), classes=())
    with on_device(path, library) as session:
        with pytest.raises(SpecError):
            GpuPredictor(session, wrong, library=library)
        stages = GpuStages(session.runs, wrong, Thresholds(), library)  # type: ignore[arg-type]
        with pytest.raises(BackendError, match=r"the rows must be \(1, \?, 30\) as in the spec, got \(1, 64, 10\)"):
            stages([planted()], [Letterbox.fit((64, 64), (64, 64), Fit())])
        stages.close()


def test_the_environment_asks_for_it(library: CudaLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``deploykit.load`` and the command line do, on the stand-ins for ONNX Runtime's CUDA and for the GPU."""
    if not isinstance(library._gpu, CpuGpu):
        pytest.skip("the stand-ins replace a GPU")
    shutil.copy(str(library._library._name), tmp_path / "libdeploykit_cuda.so")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(ort_cuda, "open_gpu", lambda index=0: library._gpu)
    monkeypatch.setattr(onnxruntime, "InferenceSession", CudaSession)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    path = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    for words, kind in (("stages", GpuPredictor), ("no-stages", Predictor)):
        monkeypatch.setenv(CUDA_SETTINGS, words)
        with load(path, device="cuda") as predictor:
            assert type(predictor) is kind
            result: Any = predictor(planted((2, 3, RED)))
            assert result.counts() == {"red": 1}


def test_a_benchmark_does_not_measure_stages_that_it_cannot_tell_apart(library: CudaLibrary, tmp_path: Path) -> None:
    path = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    with on_device(path, library) as session:
        made: Any = GpuPredictor(session, None, library=library)
        with pytest.raises(UsageError, match="leave the word stages out of DEPLOYKIT_CUDA"):
            benchmark(lambda: made, duration=0.1, warmup=0)
