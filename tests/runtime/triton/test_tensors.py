"""Where an image lies on its canvas goes from step to step in eight numbers, and nothing is lost."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import ImageSizeError, UsageError
from deploykit.runtime.images.placing import place_on_canvas
from deploykit.runtime.results.detection import Result
from deploykit.runtime.triton.tensors import PLACES, arrays_of, placed, placement_of, result_arrays, typed
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec, RawDetections

SIDE = st.integers(1, 90)


@given(
    SIDE, SIDE, st.sampled_from(["letterbox", "resize", "crop", "pad"]), st.booleans(),
    st.sampled_from(["none", "batch", "shape"]), st.sampled_from(["centre", "top-left"]), st.sampled_from([1, 3, 4]),
)  # fmt: skip
def test_a_placement_comes_back(
    height: int, width: int, kind: Any, auto: bool, dynamic: Any, anchor: Literal["centre", "top-left"], channels: int
) -> None:
    fit = Fit("letterbox", stride=32, auto=auto, anchor=anchor) if kind == "letterbox" else Fit(kind, stride=32)
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    canvas = InputSpec(size=(64, 96), dynamic=dynamic, channels=channels, mean=zeros, std=ones, fit=fit)
    image = np.zeros((height, width, channels) if channels > 1 else (height, width), np.uint8)
    try:
        shown = place_on_canvas(image, canvas)
    except ImageSizeError:
        return  # an image that the network does not take
    numbers = placement_of(shown)
    assert (numbers.shape, numbers.dtype) == ((PLACES,), np.int32)
    again = placed(numbers, canvas)
    assert (again.source, again.region, again.letterbox) == (shown.source, shown.region, shown.letterbox)
    assert again.canvas.shape[:2] == shown.canvas.shape[:2]


def found(count: int, *, masks: bool = False) -> Result:
    boxes = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    given = np.ones((count, 5, 6), bool) if masks else None
    return Result(boxes, np.ones(count), np.zeros(count), masks=given, size=(5, 6))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_arrays_of_objects_are_filled_up_and_counted(counts: list[int]) -> None:
    spec = ModelSpec("detect", InputSpec(size=(64, 64)), RawDetections(cls=(5, 6)), ("a",))
    results = [found(count) for count in counts]
    arrays = arrays_of(results, result_arrays(spec))
    assert arrays["count"].ravel().tolist() == counts
    assert arrays["boxes"].shape == (len(counts), max(counts), 4)
    for result, boxes, scores in zip(results, arrays["boxes"], arrays["scores"], strict=True):
        np.testing.assert_array_equal(boxes[: len(result)], result.boxes)
        assert not boxes[len(result) :].any()
        assert scores.sum() == len(result)


def test_masks_of_an_image_without_objects_have_its_size() -> None:
    (masks,) = (array for array in result_arrays(segments()) if array.name == "masks")
    arrays = arrays_of([found(0), found(2, masks=True)], [masks])
    assert (arrays["masks"].shape, arrays["masks"].dtype) == ((2, 2, 5, 6), np.uint8)
    assert not arrays["masks"][0].any()
    assert arrays["masks"][1].all()


def segments() -> ModelSpec:
    rows = RawDetections(obj=None, cls=(4, 5), coefficients=(5, 9), prototypes="prototypes")
    return ModelSpec("instances", InputSpec(size=(64, 64)), rows, ("a",))


def test_every_task_has_arrays() -> None:
    for task in ("classify", "segment", "restore", "features"):
        channels = {"output": DenseOutput(name="image" if task == "restore" else "logits")}
        assert result_arrays(ModelSpec(task, InputSpec(size=(64, 64), fit=Fit(kind="resize")), **channels))


def test_a_parameter_must_be_a_number() -> None:
    values = {"conf": {"string_value": "0.5"}, "max_det": {"string_value": "0.5"}}
    assert (typed(values, "conf", float), typed(values, "iou", float)) == (0.5, None)
    with pytest.raises(UsageError, match=r"the parameter 'max_det' must be int, got '0.5'"):
        typed(values, "max_det", int)
