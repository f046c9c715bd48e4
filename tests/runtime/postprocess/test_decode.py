"""Rows that the runtime decodes: the published equations, and every place where such rows come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import BackendError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.kinds.detection import RowAdapter
from deploykit.runtime.parity.expected import values_of
from deploykit.runtime.postprocess.decode import decoded
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.session import TensorInfo
from deploykit.spec import Fit, InputSpec, ModelSpec, RawDetections

RAW = RawDetections(cls=(5, 7), decode="yolox", strides=(8, 16))
FIT = Fit(anchor="top-left", rounding="floor")


def session_spec(layout: RawDetections = RAW, **canvas: object) -> ModelSpec:
    options = {"size": (32, 48), "colour": "bgr", "scale": 1.0, "fit": FIT, **canvas}
    return ModelSpec(task="detect", input=InputSpec(**options), output=layout, classes=("a", "b"))  # type: ignore[arg-type]


def by_the_equations(rows: Array, size: tuple[int, int], strides: tuple[int, ...]) -> Array:
    """Cell after cell, in float64."""
    out, n = rows.astype(np.float64), 0
    for stride in strides:
        for y in range(size[0] // stride):
            for x in range(size[1] // stride):
                out[n, :2] = (out[n, :2] + (x, y)) * stride
                out[n, 2:4] = np.exp(out[n, 2:4]) * stride
                n += 1
    return out


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from(((8, 16, 32), (16,), (4, 8), (32, 16, 8))),
    st.integers(0, 2**32 - 1),
)
def test_boxes_are_decoded_by_the_published_equations(
    cells: tuple[int, int], strides: tuple[int, ...], seed: int
) -> None:
    size = (cells[0] * max(strides), cells[1] * max(strides))
    count = sum((size[0] // s) * (size[1] // s) for s in strides)
    rows = np.random.default_rng(seed).normal(0, 2, (count, 7)).astype(np.float32)
    before = rows.copy()
    found = decoded(rows, replace(RAW, strides=strides), size)
    expected = by_the_equations(rows, size, strides)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-4)
    assert np.array_equal(found[:, 4:], rows[:, 4:]), "what is no box stays as it is"
    assert np.array_equal(rows, before), "the network's own output is not written to"


def test_a_batch_is_decoded_like_its_images() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 30, 7)).astype(np.float32)
    together = decoded(rows, RAW, (32, 48))
    assert np.array_equal(together, np.stack([decoded(image, RAW, (32, 48)) for image in rows]))


def test_half_precision_is_decoded_in_float32() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float16)
    found = decoded(rows, RAW, (32, 48))
    assert found.dtype == np.float32
    assert np.array_equal(found, decoded(rows.astype(np.float32), RAW, (32, 48)))


def test_rows_in_pixels_are_left_alone() -> None:
    rows = np.zeros((5, 7), np.float32)
    assert decoded(rows, RAW.pixel_layout(), (32, 48)) is rows


def test_what_overflows_is_infinite_and_never_detected() -> None:
    rows = np.zeros((30, 7), np.float32)
    rows[:, 4:] = 1.0
    rows[:, 2] = 1000.0
    found = RowAdapter(session_spec()).objects({"output": rows[None]}, 0)
    assert len(found.scores) == 0


def test_another_number_of_rows_is_refused_with_the_sum() -> None:
    with pytest.raises(SpecError, match=r"has 29 rows, but the spec's strides \[8, 16\] at 32x48 .* 4x6 \+ 2x3 = 30"):
        decoded(np.zeros((29, 7), np.float32), RAW, (32, 48))


def test_too_few_columns_are_an_error_before_anything_is_decoded() -> None:
    with pytest.raises(BackendError, match="must have 7 columns"):
        RowAdapter(session_spec()).objects({"output": np.zeros((1, 30, 6), np.float32)}, 0)


def one_box(images: Array) -> dict[str, Array]:
    """A network that is sure of one object in cell (x 2, y 1) of stride 8: 24 px wide, 8 high, centre (20, 12)."""
    height, width = images.shape[2:]
    rows = np.zeros((len(images), height * width // 64 + height * width // 256, 7), np.float32)
    rows[:, width // 8 + 2] = (0.5, 0.5, np.log(3), 0.0, 1.0, 0.0, 0.9)
    return {"output": rows}


@pytest.mark.parametrize("dynamic", ["none", "shape"])
def test_a_predictor_finds_boxes_in_source_pixels(dynamic: str) -> None:
    """The image is 64 wide and lies on 32 (by its own rectangle) or on the whole canvas: scaled by 0.75, no pad."""
    spec = session_spec(dynamic=dynamic, fit=replace(FIT, auto=dynamic == "shape", stride=16))

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert inputs["images"].shape == (1, 3, 16 if dynamic == "shape" else 32, 48)
        return one_box(inputs["images"])

    with Predictor(FakeSession(answer, spec=spec)) as predictor:
        result = predictor(np.zeros((20, 64, 3), np.uint8))
    assert result.labels.tolist() == [1]
    assert result.scores.tolist() == pytest.approx([0.9])
    (box,) = result.boxes.tolist()
    assert box == pytest.approx([8 / 0.75, 8 / 0.75, 32 / 0.75, 20], abs=1e-4)  # cut where the image ends


def test_parity_compares_rows_in_pixels() -> None:
    spec = session_spec(dynamic="shape")
    session = FakeSession(lambda inputs: one_box(inputs["images"]), spec=spec)
    rows = values_of(session, np.zeros((1, 3, 32, 64), np.float32), RowAdapter(spec).values, "it")
    assert rows[8 + 2].tolist() == pytest.approx([20, 12, 24, 8, 1, 0, 0.9])
    assert rows[0, :4].tolist() == [0, 0, 8, 8]
    fixed = TensorInfo("images", (2, 3, 32, 64), "float32")
    pair = FakeSession(lambda inputs: one_box(inputs["images"]), spec=spec, inputs=[fixed])
    assert np.array_equal(values_of(pair, np.zeros((1, 3, 32, 64), np.float32), RowAdapter(spec).values, "it"), rows)
