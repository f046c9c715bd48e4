"""Calibration and quantisation: ranges as their definitions say, and graphs whose layers compute on integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import DataError, ExportError, ImageError, NotFoundError, UsageError
from deploykit.export.options import Calibration, CalibrationMethod
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.parity.verification import largest_values
from deploykit.export.precision import calibration as module
from deploykit.export.precision.calibration import (
    AUTO,
    BEHIND,
    HALF,
    LEVELS,
    Activations,
    Begun,
    calibration_images,
    choose_method,
    measure_activations,
    range_of,
)
from deploykit.export.precision.observed import BINS, Running, on_grid
from deploykit.export.precision.qdq import activations_of, quantisable, quantize, quantize_weight
from deploykit.export.precision.read_back import precisions_of
from deploykit.export.precision.search.journal import digest_of_file
from deploykit.export.precision.sensitivity import (
    ENOUGH,
    MOST,
    NEAR,
    Ranking,
    choose_keep,
    named_layers,
)
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.progress import SILENT
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.expected import ParityInputs
from deploykit.runtime.session import open_session
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec, RawDetections
from tests.output_error import output_error

CHANCE = np.random.default_rng(0)
SPEC = ModelSpec(
    task="detect", input=InputSpec(name="x", size=(32, 32), fit=Fit(stride=8)), output=RawDetections(), classes=("a",)
)


def layer_graph(*, groups: int = 1, opset: int = 21) -> ir.Model:
    """One layer of every kind that is quantised, and what must not be: a product of two activations, a decode."""
    shapes = {
        "conv.weight": (8, 3 // groups if groups == 3 else 3, 3, 3),
        "depthwise.weight": (8, 1, 3, 3),
        "up.weight": (8, 4, 2, 2),
        "gemm.weight": (6, 4),
        "matmul.weight": (6, 5),
    }
    arrays = [
        helper.make_tensor(n, TensorProto.FLOAT, s, CHANCE.normal(size=s).astype(np.float32).ravel())
        for n, s in shapes.items()
    ]
    arrays.append(helper.make_tensor("bias", TensorProto.FLOAT, (8,), CHANCE.normal(size=8).astype(np.float32)))
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "bias"], ["a"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "depthwise.weight"], ["c"], name="depthwise", group=8, pads=[1] * 4),
        helper.make_node("ConvTranspose", ["c", "up.weight"], ["d"], name="up", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        helper.make_node("Flatten", ["e"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "gemm.weight"], ["g"], name="gemm", transB=1),
        helper.make_node("MatMul", ["g", "matmul.weight"], ["h"], name="matmul"),
        helper.make_node("Transpose", ["h"], ["i"], name="turn"),
        helper.make_node("MatMul", ["h", "i"], ["y"], name="activations"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 32, 32))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 1))],
        arrays,
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    chance = np.random.default_rng(5)
    for i in range(5):
        cv2.imwrite(str(folder / f"{i}.png"), chance.integers(0, 256, (20 + i, 30, 3), np.uint8))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "deploykit" / "calibration"


# Ranges.


def slow_mse(histogram: Array) -> int:
    errors = {}
    for bins in range(LEVELS, len(histogram) + 1, module.STEP):
        step = bins / (LEVELS - 1)
        errors[bins] = sum(
            count * (min(round(centre / step), LEVELS - 1) * step - centre) ** 2
            for centre, count in zip(np.arange(len(histogram)) + 0.5, histogram, strict=True)
            if count
        )
    return min(errors, key=errors.__getitem__)


def slow_entropy(histogram: Array) -> int:
    histogram = [float(v) for v in histogram]
    histogram[0] = histogram[1]
    best, chosen = np.inf, 0
    for bins in range(LEVELS, len(histogram) + 1, module.STEP):
        p = histogram[:bins]
        p[-1] += sum(histogram[bins:])
        q = [0.0] * bins
        for level in range(LEVELS):
            members = [i for i in range(bins) if i * LEVELS // bins == level and histogram[i] > 0]
            for i in members:
                q[i] = sum(histogram[j] for j in members) / len(members)
        p, q = np.array(p) / sum(p), np.array(q) / sum(q)
        q[(q == 0) & (p > 0)] = 1e-4
        divergence = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0) + q.sum() - 1
        if divergence < best - 1e-12:
            best, chosen = divergence, bins
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_mse_and_entropy_are_what_a_slow_search_finds(seed: int) -> None:
    chance = np.random.default_rng(seed)
    values = np.abs(chance.standard_t(3, 20_000))
    histogram = np.histogram(values, 512, (0, values.max()))[0].astype(np.float64)
    assert range_of(histogram, 512.0, "mse") == slow_mse(histogram)
    assert range_of(histogram, 512.0, "entropy") == slow_entropy(histogram)


@settings(max_examples=25)
@given(
    counts=st.lists(st.integers(0, 10_000), min_size=256, max_size=256),
    largest=st.floats(1e-6, 1e6),
    method=st.sampled_from(["minmax", "percentile", "entropy", "mse"]),
)
def test_a_range_is_positive_at_most_the_largest_value_and_scales_with_it(
    counts: list[int], largest: float, method: CalibrationMethod
) -> None:
    histogram = np.array(counts, np.float64)
    found = range_of(histogram, largest, method)
    assert 0 < found <= largest * (1 + 1e-9)
    assert range_of(histogram, 2 * largest, method) == pytest.approx(2 * found)
    assert range_of(3 * histogram, largest, method) == pytest.approx(found)


def test_an_outlier_widens_minmax_and_hardly_the_others() -> None:
    values = np.abs(np.random.default_rng(6).normal(size=1_000_000))
    histogram = np.histogram(np.append(values, 60.0), BINS, (0, 60.0))[0].astype(np.float64)
    assert range_of(histogram, 60.0, "minmax") == 60.0
    for method in ("percentile", "mse", "entropy"):
        assert range_of(histogram, 60.0, method) < 20.0  # type: ignore[arg-type]  # a literal of this loop


def test_zeros_have_no_range() -> None:
    assert range_of(np.zeros(BINS), 0.0, "mse") == 0.0


# Measuring.


@given(st.floats(2.0**-90, 2.0**90), st.floats(-1e-6, 1e-6))
def test_a_largest_value_is_rounded_up_to_a_grid_on_which_rounding_errors_vanish(value: float, noise: float) -> None:
    step = on_grid(value)
    assert value * (1 - 2**-16) <= step <= value * (1 + 2**-7)
    assert on_grid(step) == step == on_grid(step * (1 + noise))
    assert (step / 2 ** np.floor(np.log2(step)) * 2**7) % 1 == 0  # eight significant bits


def test_a_largest_value_of_zero_is_zero() -> None:
    assert on_grid(0.0) == 0.0


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    powers=st.lists(st.integers(-12, 12), min_size=1, max_size=5),
    zeros=st.integers(0, 100),
)
def test_a_histogram_that_grows_is_that_of_all_values_but_for_a_quarter_of_a_bin(
    seed: int, powers: list[int], zeros: int
) -> None:
    chance = np.random.default_rng(seed)
    parts = [np.zeros(zeros + 1, np.float32)]
    parts += [(chance.standard_t(3, 500) * 2.0**power).astype(np.float32) for power in powers]
    running = Running()
    for part in parts:
        running.add(float(np.abs(part).max()), torch.from_numpy(part))
    sizes = np.sort(np.abs(np.concatenate(parts))).astype(np.float64)
    assert running.largest == sizes[-1]
    found = running.counts()
    assert found.shape == (BINS,)
    assert found.sum() == len(sizes)
    assert found.min() >= 0
    below, ends = np.cumsum(found), np.arange(1, BINS + 1) * (on_grid(running.largest) / BINS)
    quarter = on_grid(running.largest) / BINS / 4 * 1.001
    assert (below >= np.searchsorted(sizes, ends - quarter) - 1).all()
    assert (below <= np.searchsorted(sizes, ends + quarter, "right") + 1).all()


def test_activations_are_those_of_the_images_as_the_spec_prepares_them(images: Path, cache: Path) -> None:
    model = layer_graph()
    found = measure_activations(model, b"model", SPEC, ["x", "b"], Calibration(images), cache=False)
    blobs = calibration_images(Calibration(images), SPEC, 99)
    assert [image.shape for image in blobs] == [(1, 3, 32, 32)] * 5
    assert found.images == 5
    assert found.largest["x"] == pytest.approx(max(float(np.abs(i).max()) for i in blobs)) == pytest.approx(1.0)
    weight = torch.from_numpy(np.array(model.graph.initializers["conv.weight"].const_value.numpy()))  # type: ignore[union-attr]
    bias = torch.from_numpy(np.array(model.graph.initializers["bias"].const_value.numpy()))  # type: ignore[union-attr]
    outputs = [torch.relu(torch.nn.functional.conv2d(torch.from_numpy(i), weight, bias, padding=1)) for i in blobs]
    assert found.largest["b"] == on_grid(max(float(o.max()) for o in outputs))
    assert found.counts["b"].sum() == sum(o.numel() for o in outputs)
    assert not cache.exists()


def test_images_that_were_measured_before_are_not_run_again(images: Path) -> None:
    model, tensors, runs = layer_graph(), ["x", "b", "g"], []

    def measured(calibration: Calibration, begun: Begun) -> Activations:
        return measure_activations(
            model, b"", SPEC, tensors, calibration, cache=False, begun=begun, watch=lambda n, _: runs.append(n)
        )

    whole, begun = measured(Calibration(images), Begun()), Begun()
    few = measured(Calibration(images, 2), begun)
    found = measured(Calibration(images), begun)
    assert runs == [*range(5), 0, 1, 1, 3, 4]  # of two images the second is the third of all
    assert (few.images, found.images) == (2, 5)
    assert found.largest == whole.largest
    assert all(np.array_equal(found.counts[name], whole.counts[name]) for name in tensors)
    assert measured(Calibration(images), begun).largest == whole.largest
    assert len(runs) == 10


def test_measurements_are_kept_by_model_images_and_tensors(images: Path, cache: Path) -> None:
    model, tensors = layer_graph(), ["x", "b"]

    def measured(data: bytes = b"model", names: list[str] = tensors, size: int = 5) -> bool:
        return measure_activations(model, data, SPEC, names, Calibration(images, size)).cached

    assert not measured()
    first = measure_activations(model, b"model", SPEC, tensors, Calibration(images, method="minmax"))
    assert first.cached  # of any method
    assert first.largest["x"] == pytest.approx(1.0)
    assert not measured(data=b"another model")
    assert not measured(names=["b"])
    assert not measured(size=2)
    (images / "0.png").write_bytes((images / "1.png").read_bytes())
    assert not measured()
    assert measured()
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert not measured()  # what is damaged is measured anew


def test_other_weights_beside_a_file_are_another_network(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.full((1, 1, 8, 8), value, np.float32), "w") for value in (1, 2)]
    digests = []
    for weight in weights:
        node = helper.make_node("Mul", ["x", "w"], ["y"])
        sides = [helper.make_tensor_value_info(name, 1, (1, 1, 8, 8)) for name in "xy"]
        model = helper.make_model(helper.make_graph([node], "g", sides[:1], sides[1:], [weight]))
        (tmp_path / "w.bin").unlink(missing_ok=True)
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        digests.append((digest_of_file(tmp_path / "m.onnx"), (tmp_path / "m.onnx").read_bytes()))
    assert digests[0][1] == digests[1][1]
    assert digests[0][0] != digests[1][0]


def test_ranges_are_measured_on_the_training_images_of_a_yolo_data_set(tmp_path: Path) -> None:
    for name in ("images/train/b.jpg", "images/train/a.jpg", "images/val/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    data = tmp_path / "data.yaml"
    data.write_text("train: images/train\nval: images/val\nnames: [a]\n")
    assert [p.name for p in Calibration(data).images()] == ["a.jpg", "b.jpg"]
    data.write_text("val: images/val\nnames: [a]\n")
    assert [p.name for p in Calibration(data).images()] == ["c.jpg"]


def test_without_images_there_are_no_ranges(tmp_path: Path, images: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NotFoundError, match="folder of calibration images"):
        Calibration(tmp_path / "missing").images()
    with pytest.raises(ImageError, match="holds no image"):
        Calibration(empty).images()
    with pytest.raises(DataError, match="no calibration image"):
        Calibration(()).images()
    with pytest.raises(NotFoundError, match=r"calibration image .* does not exist"):
        Calibration((empty / "x.png",)).images()
    (images / "0.png").write_bytes(b"broken")
    with pytest.raises(ImageError):
        measure_activations(layer_graph(), b"", SPEC, ["x"], Calibration(images), cache=False)
    for wrong in ({"size": 0}, {"method": "guess"}, {"percentile": 20.0}):
        with pytest.raises(UsageError):
            Calibration(images, **wrong)  # type: ignore[arg-type]  # that they are refused is what is tested


@pytest.mark.parametrize(
    ("node", "least"),
    [("Sqrt", None), ("Sqrt", 1), ("Reciprocal", None)],
    ids=["NaN", "NaN in the first image alone", "infinity"],
)
def test_a_tensor_that_is_not_finite_has_no_range_and_is_named(
    node: str, least: int | None, images: Path, cache: Path
) -> None:
    """``max`` keeps the larger of 0 and NaN, which is 0: such a tensor looked as if it were zero."""
    if node == "Reciprocal":  # a black image
        for file in images.iterdir():
            cv2.imwrite(str(file), np.zeros((32, 32, 3), np.uint8))
    elif least is not None:  # one that is darker than what is subtracted, and white ones
        for file in sorted(images.iterdir())[1:]:
            cv2.imwrite(str(file), np.full((32, 32, 3), 255, np.uint8))
    graph = helper.make_graph(
        [helper.make_node("Sub", ["x", "one"], ["less"]), helper.make_node(node, ["less"], ["broken.part"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 32, 32))],
        [helper.make_tensor_value_info("broken.part", TensorProto.FLOAT, None)],
        [helper.make_tensor("one", TensorProto.FLOAT, (1,), [0.0 if node == "Reciprocal" else 0.99])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    reason = r"the tensor 'broken\.part' has values that are not finite, so its range cannot be measured"
    with pytest.raises(DataError, match=reason):
        measure_activations(model, b"", SPEC, ["x", "less", "broken.part"], Calibration(images))
    assert not cache.exists()
    assert measure_activations(model, b"", SPEC, ["x", "less"], Calibration(images)).largest["x"] >= 0
    with pytest.raises(ExportError, match=reason):
        largest_values(model, feeds_of(images), SILENT)
    told = largest_values(model, feeds_of(images), SILENT, finite=False)
    assert told["broken.part"] == np.inf


def test_a_method_whose_network_gives_nan_is_not_the_best(images: Path) -> None:
    found = Activations({"x": 1.0}, {"x": np.ones(2048)}, 5)
    errors = iter([[0.1, np.inf], [], [0.2, 0.4], [], [np.inf, 0.1]])
    best, all_errors, _ = choose_method(found, Calibration(images), lambda ranges, of: next(errors), SILENT)
    assert (best, list(all_errors.values())) == ("percentile", [[0.1, np.inf], [0.2, 0.4], [np.inf, 0.1]])
    with pytest.raises(DataError, match="with the ranges of minmax, percentile, mse it gives NaN or infinity"):
        choose_method(found, Calibration(images), lambda ranges, of: [np.inf], SILENT)


@settings(max_examples=60)
@given(st.lists(st.lists(st.floats(0.01, 2.0), min_size=4, max_size=4), min_size=4, max_size=4), st.booleans())
def test_a_method_that_is_far_behind_on_two_images_is_not_run_on_the_others(
    images: list[list[float]], given_best: bool
) -> None:
    """All errors are only needed of methods that may be the best; ``images``: of each method, and what is to beat."""
    by_range = {1.0 + number: errors for number, errors in enumerate(images[:3])}
    runs: list[tuple[float, slice]] = []

    def errors_with(ranges: dict[str, float], of: slice) -> list[float]:
        runs.append((ranges["x"], of))
        return by_range[ranges["x"]][of]

    class Ranges(Activations):
        def ranges(self, method: CalibrationMethod, percentile: float) -> dict[str, float]:
            return {"x": 1.0 + AUTO.index(method)}

    best = images[3] if given_best else []
    calibration = Calibration("unread")
    method, errors, ranges = choose_method(Ranges({}, {}, 4), calibration, errors_with, SILENT, best)
    whole = {name: errors for name, errors in errors.items() if len(errors) == 4}
    assert len(runs) == 3 + len(whole)
    assert all(found == images[AUTO.index(name)][: len(found)] for name, found in errors.items())  # type: ignore[arg-type]  # names of methods
    assert ranges == {"x": 1.0 + AUTO.index(method)}
    if whole:
        assert sum(errors[method]) == min(map(sum, whole.values()))
    rivals = [*whole.values(), *([best] if best else [])]
    for name, found in errors.items():
        if name not in whole:
            assert any(sum(found) > BEHIND * sum(rival[:HALF]) for rival in rivals)


def feeds_of(images: Path) -> ParityInputs:
    found = make_parity_inputs(SPEC, sorted(images.iterdir()))
    return ParityInputs({label: image for label, image in found.images.items() if "noise" not in label}, ())


def test_fewer_images_are_spread_over_all(images: Path) -> None:
    assert [p.name for p in Calibration(images, 2).images()] == ["0.png", "2.png"]
    assert len(Calibration(images, 99).images()) == 5


# The graph.


def ranges_of(model: ir.Model) -> dict[str, float]:
    found: dict[str, float] = {"x": 1.0}
    OnnxInTorchSession(model, observe=lambda n, v: found.update({n: float(v.abs().max())})).run(
        {"x": np.random.default_rng(7).random((1, 3, 32, 32), np.float32)}
    )
    return found


def tensors(model: ir.Model) -> list[str]:
    return [name for node in quantisable(model.graph) for name in activations_of(node, outputs=False)]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_layers_with_weights_are_quantised_and_nothing_else(kind: str, tmp_path: Path) -> None:
    model = layer_graph()
    exact = OnnxInTorchSession(model).run({"x": np.full((1, 3, 32, 32), 0.4, np.float32)})["y"]
    done = quantize(model, ranges_of(model), kind="int8" if kind == "int8" else "fp8")
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert done.layers == ("conv", "depthwise", "up", "gemm", "matmul")
    assert precisions_of(model) == {kind: list(done.layers), "fp32": ["activations"]}
    assert "conv.weight" not in model.graph.initializers
    found = OnnxInTorchSession(model).run({"x": np.full((1, 3, 32, 32), 0.4, np.float32)})["y"]
    np.testing.assert_allclose(found, exact, rtol=0.2)
    assert found != exact
    if kind == "int8":  # of fp8 ONNX Runtime 1.31 makes an invalid graph here
        file = tmp_path / "int8.onnx"
        ir.save(model, file)
        with open_session(file) as session:
            np.testing.assert_allclose(
                session.run({"x": np.full((1, 3, 32, 32), 0.4, np.float32)})["y"], found, rtol=0.02
            )


def test_kept_layers_and_their_weights_stay() -> None:
    model = layer_graph()
    done = quantize(model, ranges_of(model), nodes_to_exclude=["up", "gemm"])
    assert done.kept == ("up", "gemm")
    assert "up.weight" in model.graph.initializers
    assert len(precisions_of(model)["fp32"]) == 3


def test_a_tensor_is_rounded_once_for_all_who_take_it() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], [f"y{i}"], name=f"conv{i}") for i in range(2)]
    nodes.append(helper.make_node("Concat", ["y0", "y1", "x"], ["y"], axis=1))
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("w", TensorProto.FLOAT, (2, 2, 1, 1), [1.0, 2.0, 3.0, 4.0])],
    )
    model = ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    quantize(model, {"x": 1.0})
    operators = [n.op_type for n in model.graph]
    assert operators.count("QuantizeLinear") == 1
    assert operators.count("DequantizeLinear") == 2  # the image and the one weight
    concat = next(n for n in model.graph if n.op_type == "Concat")
    assert concat.inputs[2] is not None
    assert concat.inputs[2].name == "x"  # whoever does not multiply takes the exact values


@settings(max_examples=25)
@given(seed=st.integers(0, 999), axis=st.sampled_from([None, 0, 1]), limit=st.sampled_from([127.0, 63.0]))
def test_a_weight_is_off_by_half_a_step_at_most(seed: int, axis: int | None, limit: float) -> None:
    weight = np.random.default_rng(seed).normal(size=(4, 3, 2, 2)).astype(np.float32)
    weight[0] *= 100
    if axis == 0:
        weight[1] = 0
    numbers, scale = quantize_weight(weight, axis, "int8", limit)
    steps = scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(4)])
    assert np.abs(numbers).max() <= limit
    assert (np.abs(numbers * steps - weight) <= steps * 0.5001).all()
    assert (numbers[weight == 0] == 0).all()


def test_what_is_missing_is_said() -> None:
    model = layer_graph()
    with pytest.raises(ExportError, match="no range was measured for the tensor 'x'"):
        quantize(model, {})
    with pytest.raises(ExportError, match="fp8 needs opset 19, the graph has 18"):
        quantize(layer_graph(opset=18), {}, kind="fp8")


def test_what_saturation_costs_on_this_cpu(tmp_path: Path) -> None:
    """ONNX Runtime multiplies uint8 by int8 in pairs that add up in 16 bits where the CPU has no better instruction.

    With 7-bit weights that sum fits; with 8 bits it may not, which this measures and does not decide.
    """
    rows = np.full((1, 64), 255, np.uint8)
    found = {}
    for limit in (127, 63):
        weight = np.full((64, 8), limit, np.int8)
        nodes = [helper.make_node("MatMulInteger", ["a", "w"], ["y"])]
        made = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("a", TensorProto.UINT8, rows.shape)],
            [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
            [helper.make_tensor("w", TensorProto.INT8, weight.shape, weight.tobytes(), raw=True)],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        exact = rows.astype(np.int64) @ weight.astype(np.int64)
        found[limit] = int(np.abs(session.run(None, {"a": rows})[0] - exact).max())
    print(f"largest error of a sum of 64 products: {found[127]} with 8 bits, {found[63]} with 7")
    assert found[63] == 0


# Which layers.


def ranked(parts: Mapping[str, float], runs: list[int] | None = None) -> Ranking:
    """A ranking by these parts, of which a second run says the same; ``runs`` gets how many layers each run keeps."""
    whole = sum(parts.values())

    def parts_without(kept: Collection[str]) -> tuple[float, Mapping[str, float]]:
        if runs is not None:
            runs.append(len(kept))
        left = sum(part for layer, part in parts.items() if layer not in kept)
        return left, {n: part * whole / left if left > 0 else part for n, part in parts.items() if n not in kept}

    return Ranking(list(parts), parts_without)


def test_the_fewest_layers_with_which_half_of_the_error_is_gone_are_found_in_few_runs() -> None:
    parts = {f"layer {i}": 1.0 / (i + 1) for i in range(200)}
    whole = sum(parts.values())
    runs = []

    def error_without(kept: Collection[str]) -> float:
        runs.append(len(kept))
        return whole - sum(parts[layer] for layer in kept)

    kept, tried = choose_keep(whole, ranked(parts), error_without)
    enough = next(n for n in range(200) if whole - sum(list(parts.values())[:n]) <= ENOUGH * whole)
    assert kept == tuple(parts)[:enough]
    assert len(runs) <= 7
    assert tried == {0: whole, **{n: whole - sum(list(parts.values())[:n]) for n in runs}}


def test_at_most_a_share_of_the_layers_is_kept_and_none_that_adds_nothing() -> None:
    parts = {f"layer {i}": 0.1 if i < 10 else -0.1 for i in range(100)}
    kept, _ = choose_keep(1.0, ranked(dict.fromkeys(parts, 0.01)), lambda kept: 1.0 - 0.01 * len(kept))
    assert 0.8 * MOST * 100 < len(kept) <= MOST * 100  # with all of them, 85 % of the error is left
    kept, _ = choose_keep(1.0, ranked(parts), lambda kept: 0.9 if len(kept) == 10 else 1.0)
    assert len(kept) == 10  # all that add something
    kept, tried = choose_keep(1.0, ranked(parts), lambda kept: 1.0 + len(kept))
    assert (kept, tried[0]) == ((), 1.0)  # the ranking was of no use, which is measured
    kept, tried = choose_keep(
        1.0, ranked(dict.fromkeys(parts, -0.1)), lambda kept: pytest.fail("there is nothing to try")
    )
    assert (kept, tried) == ((), {0: 1.0})


@settings(max_examples=50)
@given(errors=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=40))
def test_what_is_kept_has_the_error_that_was_measured(errors: list[float]) -> None:
    """Also where more layers in floating point do not mean a smaller error."""
    layers = {f"layer {i}": 1.0 for i in range(200)}
    kept, tried = choose_keep(1.0, ranked(layers), lambda kept: errors[len(kept) % len(errors)])
    assert tried[len(kept)] <= 1.0
    goal = ENOUGH if tried.get(30, 0.0) <= ENOUGH else min(1.0, NEAR * tried[30])
    assert not [n for n, error in tried.items() if n < len(kept) and error <= goal]
    assert not kept or tried[len(kept)] <= goal


def test_one_layer_that_makes_nearly_all_of_the_error_is_enough() -> None:
    parts = {f"layer {i}": 0.9 if i == 0 else 1e-5 for i in range(100)}
    kept, tried = choose_keep(1.0, ranked(parts), lambda kept: 0.7 - 0.001 * len(kept))
    assert kept == ("layer 0",)
    assert len(tried) <= 6


def test_a_second_run_corrects_the_order_of_the_layers_after_the_first() -> None:
    """What is behind the first layer's error is only seen without it."""
    names = [f"layer {i}" for i in range(20)]
    asked = []

    def parts_without(kept: Collection[str]) -> tuple[float, dict[str, float]]:
        asked.append(tuple(kept))
        parts = dict.fromkeys(names, 0.01) | ({"layer 3": 0.8, "layer 5": 0.02} if not kept else {"layer 7": 0.3})
        return sum(parts[n] for n in names if n not in kept), {n: parts[n] for n in names if n not in kept}

    found = Ranking(names, parts_without)
    assert asked == [()]
    found.correct()
    assert asked == [(), ("layer 3",)]
    assert list(found.layers)[:2] == ["layer 3", "layer 7"]
    assert set(found.layers) == set(names)
    unranked = Ranking(names, lambda kept: (1.0, dict.fromkeys(names, -0.1)))
    unranked.correct()
    assert list(unranked.layers) == names


