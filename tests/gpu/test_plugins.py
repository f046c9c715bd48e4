"""The plugins NmsKpt and DecodeRows in TensorRT engines on a GPU, against the numpy reference."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploykit.export.plugins_check import HEAD, decode_rows_model, decoded_rows, expected_outputs, nms_kpt_model
from deploykit.facade import open_session
from deploykit.runtime.backends.trt.bindings import BuildLog, load_flavour, logger
from deploykit.runtime.cuda import open_gpu
from deploykit.runtime.native.build import build_libraries
from deploykit.runtime.native.library import FOLDER
from deploykit.spec import RawDetections, Thresholds

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

LAYOUT = RawDetections(cls=(5, 7), keypoints=(7, 22))
THRESHOLDS = Thresholds(conf=0.2, iou=0.4, max_det=100)
POINTS = 5


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The plugin's library, in use."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc: the plugin runs CUDA kernels")
    major, minor = open_gpu().compute_capability
    folder = tmp_path_factory.mktemp("plugin")
    report = build_libraries(folder, only=["tensorrt"], architectures=[10 * major + minor])
    if "tensorrt" not in report.built:
        pytest.skip(report.said["tensorrt"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        yield folder


def build(model: bytes, shapes: dict[str, tuple[tuple[int, ...], ...]], file: Path) -> None:
    """An engine of an ONNX file whose inputs have these smallest, usual and largest shapes."""
    trt, log = load_flavour("tensorrt"), BuildLog()
    sink = logger(trt, log)
    builder = trt.Builder(sink)
    flags = 0
    if "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, sink)
    assert parser.parse(model), log.text()
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, three in shapes.items():
        profile.set_shape(name, *three)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, log.text()
    file.write_bytes(bytes(engine))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nms_gives_what_the_reference_says(plugin: Path, dtype: type, tmp_path: Path) -> None:
    file = tmp_path / "nms.trt"
    shapes = tuple((batch, count, LAYOUT.columns) for batch, count in ((1, 1), (2, 8400), (8, 57375)))
    build(nms_kpt_model(dtype, LAYOUT, THRESHOLDS, POINTS), {"rows": shapes}, file)
    rng = np.random.default_rng(0)
    with open_session(file, provider="tensorrt") as session:
        for batch, count in ((1, 1), (1, 300), (8, 8400), (2, 57375), (3, 17)):
            rows = rng.random((batch, count, LAYOUT.columns), np.float32)
            rows[..., :4] *= (600, 600, 60, 60)
            rows[..., 4:7] = np.round(rows[..., 4:7], 2)
            rows[rng.random((batch, count)) < 0.01] = np.nan
            rows = rows.astype(dtype)
            found = session.run({"rows": rows})
            for name, values in expected_outputs(rows, LAYOUT, THRESHOLDS, POINTS).items():
                np.testing.assert_array_equal(found[name], values, err_msg=f"{name} of {batch} x {count}")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_are_decoded_as_the_reference_says(plugin: Path, dtype: type, tmp_path: Path) -> None:
    file = tmp_path / "decode.trt"
    channels = 32
    shapes = {
        f"level_{i}": tuple((batch, channels, side * k, side * k) for batch, k in ((1, 1), (2, 4), (8, 10)))
        for i, side in enumerate((8, 4))
    }
    build(decode_rows_model(dtype, **HEAD), shapes, file)
    rng = np.random.default_rng(0)
    with open_session(file, provider="tensorrt") as session:
        for batch, k in ((1, 1), (8, 10), (3, 7)):
            levels = {
                f"level_{i}": (6 * rng.standard_normal((batch, channels, side * k, side * k))).astype(dtype)
                for i, side in enumerate((8, 4))
            }
            found = session.run(levels)["rows"]
            expected = decoded_rows(list(levels.values()), **HEAD)
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-5, err_msg=f"{batch} x {k}")
