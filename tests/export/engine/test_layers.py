"""What an engine's inspector says, read into precisions. The texts follow NVIDIA's documentation; none is of a GPU."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploykit.export.engine.layers import precisions_in


def layer(kind: str, form: str, key: str = "LayerType") -> dict[str, Any]:
    return {"Name": "x", key: kind, "Inputs": [{"Name": "a", "Format/Datatype": form}], "Outputs": []}


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("Half", "fp16"),
        ("Channel major FP16 format where C % 8 == 0 and H Stride % 1 == 0", "fp16"),
        ("BFloat16", "bf16"),
        ("Thirty-two wide channel vectorized row major Int8 format with 3 spatial dimensions", "int8"),
        ("FP8E4M3", "fp8"),
    ],
)
def test_a_format_names_its_type(form: str, precision: str) -> None:
    assert precisions_in(json.dumps({"Layers": [layer("CaskConvolution", form)]})) == {precision: 1}


def test_only_convolutions_and_products_count() -> None:
    layers = [
        layer("CaskConvolution", "Int8"),
        layer("Convolution", "Int8", "ParameterType"),
        layer("CaskGemmMatrixMultiply", "Half"),
        layer("PointWiseV2", "Float"),
        layer("Reformat", "Float"),
    ]
    assert precisions_in(json.dumps({"Layers": layers, "Bindings": ["images"]})) == {"int8": 2, "fp16": 1}


@pytest.mark.parametrize("text", ["", "no JSON", "{}", "[]", '{"Layers": ["only a name"]}', '{"Layers": 3}'])
def test_what_does_not_say_gives_nothing(text: str) -> None:
    assert precisions_in(text) == {}
