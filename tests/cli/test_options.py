"""The options of ``deploykit export`` and the objects that they fill: one default, stated once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace

import pytest

from deploykit.cli import command_parser
from deploykit.cli._engine import engine_flags
from deploykit.cli._options import Flag, Flags
from deploykit.cli._precision import calibration_flags, gate_flags, gate_of, precision_flags, precision_of
from deploykit.cli.export import onnx_flags, onnx_options, timm_flags
from deploykit.export.options import Calibration, EngineOptions, OnnxOptions, PrecisionOptions
from deploykit.models.timm_options import TimmOptions
from deploykit.runtime.engine_record import Profile


def parsed(*words: str) -> argparse.Namespace:
    words = ("export", "--weights", "m.pt", *words)
    return command_parser(words).parse_args(words)


def test_what_is_not_typed_has_the_defaults_of_the_objects() -> None:
    args = parsed()
    assert onnx_options(args) == OnnxOptions()
    assert precision_of(args) == PrecisionOptions()
    assert engine_flags().fill(args) == EngineOptions()
    assert timm_flags().fill(args) == TimmOptions()
    assert gate_of(args) is None


def test_what_is_typed_fills_its_field() -> None:
    words = "--img 64 96 --dynamic batch --no-simplify --nms graph --conf 0.5 --precision int8 --calib images"
    quantisation = "--calib-size 4 --keep a.* b --reduce-range --no-calib-cache --folds equalise correct"
    options = onnx_options(parsed(*words.split(), *quantisation.split()))
    precision = PrecisionOptions("int8", "none", Calibration("images", 4), ("a.*", "b"), True, False)
    precision = replace(precision, folds=("equalise", "correct"))
    assert options == OnnxOptions(
        img=(64, 96), dynamic="batch", simplify=False, nms="graph", conf=0.5, precision=precision
    )
    words = "--profile 1x8x8 2x8x8 4x8x8 --workspace 5 --tf32 --device 1 --build-log verbose --compute-capability SM89"
    profile = Profile((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    assert engine_flags().fill(parsed(*words.split(), "--no-timing-cache")) == EngineOptions(
        workspace=5 * 2**20,
        tf32=True,
        compute_capabilities=("sm89",),
        profiles=(profile,),
        timing_cache=False,
        gpu=1,
        verbose=True,
    )


@pytest.mark.parametrize(
    "flags", [onnx_flags, timm_flags, precision_flags, calibration_flags, gate_flags, engine_flags]
)
def test_every_flag_names_a_field(flags: object) -> None:
    table = flags()  # type: ignore[operator]  # one of the functions above
    named = {flag.field for group in table.groups.values() for flag in group} - {""}
    assert named <= {field.name for field in fields(table.owner)}


@dataclass(frozen=True)
class Bread:
    slices: int = 3
    toasted: bool = False
    fresh: bool = True
    spread: str | None = None


BREAD = Flags(
    Bread,
    {
        "bread": (
            Flag("--slices", "slices", "how many", metavar="N", type=int),
            Flag("--toasted", "toasted", "brown"),
            Flag("--fresh", "fresh", "of today"),
        ),
        "on it": (Flag("--spread", "spread", "butter"), Flag("--plate", "", "which one")),
    },
)


@pytest.mark.parametrize(
    ("words", "filled", "given"),
    [
        ("", Bread(), []),
        ("--slices 4 --no-fresh", Bread(slices=4, fresh=False), ["--slices", "--fresh"]),
        ("--slices 3 --fresh", Bread(), []),  # the same as not typed
        (
            "--toasted --spread jam --plate blue",
            Bread(toasted=True, spread="jam"),
            ["--toasted", "--spread", "--plate"],
        ),
    ],
)
def test_only_what_differs_from_the_default_was_asked_for(words: str, filled: Bread, given: list[str]) -> None:
    parser = argparse.ArgumentParser()
    BREAD.add(parser)
    args = parser.parse_args(words.split())
    assert BREAD.fill(args) == filled
    assert BREAD.given(args) == given
    assert BREAD.given(args, "on it") == [name for name in given if name in ("--spread", "--plate")]


def test_help_has_the_defaults_of_the_object() -> None:
    parser = argparse.ArgumentParser(prog="bread")
    BREAD.add(parser)
    said = " ".join(parser.format_help().split())
    assert "how many (default 3)" in said
    assert "of today (default yes)" in said
    assert "--toasted brown --fresh" in said  # of no is nothing said