@pytest.mark.parametrize(("left", "runs"), [(0.3, [0]), (0.6, [0, 7])])
def test_the_second_run_is_only_made_where_the_first_layers_are_not_enough(left: float, runs: list[int]) -> None:
    """Of 100 layers 7 are first; expected is that half of the error is gone with 4 of them."""
    parts = {f"layer {i}": 0.19 if i < 4 else 0.0025 for i in range(100)}
    made: list[int] = []
    kept, tried = choose_keep(1.0, ranked(parts, made), lambda kept: 1.0 if len(kept) < 4 else left)
    assert made == runs
    assert (7 in tried, 15 in tried) == (True, left > ENOUGH)
    assert len(kept) == (4 if left <= ENOUGH else 7)


def test_layers_are_named_by_node_weight_or_pattern() -> None:
    model = layer_graph()
    assert named_layers(model, ["conv", "up"]) == ("conv", "up")
    assert named_layers(model, ["*m*"]) == ("gemm", "matmul")
    with pytest.raises(UsageError, match=r"'matmull': did you mean matmul"):
        named_layers(model, ["matmull"])


def test_the_error_of_rows_is_of_those_that_score() -> None:
    rows = np.zeros((1, 3, 6), np.float32)
    rows[0, :, :4] = (50, 50, 20, 10)
    rows[0, :, 4:] = ((0.9, 1.0), (0.5, 1.0), (0.01, 1.0))
    other = rows.copy()
    other[0, 2, :4] = 0  # a row that scores nothing may be anywhere
    assert error_of(SPEC, rows, other) == 0.0
    other[0, 0, 0] += 4  # one of eight values by a fifth of the longer side
    assert error_of(SPEC, rows, other) == pytest.approx(0.2 / 8)
    other[0, 2, 4] = 0.2  # a false alarm counts
    assert error_of(SPEC, rows, other) > 0.5
    other[0, 0, 0] = np.nan
    assert error_of(SPEC, rows, other) == np.inf
    other[0] = rows[0]
    other[0, 0, 4] = np.nan  # a score that is not over 0.05 either
    assert error_of(SPEC, rows, other) == np.inf
    dense = ModelSpec(task="segment", input=InputSpec(), output=DenseOutput())
    assert error_of(dense, np.full(4, 2.0), np.array([2, 2, 2, np.nan])) == np.inf
    assert error_of(dense, np.full(4, 2.0), np.full(4, 2.2)) == pytest.approx(0.1)


def error_of(spec: ModelSpec, expected: Array, found: Array) -> float:
    return output_error(spec, {"output": expected}, {"output": found})
