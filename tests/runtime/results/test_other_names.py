"""Attributes that other tools have lead to those that a result and a predictor have here."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

import deploykit
from deploykit.runtime.results.other_names import PREDICTOR_NAMES, RESULT_NAMES
from tests.cell_model import cell_spec, write_cell_model


@pytest.fixture
def result() -> deploykit.Result:
    return deploykit.Result(np.zeros((0, 4)), np.zeros(0), np.zeros(0), size=(4, 6))


@pytest.mark.parametrize(
    ("name", "meant"), [("plot", "draw()"), ("orig_shape", "size"), ("names", "classes"), ("save_txt", "to_yolo()")]
)
def test_a_result_names_its_own_attribute(result: deploykit.Result, name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match="'Result' object has no attribute") as e:
        getattr(result, name)
    assert f": use {meant}" in str(e.value)


def test_what_is_named_is_there(result: deploykit.Result) -> None:
    for meant in RESULT_NAMES.values():
        for word in meant.partition(", ")[0].split(" or "):
            assert hasattr(result, word.partition("(")[0].partition("[")[0]), meant
    assert not any(hasattr(result, name) for name in RESULT_NAMES)


def test_other_attributes_are_missing_as_usual(result: deploykit.Result) -> None:
    with pytest.raises(AttributeError, match=r"^'Result' object has no attribute 'colour'$"):
        _ = result.colour  # type: ignore[attr-defined]
    for again in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert again.size == (4, 6)


def test_a_predictor_and_the_package_name_theirs(tmp_path: Path) -> None:
    model = deploykit.load(write_cell_model(tmp_path / "cells.onnx", spec=cell_spec()))
    with pytest.raises(AttributeError, match=r"no attribute 'predict': use model\(image\), or model\.stream"):
        _ = model.predict  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"no attribute 'names': use classes"):
        _ = model.names  # type: ignore[attr-defined]
    assert model.classes
    assert not any(hasattr(model, name) for name in PREDICTOR_NAMES)
    with pytest.raises(AttributeError, match=r"no attribute 'YOLO': use deploykit\.load\(path\)"):
        _ = deploykit.YOLO
