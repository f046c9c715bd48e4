"""The tensors of the protocol: what is written is read back, by us and by Triton's client, and nothing else is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deploykit.errors import UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.serve.oip.tensors import (
    BYTES,
    TYPES,
    Tensor,
    datatype_of,
    from_bytes,
    from_values,
    to_bytes,
    to_values,
)

SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, max_side=4)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from((*TYPES, BYTES)))
    shape = draw(SHAPES)
    if datatype == BYTES:
        count = int(np.prod(shape))
        values: Array = np.empty(count, object)
        values[:] = draw(st.lists(st.binary(max_size=12), min_size=count, max_size=count))
        return Tensor("x", BYTES, values.reshape(shape))
    return Tensor("x", datatype, draw(arrays.arrays(TYPES[datatype], shape)))


def equal(one: Tensor, other: Tensor) -> bool:
    a, b = one.values, other.values
    return (one.datatype, a.shape, a.dtype) == (other.datatype, b.shape, b.dtype) and to_bytes(one) == to_bytes(other)


@settings(max_examples=150)
@given(tensors())
def test_bytes_are_read_back(tensor: Tensor) -> None:
    data = to_bytes(tensor)
    assert equal(from_bytes("x", tensor.datatype, tensor.values.shape, data), tensor)
    for wrong in (data + b"\0", data[:-1] if data else b"\1"):
        with pytest.raises(UsageError):
            from_bytes("x", tensor.datatype, tensor.values.shape, wrong)


@settings(max_examples=150)
@given(tensors(), st.booleans())
def test_values_are_read_back_flat_and_nested(tensor: Tensor, nested: bool) -> None:
    try:
        flat = to_values(tensor)
    except UsageError:  # no text, or no finite numbers
        return
    values = np.array(flat, object).reshape(tensor.values.shape).tolist() if nested else flat
    assert equal(from_values("x", tensor.datatype, tensor.values.shape, values), tensor)
    with pytest.raises(UsageError):
        from_values("x", tensor.datatype, tensor.values.shape, [*flat, *flat[:1]] if flat else [0])


@settings(max_examples=60)
@given(tensors())
def test_tritons_client_writes_the_same_bytes(tensor: Tensor) -> None:
    utils = pytest.importorskip("tritonclient.utils", reason="tritonclient (extra dev) is not installed")
    if tensor.datatype == BYTES:
        packed = utils.serialize_byte_tensor(tensor.values)
        assert (packed.item() if packed.size else b"") == to_bytes(tensor)
    else:
        assert utils.np_to_triton_dtype(tensor.values.dtype) == tensor.datatype == datatype_of(tensor.values.dtype.name)


@settings(max_examples=150)
@given(st.sampled_from((*TYPES, BYTES)), st.lists(st.integers(-2, 5), max_size=3), st.binary(max_size=64))
def test_whatever_comes_is_a_tensor_or_refused(datatype: str, shape: list[int], data: bytes) -> None:
    try:
        found = from_bytes("x", datatype, shape, data)
    except UsageError:
        return
    assert to_bytes(found) == data
    assert list(found.values.shape) == shape


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "words"),
    [
        ("FP32", [2], [1, [2]], "lists in lists"),
        ("FP32", [1], ["1"], "another type"),
        ("INT8", [1], [1.5], "another type"),
        ("INT8", [1], [True], "another type"),
        ("UINT8", [1], [-1], "does not fit"),
        ("BOOL", [1], [1], "another type"),
        ("BYTES", [1], [1], "text"),
        ("FP32", [1] * 17, [1], "at most 16 sides"),
    ],
)
def test_values_of_another_kind_are_refused(datatype: str, shape: list[int], data: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        from_values("x", datatype, shape, data)


def test_a_truth_value_is_one_byte_of_0_or_1() -> None:
    assert from_bytes("x", "BOOL", [2], b"\0\1").values.tolist() == [False, True]
    with pytest.raises(UsageError, match="0 or 1"):
        from_bytes("x", "BOOL", [1], b"\2")


def test_what_json_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="ask for binary"):
        to_values(Tensor("x", "FP32", np.array([np.nan], np.float32)))
    with pytest.raises(UsageError, match="bfloat16"):
        datatype_of("bfloat16")
