"""Specs from outside: numbers, names and columns that make no sense are refused when the spec is read, and what is read
either predicts or says why not."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import DeployError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.predict.predictor import Predictor
from deploykit.spec import (
    DenseOutput,
    Fit,
    InputSpec,
    KeypointSpec,
    ModelSpec,
    NmsOutputs,
    PoseObjectRows,
    RawDetections,
    Thresholds,
)
from deploykit.spec.checks import MAX_INPUT

SIDE = 32
CANVAS = InputSpec(size=(SIDE, SIDE))
ROWS = ModelSpec("detect", CANVAS, RawDetections(cls=(5, 7)), ("cat", "dog"))
SPECS = {
    "rows": ROWS,
    "rectangles": dataclasses.replace(ROWS, input=dataclasses.replace(CANVAS, dynamic="shape", fit=Fit(auto=True))),
    "keypoints": ModelSpec(
        "keypoints",
        CANVAS,
        RawDetections(cls=(5, 6), keypoints=(6, 12)),
        ("person",),
        KeypointSpec(("left", "right"), ((0, 1),), ((0, 1),), (0.1, 0.1)),
    ),
    "decoded": ModelSpec("detect", CANVAS, RawDetections(decode="yolox", strides=(8, 16)), ("cat",)),
    "pose objects": ModelSpec(
        "keypoints", CANVAS, PoseObjectRows(cls=(5, 7), coords=(7, 9)), ("person",), KeypointSpec(("nose",))
    ),
    "nms": ModelSpec("detect", CANVAS, NmsOutputs(), ("cat", "dog"), thresholds=Thresholds(max_det=3)),
    "classify": ModelSpec("classify", dataclasses.replace(CANVAS, fit=Fit("crop")), DenseOutput(), ("cat", "dog")),
    "segment": ModelSpec("segment", dataclasses.replace(CANVAS, fit=Fit("resize")), DenseOutput(), ("cat", "dog")),
    "restore": ModelSpec(
        "restore", dataclasses.replace(CANVAS, dynamic="shape", fit=Fit("pad")), DenseOutput(name="i")
    ),
    "tiles": ModelSpec("restore", dataclasses.replace(CANVAS, fit=Fit("tile")), DenseOutput(name="i")),
}
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def network(spec: ModelSpec) -> FakeSession:
    """A network that fits a spec: random values of the right shapes."""
    rng = np.random.default_rng(1)

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        batch, channels, *pixels = inputs[spec.input.name].shape
        lengths = {"batch": batch, "one": 1, "detections": spec.thresholds.max_det, "corners": 4, "rows": 20}
        lengths |= {"channels": len(spec.classes) or channels, "out_height": pixels[0], "out_width": pixels[1]}
        found = {}
        for tensor in spec.output_tensors:
            shape = [tensor.columns if axis == "columns" else lengths[axis] for axis in tensor.axes]
            values = rng.random(shape, np.float32) * (2 if tensor.dtype == "int32" else 1)
            found[tensor.name] = values.astype(np.int32 if tensor.dtype == "int32" else np.float32)
        return found

    return FakeSession(answer, spec=spec)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value in parsed JSON, but for the whole."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(item, (*path, key))


def written(spec: ModelSpec) -> dict[str, Any]:
    """The spec's JSON with every field, later ones too."""
    whole = dataclasses.asdict(spec)
    assert ModelSpec.from_json(json.dumps(whole)) == spec
    parsed: dict[str, Any] = json.loads(json.dumps(whole))
    return parsed


def changed(spec: ModelSpec, path: tuple[str | int, ...], value: Any) -> str:
    whole = copy.deepcopy(written(spec))
    at: Any = whole
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(whole)


STRANGE = (
    None, True, -1, 0, 1, 2, 3, 7, 255, 256, 4097, 65_537, 10**9, 2**63, 10**400, -(10**9), 0.0, -0.5, 0.5, 1e-12,
    1e-320, 1e12, 1e308, float("nan"), float("inf"), "", "x", "images", "\ud800", "\x1b[2J", "a\nb", "x" * 5_000, [],
    {}, [1], [0, 8], [8, 5], [-4, 0], [5, 5], [0, 10**9], [0.0, 0.0, 0.0], [1e-45] * 3, [[0, 1]], [[0, 9]], ["a"],
    ["a", "a"], {"kind": "rows"}, {"kind": "tensor"}, {"a": 1}, [[[[[1]]]]],
)  # fmt: skip
NUMBERS = st.integers() | st.floats() | st.integers(-3, 300) | st.floats(-2, 2)
VALUES = st.sampled_from(STRANGE) | NUMBERS | st.lists(NUMBERS, max_size=4) | st.text(max_size=20)


