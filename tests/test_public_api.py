"""What users may import: pinned, so that nothing becomes public or goes away by accident."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import deploykit
from deploykit.cli._compute import compute_flags
from deploykit.cli._options import Flags
from deploykit.cli._predict_files import predict_flags
from deploykit.cli.eval import eval_flags
from deploykit.runtime.compute import ComputeOptions
from deploykit.runtime.options import ComputeKeywords, EvalKeywords, EvalOptions, PredictKeywords, PredictOptions

PUBLIC = [
    "AccuracyGate",
    "Calibration",
    "DeployError",
    "EngineOptions",
    "EvalOptions",
    "ImagePreparation",
    "ImageResult",
    "LoadOptions",
    "ModelSpec",
    "OnnxOptions",
    "PrecisionOptions",
    "PredictOptions",
    "Predictor",
    "Progress",
    "Result",
    "VerifyReport",
    "build_engine",
    "compare",
    "evaluate",
    "evaluate_against",
    "export_onnx",
    "load",
    "open_session",
    "quantize_onnx",
    "verify",
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
        ("load", ["path", "task", "spec", "backend", "preprocessing", "loading", "verify", "options"]),
        (
            "export_onnx",
            ["weights", "img", "dynamic", "nms", "precision", "out", "samples", "check", "options", "progress"],
        ),
        (
            "evaluate",
            [
                "model",
                "data",
                "task",
                "images",
                "spec",
                "backend",
                "preprocessing",
                "loading",
                "verify",
                "progress",
                "options",
            ],
        ),
        ("evaluate_against", ["model", "reference", "data", "bootstrap", "loading", "verify", "progress", "options"]),
        (
            "quantize_onnx",
            ["path", "precision", "out", "spec", "samples", "tolerance", "gate", "preparation", "inputs", "progress"],
        ),
        ("compare", ["a", "b", "images", "spec", "tolerance"]),
        ("build_engine", ["onnx", "flavour", "out", "options", "spec", "samples", "check", "reference", "progress"]),
    ],
)
def test_signatures_keep_their_parameters(name: str, parameters: list[str]) -> None:
    found = list(inspect.signature(getattr(deploykit, name)).parameters)
    assert found[: len(parameters)] == parameters


@pytest.mark.parametrize(
    ("options", "keywords", "other_ways"),
    [
        (ComputeOptions, ComputeKeywords, set()),
        (PredictOptions, PredictKeywords, set()),
        (EvalOptions, EvalKeywords, {"task", "upstream"}),
    ],
)
def test_keyword_arguments_are_the_fields_of_the_options(options: type, keywords: type, other_ways: set[str]) -> None:
    """``upstream`` is what ``preprocessing="upstream"`` sets."""
    fields = {**get_type_hints(options), **get_type_hints(ComputeOptions)}
    assert get_type_hints(keywords) == {name: hint for name, hint in fields.items() if name not in other_ways}


def test_the_command_line_fills_the_options() -> None:
    """Each field has a flag, but for those that a command decides itself."""
    ways: list[tuple[Flags[Any], set[str]]] = [
        (predict_flags(), {"multi_label"}),
        (eval_flags(), {"upstream", "keep_detections"}),
        (compute_flags(), set()),
    ]
    for flags, of_commands in ways:
        typed = {flag.field for group in flags.groups.values() for flag in group}
        assert typed == {field.name for field in fields(flags.owner)} - of_commands


@pytest.mark.slow
def test_a_type_checker_knows_results_by_their_task(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api", reason="mypy (extra dev) is not installed")
    program = tmp_path / "program.py"
    program.write_text(
        "import deploykit\n"
        'reveal_type(deploykit.load("m.onnx")(b""))\n'
        'reveal_type(deploykit.load("m.onnx", task="detect", conf=0.5)(b""))\n'
        'reveal_type(deploykit.load("m.onnx", task="segment")(b""))\n'
        'model = deploykit.load("m.onnx", task="detect")\n'
        'reveal_type(model("a.jpg"))\n'
        'reveal_type(model(["a.jpg", b""]))\n'
        'reveal_type(model.stream("folder"))\n'
        'reveal_type(deploykit.evaluate("m.onnx", "d"))\n'
        'reveal_type(deploykit.evaluate("m.onnx", "d", images="i", task="keypoints"))\n'
        'deploykit.load("m.onnx", confidence=0.5)\n'
    )
    said, _, _ = api.run([str(program), "--follow-imports=silent", "--no-error-summary"])
    found = [re.sub(r"[a-z_]+\.", "", line.split('"')[1]) for line in said.splitlines() if "Revealed type" in line]
    assert found == [
        "ImageResult", "Result", "LabelMap", "Result", "list[Result]", "Generator[Result, None, None]", "Evaluation",
        "DetectionEvaluation",
    ], said  # fmt: skip
    assert 'Unexpected keyword argument "confidence"' in said


def test_no_error_is_raised_that_is_not_in_the_tree() -> None:
    from deploykit import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.DeployError)]
    codes = [c.exit_code for c in classes]
    assert len(set(codes)) == len(codes), "two errors share an exit code"
    assert all(c.__name__ in (errors.__doc__ or "") for c in classes)
    assert all(str(c.exit_code) in (errors.__doc__ or "") for c in classes)
    assert {c.__name__ for c in classes} <= set(errors.__all__)
