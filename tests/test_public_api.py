"""What users may import: pinned, so that nothing becomes public or goes away by accident."""

from __future__ import annotations

import inspect

import pytest

import deploykit

PUBLIC = [
    "AccuracyGate",
    "Calibration",
    "DensePredictor",
    "DeployError",
    "EngineOptions",
    "ModelSpec",
    "OnnxOptions",
    "PrecisionOptions",
    "Predictor",
    "Progress",
    "Result",
    "build_engine",
    "compare",
    "evaluate",
    "evaluate_against",
    "evaluate_dense",
    "export_onnx",
    "load",
    "open_session",
]


def test_the_public_names_are_these() -> None:
    assert sorted(deploykit.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(deploykit))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(deploykit, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = deploykit.nothing


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("load", ["path", "spec", "backend", "conf", "iou", "max_det"]),
        (
            "export_onnx",
            ["weights", "img", "dynamic", "nms", "precision", "out", "samples", "check", "options", "progress"],
        ),
        (
            "evaluate",
            ["model", "data", "images", "task", "conf", "iou", "max_det", "limit", "batch", "img", "rectangles"],
        ),
        ("evaluate_dense", ["model", "data", "images", "task", "limit", "spec", "backend", "on_progress"]),
        ("evaluate_against", ["model", "reference", "data", "images", "bootstrap"]),
        ("compare", ["a", "b", "images", "spec", "tolerance"]),
        ("build_engine", ["onnx", "flavour", "out", "options", "spec", "samples", "check", "reference", "progress"]),
    ],
)
def test_signatures_keep_their_parameters(name: str, parameters: list[str]) -> None:
    found = list(inspect.signature(getattr(deploykit, name)).parameters)
    assert found[: len(parameters)] == parameters


def test_no_error_is_raised_that_is_not_in_the_tree() -> None:
    from deploykit import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.DeployError)]
    codes = [c.exit_code for c in classes]
    assert len(set(codes)) == len(codes), "two errors share an exit code"
    assert all(c.__name__ in (errors.__doc__ or "") for c in classes)
    assert all(str(c.exit_code) in (errors.__doc__ or "") for c in classes)
    assert {c.__name__ for c in classes} <= set(errors.__all__)