@pytest.mark.parametrize("name", SPECS)
def test_a_network_that_fits_its_spec_predicts(name: str) -> None:
    """So that the next test does not look at networks that fail without a change."""
    Predictor(network(SPECS[name]))(IMAGE)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_a_spec_with_one_changed_value_is_refused_or_predicts(data: st.DataObject) -> None:
    spec = SPECS[data.draw(st.sampled_from(sorted(SPECS)))]
    path = data.draw(st.sampled_from(sorted(places(written(spec)), key=str)))
    text = changed(spec, path, data.draw(VALUES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MAX_INPUT, "0.02")
        try:
            Predictor(network(spec), ModelSpec.from_json(text))(IMAGE)
        except DeployError as e:
            message = str(e)
        else:
            message = ""
    assert message.isprintable(), "an error is one line"


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("rows", ("input", "size"), [0, 0], r"the input's height must lie in 1\.\.1,048,576, got 0"),
        ("rows", ("input", "size"), [-64, 64], "the input's height must lie in .*, got -64"),
        ("rows", ("input", "size"), [100_000, 100_000], r"x 100000 x 100000 takes 111\.8 GiB .* limit is 2: \$DEP"),
        ("rows", ("input", "size"), [64, 10**12], "the input's width must lie in"),
        ("rows", ("input", "batch"), 0, "the input's batch must lie in"),
        ("rows", ("input", "batch"), 10**6, r"takes 11\.4 GiB"),
        ("rows", ("input", "channels"), 4, "an input of 4 channels needs as many values of mean and std, got 3 and 3"),
        ("rows", ("input", "mean"), [0, 0], "3 channels needs as many values of mean and std, got 2 and 3"),
        ("rows", ("input", "std"), [0, 0, 0], "std must not be 0, and be of a size of 1e-09 to 1e.09, got 0"),
        ("rows", ("input", "scale"), 0, "scale must not be 0"),
        ("rows", ("input", "scale"), float("nan"), "NaN is no number of JSON"),
        ("rows", ("input", "mean"), [1e300, 0, 0], "mean must lie in"),
        ("rows", ("input", "name"), "", "the name of the input must not be empty"),
        ("rows", ("input", "name"), "a\x1b[2J", r"must have no control characters, got '\\x1b' in 'a\\x1b\[2J'"),
        ("rows", ("input", "fit", "stride"), 0, r"stride must lie in 1\.\.4,096, got 0"),
        ("rows", ("input", "fit", "stride"), 10**9, r"stride must lie in 1\.\.4,096, got 1e\+09"),
        ("rows", ("input", "fit", "step"), 10**9, "step must lie in"),
        ("rows", ("input", "fit", "pad_value"), -5, r"grey levels of the border must lie in 0\.\.255, got -5"),
        ("rows", ("input", "fit", "pad_value"), 1_000_000, "grey levels of the border must lie in"),
        ("rows", ("input", "fit", "pad_colour"), [1000, -1, 0], "grey levels of the border .*, got 1000"),
        ("rows", ("input", "fit", "margin"), -1e9, r"margin must lie in 0\.\.64, got -1e\+09"),
        ("classify", ("input", "fit", "crop_share"), 0.002, "GiB of memory, the limit is 2"),
        ("classify", ("input", "fit", "crop_share"), 1e-320, "a crop's share must lie in 0.001..1"),
        ("rows", ("output", "box"), [0, 8], r"box must have 4 columns, got 8 \[0, 8\]"),
        ("rows", ("output", "box"), [0, 3], r"box must have 4 columns, got 3 \[0, 3\]"),
        ("rows", ("output", "box"), [-4, 0], "the columns of box must be .*, got .-4, 0."),
        ("rows", ("output", "box"), [4, 0], "the columns of box must be"),
        ("rows", ("output", "box"), [1, 5], r"the columns of box \[1, 5\] and obj \[4, 5\] must not overlap"),
        ("rows", ("output", "obj"), [4, 6], r"obj must have 1 column, got 2 \[4, 6\]"),
        ("rows", ("output", "cls"), [5, 5], "the columns of cls must be"),
        ("rows", ("output", "cls"), [8, 5], "the columns of cls must be"),
        ("rows", ("output", "cls"), [-3, -1], "the columns of cls must be"),
        ("rows", ("output", "cls"), [0, 2], r"the columns of cls \[0, 2\] and box \[0, 4\] must not overlap"),
        ("rows", ("output", "cls"), [5, 10**9], r"the columns of cls must be .* in 0\.\.1,048,576"),
        ("keypoints", ("output", "kpt_dims"), 0, r"kpt_dims must lie in 2\.\.3, got 0"),
        ("keypoints", ("output", "keypoints"), [5, 11], "cls .* and keypoints .* must not overlap"),
        ("decoded", ("output", "strides"), [8, 10**9], "strides must lie in"),
        ("pose objects", ("output", "coords"), [6, 8], "the columns of cls .* and coords .* must not overlap"),
        ("pose objects", ("output", "box"), [0, 5], "box must have 4 columns"),
        ("pose objects", ("output", "fusion", "tolerance"), float("inf"), "Infinity is no number of JSON"),
        ("nms", ("output", "scores"), "", "the name of the output scores must not be empty"),
        ("segment", ("output", "name"), "", "the name of the output must not be empty"),
        ("rows", ("thresholds", "conf"), 1.5, r"conf must lie in 0\.\.1, got 1\.5"),
        ("rows", ("thresholds", "iou"), 10**400, "iou must be a number of at most 64 bits, got one of 1,329"),
        ("rows", ("thresholds", "max_det"), 10**9, r"max_det must lie in 1\.\.1,000,000"),
        ("rows", ("thresholds", "pre_nms_topk"), 0, "pre_nms_topk must be at least 1"),
        ("keypoints", ("keypoints", "sigmas"), [0, 0.1], "an OKS sigma must lie in"),
        ("keypoints", ("keypoints", "skeleton"), [[0, 2]], "skeleton names keypoint 2, but there are 2"),
        ("keypoints", ("keypoints", "names"), ["a\x07", "b"], "the name of keypoint 0 must have no control characters"),
        ("rows", ("classes",), ["cat", "\x1b]0;dog"], "the name of class 1 must have no control characters"),
        ("rows", ("classes",), ["cat", "\ud800"], "half a surrogate pair"),
        ("rows", ("classes",), ["cat", "x" * 1001], "the name of class 1 must have at most 1000 characters, got 1,001"),
        ("rows", ("source", "model"), "a\nb", "the source's model must have no control characters"),
        ("rows", ("opset",), -1, r"opset must lie in 1\.\.1,000"),
        ("rows", ("version",), -1, "the spec has version -1, this deploykit reads up to 1"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(name: str, path: tuple[str | int, ...], value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_json(changed(SPECS[name], path, value))


def test_numbers_beyond_a_float_are_refused_in_json() -> None:
    with pytest.raises(SpecError, match=r"conf must lie in 0\.\.1, got inf"):
        ModelSpec.from_json(changed(ROWS, ("thresholds", "conf"), 0.375).replace("0.375", "1e999"))


@pytest.mark.parametrize(("given", "size"), [("", 13_000), ("4.5", 19_000), ("1e-3", 250)])
def test_the_largest_input_is_a_setting(monkeypatch: pytest.MonkeyPatch, given: str, size: int) -> None:
    monkeypatch.setenv(MAX_INPUT, given)
    InputSpec(size=(size, size))
    with pytest.raises(SpecError, match=r"GiB of memory, the limit is [\d.]+: \$DEPLOYKIT_MAX_INPUT_GIB raises it"):
        InputSpec(size=(size * 2, size))


@pytest.mark.parametrize("wrong", ["much", "0", "-1", "inf", "nan"])
def test_a_setting_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv(MAX_INPUT, wrong)
    with pytest.raises(SpecError, match=f"expected a number of GiB over 0 in .DEPLOYKIT_MAX_INPUT_GIB, got '{wrong}'"):
        InputSpec()


def test_class_names_of_another_systems_text_file_stay_readable() -> None:
    spec = dataclasses.replace(ROWS, classes=("cat\r", "the\tdog"))
    assert ModelSpec.from_json(spec.to_json()) == spec
