"""``deploykit export`` as a person or a script uses it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli import command_parser, main
from deploykit.describe import preprocessing
from deploykit.errors import ParityError
from deploykit.export.graph import trace
from deploykit.facade import open_session
from deploykit.spec import InputSpec, ModelSpec, RawDetections
from tests.export.parity.test_parity_gate import add, contents, do

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = ["reading", "building", "fusing", "tracing", "simplifying", "writing", "checking"]


@dataclass
class Run:
    """One run of the command: its exit code, what it printed, and its file."""

    code: int
    out: str
    err: str
    file: Path

    @property
    def facts(self) -> dict[str, str]:
        """The rows of the table, long ones joined."""
        table: dict[str, str] = {}
        for line in self.out.split("\n\n")[0].splitlines():
            if name := line[:15].strip():
                table[name] = line[15:].strip()
            else:
                table[list(table)[-1]] += " " + line.strip()
        return table


def export(weights: Path, *words: object, out: Path) -> Run:
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(["export", "--weights", str(weights), "--out", str(out), *map(str, words)])
    return Run(code, printed.getvalue(), told.getvalue(), out)


@pytest.fixture(scope="module")
def shown(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The defaults, but for the size, into a folder whose name a shell and a markup language would misread."""
    folder = tmp_path_factory.mktemp("a [bold] 'place'")
    return export(checkpoint, "--img", 64, 96, out=folder / "m.onnx")


def test_steps_are_printed_on_standard_error_in_their_order(shown: Run) -> None:
    assert shown.code == 0
    told = [re.fullmatch(r"\[ *\d+\.\d s\] (\w+)", line) for line in shown.err.splitlines()]
    assert [match[1] for match in told if match] == STEPS
    assert all(told)


def test_the_report_says_what_was_made(shown: Run, checkpoint: Path) -> None:
    facts = shown.facts
    assert "".join(facts["file"].split()) == "".join(f"{shown.file}{shown.file.stat().st_size / 1e3:.1f}kB".split())
    assert "44,896 weights in fp32 are 179.5 kB" in facts["why this size"]
    assert f"the checkpoint has {checkpoint.stat().st_size / 1e3:.1f} kB" in facts["why this size"]
    assert re.fullmatch(r"\d+ nodes, opset 18, fp32; ONNX Runtime 1.15 and newer", facts["graph"])
    assert facts["input"] == "images float32 (1, 3, 64, 96)"
    assert facts["output"] == "output float32 (1, 360, 16)"
    assert facts["preprocessing"] == "letterbox to 96x64 (width x height), pad 114, stride 16; RGB, divided by 255"
    assert facts["columns"] == (
        "0-3: cx cy w h; 4: objectness; 5-6: 2 classes; 7-15: 3 keypoints of x y v; in network pixels, before NMS"
    )
    assert [re.sub(r" \d+\.\d s$", "", step) for step in facts["time"].split(", ")] == STEPS


def test_the_report_says_what_was_verified(shown: Run) -> None:
    verification = " ".join(shown.out.split("\n\n")[1].split())
    for kind in ("boxes", "scores", "keypoints", "visibility"):
        assert re.search(rf"{kind} \S+ (px )?\d+\.\d % ", verification), kind
    assert "detections none" in verification
    assert "best rows 200 of 200 match IoU >= 1.0000 2 comparisons" in verification
    assert ("compared with the checkpoint (PyTorch CPU float64) on apollo11_crew.jpg, noise (seed 0)") in verification
    assert "limits: 0.001 px + 1e-05 |x|, probabilities 1e-05" in verification
    assert (
        "fewer than 20 detections, or mostly borderline ones, on apollo11_crew.jpg, noise (seed 0): "
        "the 100 best rows were compared as well"
    ) in verification
    assert "FAILED" not in verification


def test_the_next_command_can_be_typed_as_it_stands(shown: Run) -> None:
    line = shown.out.splitlines()[-1]
    assert line.startswith("next: deploykit ")
    words = shlex.split(line.removeprefix("next: deploykit "))
    args = command_parser(words).parse_args(words)
    assert words[0] == "predict"
    assert Path(args.model) == shown.file


def test_the_file_and_its_verification_lie_where_they_were_asked_for(shown: Run) -> None:
    assert sorted(p.name for p in shown.file.parent.iterdir()) == ["m.onnx", "m.onnx.parity.json"]
    with open_session(shown.file) as session:
        assert session.inputs[0].shape == (1, 3, 64, 96)


