"""The C++ examples: the engine's program by its parts, and DeepStream's parsers with made-up outputs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.spec import NmsOutputs
from tests.cell_model import cell_spec
from tests.cpp_plugins.conftest import compiler
from tests.cpp_plugins.test_tensorrt_plugin import headers

HERE = Path(__file__).parent
OPENCV = Path("/usr/include/opencv4")
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1")


def cuda_headers() -> Path:
    nvcc = shutil.which("nvcc") or pytest.skip("no nvcc: the CUDA headers are not here")
    places = [Path(nvcc).resolve().parents[1] / "include", *Path("/usr/local").glob("cuda*/include")]
    found = next((place for place in places if (place / "cuda_runtime_api.h").is_file()), None)
    return found or pytest.skip("no CUDA headers beside nvcc")


def opencv_headers() -> Path:
    return (
        OPENCV if (OPENCV / "opencv2" / "imgcodecs.hpp").is_file() else pytest.skip("no OpenCV headers (libopencv-dev)")
    )


def test_the_program_of_an_engine_compiles_without_a_warning(root: Path, tmp_path: Path) -> None:
    places = [opencv_headers(), headers(), cuda_headers()]
    include = [word for place in places for word in ("-isystem", str(place))]
    source = root / "examples" / "cpp" / "detect.cpp"
    subprocess.run([compiler(), *STRICT, "-c", str(source), *include, "-o", str(tmp_path / "detect.o")], check=True)


@pytest.fixture(scope="module")
def letterbox_probe(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("cpp") / "letterbox"
    include = ["-isystem", str(opencv_headers()), f"-I{root / 'examples' / 'cpp'}"]
    libraries = ["-lopencv_imgcodecs", "-lopencv_imgproc", "-lopencv_core"]
    source = str(HERE / "letterbox_probe.cpp")
    subprocess.run([compiler(), *STRICT, *include, source, "-o", str(program), *libraries], check=True)
    return program


@pytest.mark.parametrize("shape", [(64, 64), (37, 90), (200, 51), (31, 64)])
@pytest.mark.parametrize(
    "change", [{}, {"rounding": "floor", "anchor": "top-left", "scale_up": False, "pad_value": 114}]
)
def test_its_input_is_the_runtimes_to_the_bit(
    letterbox_probe: Path, tmp_path: Path, shape: tuple[int, int], change: dict
) -> None:
    spec = cell_spec()
    fit = dataclasses.replace(spec.input.fit, **change)
    own = dataclasses.replace(spec.input, size=(64, 96), fit=fit, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.25))
    spec = dataclasses.replace(spec, input=own, output=NmsOutputs(keypoints="keypoints"), classes=("red", "große Dose"))
    (tmp_path / "x.trt.json").write_text(
        json.dumps({"spec": json.loads(spec.to_json())}, ensure_ascii=False), encoding="utf-8"
    )
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "x.png"), image)
    words = [letterbox_probe, tmp_path / "x.trt.json", tmp_path / "x.png", tmp_path / "x.bin"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    placed = Letterbox.fit(shape, own.size, fit, auto=False)
    expected = to_nchw([placed.apply(image)], own)
    found = np.fromfile(tmp_path / "x.bin", np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    lines = done.stdout.splitlines()
    points = placed.to_source(np.array([[10.5, 20.25], [60.0, 50.0]], np.float64))
    np.testing.assert_allclose([[float(v) for v in line.split()] for line in lines[:2]], points, rtol=1e-5)
    assert lines[2:] == list(spec.classes)


def test_a_spec_alone_serves_as_well_as_a_record(letterbox_probe: Path, tmp_path: Path) -> None:
    spec = dataclasses.replace(cell_spec(), output=NmsOutputs(keypoints="keypoints"), classes=("red", "blue"))
    (tmp_path / "x.json").write_text(spec.to_json())
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((8, 8, 3), np.uint8))
    words = [letterbox_probe, tmp_path / "x.json", tmp_path / "x.png", tmp_path / "x.bin"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[2:]) == (0, ["red", "blue"]), done.stdout


def test_a_missing_record_is_said_with_the_command_that_writes_the_spec(letterbox_probe: Path, tmp_path: Path) -> None:
    words = [letterbox_probe, tmp_path / "x.trt.json", "-", "-"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (
        1,
        f"cannot read {tmp_path}/x.trt.json, the record or the spec of the engine; for an engine of trtexec: "
        f"deploykit inspect X.onnx --draft-spec > {tmp_path}/x.trt.json",
    )


def test_a_model_without_nms_is_refused(letterbox_probe: Path, tmp_path: Path) -> None:
    (tmp_path / "x.trt.json").write_text(json.dumps({"spec": json.loads(cell_spec().to_json())}))
    done = subprocess.run(
        [letterbox_probe, tmp_path / "x.trt.json", "-", "-"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (
        1, "this example needs a model with NMS inside: deploykit export --nms plugin, or graph",
    )  # fmt: skip


@pytest.fixture(scope="module")
def deepstream_probe(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("deepstream") / "probe"
    sources = [root / "examples" / "deepstream" / "parser.cpp", HERE / "deepstream_probe.cpp"]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [compiler(), *STRICT, *sanitize, f"-I{HERE}", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


SLOTS = (  # label, score, box, three keypoints
    (1, 0.9, (10, 20, 110, 220), (11, 21, 0.5, 12, 22, 0.25, 13, 23, 1)),
    (0, 0.8, (-5, 400, 50, 600), (1, 2, 0, 3, 4, 0, 5, 6, 0)),  # beyond the image
    (4, 0.7, (0, 0, 5, 5), (0,) * 9),  # a class that is not configured
    (1, 0.2, (0, 0, 5, 5), (0,) * 9),  # below the threshold
    (0, 0.6, (700, 10, 720, 30), (0,) * 9),  # nothing of it lies in the image
    (1, 0.9, (1, 1, 2, 2), (0,) * 9),  # a slot after the last detection
)


def parsed(probe: Path, number: int, points: int) -> list[str]:
    words = [str(number)]
    for label, score, box, keypoints in SLOTS:
        words += map(str, (label, score, *box, *keypoints[: 3 * points]))
    arguments = [str(probe), str(len(SLOTS)), str(points), "2", "0.25"]
    done = subprocess.run(arguments, input=" ".join(words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_deepstream_gets_boxes_and_any_number_of_keypoints(deepstream_probe: Path) -> None:
    boxes = ["1 0.9000 10.0000 20.0000 100.0000 200.0000", "0 0.8000 0.0000 400.0000 50.0000 80.0000"]
    lines = parsed(deepstream_probe, 5, 3)
    assert lines[0] == "boxes 1"
    assert lines[1:3] == boxes
    assert lines[3] == "keypoints 1"
    assert lines[4].startswith(boxes[0])
    assert lines[4].endswith(" 11.0000 21.0000 0.5000 12.0000 22.0000 0.2500 13.0000 23.0000 1.0000 (3x3)")
    assert lines[5].endswith("(3x3)")
    assert lines[6:] == ["without boxes 0"]
    assert parsed(deepstream_probe, 1, 2)[3].endswith(" 11.0000 21.0000 0.5000 12.0000 22.0000 0.2500 (3x2)")


def test_a_model_without_keypoints_has_boxes_only(deepstream_probe: Path) -> None:
    assert parsed(deepstream_probe, 5, 0)[3:] == ["keypoints 0", "without boxes 0"]
    assert parsed(deepstream_probe, -3, 3)[:2] == ["boxes 1", "keypoints 1"], "a damaged count finds nothing"
