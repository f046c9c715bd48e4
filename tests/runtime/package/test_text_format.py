"""The text format: what is written is read back as it was by protobuf's own reader."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.runtime.package.text_format import Word, text_of

text_format = pytest.importorskip("google.protobuf.text_format")
schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def parsed(text: str) -> Any:
    return text_format.Parse(text, schema.ModelConfig())


@given(
    TEXT,
    st.integers(0, 2**31 - 1),
    st.lists(st.integers(-1, 2**40), max_size=4),
    st.dictionaries(TEXT, TEXT, max_size=4),
    st.booleans(),
)
def test_any_value_comes_back(name: str, most: int, dims: list[int], parameters: dict[str, str], flag: bool) -> None:
    read = parsed(
        text_of(
            {
                "name": name,
                "max_batch_size": most,
                "input": [
                    {"name": name, "data_type": Word("TYPE_FP32"), "dims": dims, "optional": flag},
                    {"name": "other", "data_type": Word("TYPE_STRING")},
                ],
                "parameters": [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()],
            }
        )
    )
    assert (read.name, read.max_batch_size, list(read.input[0].dims)) == (name, most, dims)
    assert [each.name for each in read.input] == [name, "other"]
    assert read.input[0].optional == flag
    assert {key: value.string_value for key, value in read.parameters.items()} == parameters


def test_the_schema_refuses_a_field_that_it_does_not_have() -> None:
    with pytest.raises(Exception, match=r"no field named .max_batchsize"):
        parsed(text_of({"max_batchsize": 8}))