def test_json_is_one_document_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    words = ("--img", 64, "--dynamic", "shape", "--exporter", "legacy", "--json")
    run = export(checkpoint, *words, out=tmp_path / "m.onnx")
    assert run.code == 0
    found = json.loads(run.out, parse_constant=pytest.fail)
    assert found["path"] == str(run.file)
    assert found["parity"]["ok"] is True
    assert found["outputs"][0]["shape"] == ["batch", "rows", 16]
    assert [step for step in STEPS if step in run.err] == STEPS


def test_without_a_check_the_report_says_so(checkpoint: Path, tmp_path: Path) -> None:
    run = export(checkpoint, "--img", 64, "--exporter", "legacy", "--no-check", out=tmp_path / "m.onnx")
    assert run.code == 0
    assert "parity: NOT CHECKED (--no-check)" in run.out
    assert "checking" not in run.err
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_random_weights_and_a_sample_of_the_user_are_reported(tmp_path: Path) -> None:
    from deploykit.export.parity.inputs import sample_image

    weights, sample = tmp_path / "tiny.pt", tmp_path / "[my] image.jpg"
    sample.write_bytes(sample_image().read_bytes())
    assert main(["create", "yolov7-tiny", "--classes", "1", "--out", str(weights)]) == 0
    words = ("--img", 64, "--exporter", "legacy", "--sample", sample)
    run = export(weights, *words, out=tmp_path / "m.onnx")
    assert run.code == 0
    assert run.facts["note"] == "random weights (seed 0): predictions are meaningless"
    assert run.facts["columns"].startswith("0-3: cx cy w h; 4: objectness, which is the score; 5: 1 class, which")
    assert "[my] image.jpg, noise (seed 0)" in run.out


@pytest.mark.parametrize("place", ["folder", "new/", "new/other.onnx", None])
def test_the_file_goes_where_out_says(place: str | None, checkpoint: Path, tmp_path: Path) -> None:
    weights = tmp_path / "few.pt"
    weights.write_bytes(checkpoint.read_bytes())
    (tmp_path / "folder").mkdir()
    words = ["export", "--weights", str(weights), "--img", "64", "--exporter", "legacy", "--no-check", "--json"]
    words += ["--out", f"{tmp_path}/{place}"] if place else []
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == 0
    expected = {"folder": "folder/few.onnx", "new/": "new/few.onnx", None: "few.onnx"}.get(place, place)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.onnx")] == [expected]


@pytest.mark.parametrize(("words", "shape"), [((64,), (64, 64)), ((32, 96), (32, 96)), ((), (640, 640))])
def test_one_side_is_a_square_and_none_the_published_size(
    words: tuple[int, ...], shape: tuple[int, int], checkpoint: Path, tmp_path: Path
) -> None:
    sizes = ("--img", *words) if words else ()
    run = export(checkpoint, *sizes, "--exporter", "legacy", "--no-check", "--json", out=tmp_path / "m.onnx")
    assert tuple(json.loads(run.out)["inputs"][0]["shape"]) == (1, 3, *shape)


def test_a_file_that_disagrees_is_refused_with_42_and_the_old_one_stays(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--img", 64, "--exporter", "legacy")
    assert export(checkpoint, *words, out=tmp_path / "m.onnx").code == 0
    before = contents(tmp_path)
    do(monkeypatch, add(4, 2e-5))
    run = export(checkpoint, *words, out=tmp_path / "m.onnx")
    assert run.code == ParityError.exit_code == 42
    assert run.out == ""
    assert run.err.splitlines()[-1].startswith(
        "deploykit: m.onnx does not agree with its source and was not kept: scores"
    )
    assert contents(tmp_path) == before


def test_a_refusal_of_the_exporter_gives_its_reason(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        try:
            raise ValueError("the real reason\nand a page of advice")
        except ValueError as e:
            raise RuntimeError("Failed to export the model. Next steps:") from e

    monkeypatch.setattr(trace, "_dynamo", refuse)
    run = export(checkpoint, "--img", 64, out=tmp_path / "m.onnx")
    assert run.code == 40
    assert (
        run.err.splitlines()[-1]
        == "deploykit: torch's dynamo exporter refused the model: the real reason [deploykit help 40]"
    )
    assert contents(tmp_path) == {}


def test_unusual_preprocessing_and_columns_are_spelt_out() -> None:
    canvas = InputSpec(size=(90, 160), colour="bgr", scale=1.0, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    spec = ModelSpec("detect", canvas, RawDetections(obj=None, cls=(4, 5)), ("cat",))
    assert preprocessing(spec) == (
        "letterbox to 160x90 (width x height), pad 114, stride 32; BGR, times 1, minus (1.0, 2.0, 3.0), "
        "over (4.0, 5.0, 6.0)"
    )
    assert spec.output.describe(spec) == "0-3: cx cy w h; 4: 1 class; in network pixels, before NMS"
