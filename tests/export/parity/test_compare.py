"""``deploykit.compare``: any two models against each other, each of which may be a file or an open session."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import deploykit
from deploykit.errors import ImageError, NotFoundError, ParityError, SpecError, UsageError
from deploykit.export.parity.compare import ParityReport, Tolerance, compare
from deploykit.export.sessions.torch_module import TorchSession, spec_of_module
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import open_session
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.session import Session
from deploykit.spec import METADATA_KEY, DenseOutput, ModelSpec
from tests.cell_model import cell_spec, write_cell_model
from tests.heard import Heard
from tests.narrow import model_of


def spec_in(file: Path) -> ModelSpec:
    with open_session(file) as session:
        return ModelSpec.from_json(session.metadata[METADATA_KEY])


def foreign(file: Path, out: Path, *, output: str | None = None) -> Path:
    """The same network as somebody else would have exported it: without a spec, and with another output name."""
    model = onnx.load(str(file))
    del model.metadata_props[:]
    if output:
        model.graph.output[0].name = output
        for node in model.graph.node:
            node.output[:] = [output if name == "output" else name for name in node.output]
    onnx.save(model, str(out))
    return out


def names_of(report: ParityReport) -> list[str]:
    return list(dict.fromkeys(d.input for d in report.differences))


class Changed(Session):
    """A session whose output a function changes."""

    def __init__(self, session: Session, change: Callable[[Array], Array]) -> None:
        self._session, self._change = session, change
        self.inputs, self.outputs, self.metadata = session.inputs, session.outputs, session.metadata
        self.providers, self.notes = session.providers, ()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: self._change(rows) for name, rows in self._session.run(inputs).items()}

    def close(self) -> None:
        self._session.close()


@pytest.mark.parametrize("name", ["static", "batch", pytest.param("shape", marks=pytest.mark.slow)])
def test_an_export_agrees_with_its_checkpoint(name: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / f"{name}.onnx"
    deploykit.export_onnx(checkpoint, img=64, dynamic={"static": "none"}.get(name, name), out=out, check=False)
    report = compare(checkpoint, out)
    assert report.ok
    assert report.references == {"few.pt": "PyTorch CPU float64"}
    assert {d.candidate for d in report.differences} == {out.name}
    expected = ["apollo11_crew.jpg", "noise (seed 0)"]
    if name != "static":
        expected += ["apollo11_crew.jpg upside down", "3 slots shuffled", "3 slots of apollo11_crew.jpg"]
    assert [n for n in names_of(report) if "rectangle" not in n] == expected
    assert {m.what for m in report.matchings} == {"detections"}


@pytest.mark.slow
def test_an_image_that_is_not_square_is_also_fed_as_a_rectangle_where_shapes_are_free(
    exported: Path, tmp_path: Path
) -> None:
    import cv2

    wide = np.random.default_rng(0).integers(0, 255, (30, 60, 3), np.uint8)
    image = tmp_path / "wide.png"
    image.write_bytes(cv2.imencode(".png", wide)[1].tobytes())
    report = compare(exported / "shape.onnx", exported / "shape.onnx", images=[image])
    assert "wide.png as a 64x32 rectangle" in names_of(report)
    fixed = compare(exported / "static.onnx", exported / "shape.onnx", images=[image])
    assert names_of(fixed)[:2] == ["wide.png", "noise (seed 0)"]


@pytest.mark.slow
def test_a_model_agrees_with_itself_to_the_last_bit(exported: Path) -> None:
    report = compare(exported / "static.onnx", exported / "static.onnx")
    assert report.ok
    assert report.worst is None
    assert all(d.max_abs == 0 for d in report.differences)


def test_two_seeds_differ(exported: Path) -> None:
    report = compare(exported / "static.onnx", exported / "other.onnx")
    assert not report.ok
    assert "of other.onnx differ from static.onnx on" in str(report.worst)
    with pytest.raises(ParityError, match="other does not agree"):
        report.raise_if_bad("other")


def test_a_wider_tolerance_is_obeyed_and_told(exported: Path) -> None:
    wide = Tolerance(pixels=1e4, relative=1e4, probability=1.0)
    report = compare(exported / "static.onnx", exported / "other.onnx", tolerance=wide)
    assert report.tolerance == wide
    assert all(d.ok for d in report.differences)


@pytest.mark.parametrize("output", [None, "rows_of_somebody"])
def test_a_foreign_file_takes_the_other_sides_spec(output: str | None, exported: Path, tmp_path: Path) -> None:
    ours = exported / "shape.onnx"
    theirs = foreign(exported / "static.onnx", tmp_path / "theirs.onnx", output=output)
    # Its fixed size counts, although the spec comes from a file of any size.
    for a, b in ((ours, theirs), (theirs, ours)):
        report = compare(a, b)
        assert report.ok
        assert "noise (seed 0)" in names_of(report)


def test_two_foreign_files_need_a_spec_from_outside(exported: Path, tmp_path: Path) -> None:
    theirs = foreign(exported / "static.onnx", tmp_path / "theirs.onnx")
    spec = spec_in(exported / "static.onnx")
    with pytest.raises(SpecError, match="neither model carries a spec"):
        compare(theirs, theirs)
    assert compare(theirs, theirs, spec=spec).ok
    (tmp_path / "spec.json").write_text(spec.to_json())
    assert compare(theirs, theirs, spec=tmp_path / "spec.json").ok


def test_models_of_two_fixed_sizes_cannot_be_compared(exported: Path, tmp_path: Path) -> None:
    model = model_of("few", num_keypoints=3, objectness=3.0)
    onnx_from_model(model, out=tmp_path / "small.onnx", img=(32, 64), check=False)
    with pytest.raises(UsageError, match=r"fixed input sizes that differ: \(32, 64\) and \(64, 64\)"):
        compare(exported / "static.onnx", tmp_path / "small.onnx")


def test_another_number_of_keypoints_is_refused_before_anything_runs(exported: Path, tmp_path: Path) -> None:
    model = model_of("few", num_keypoints=4)
    onnx_from_model(model, out=tmp_path / "more.onnx", img=64, check=False)
    for pair in (
        (exported / "static.onnx", tmp_path / "more.onnx"),
        (tmp_path / "more.onnx", exported / "static.onnx"),
    ):
        with pytest.raises(SpecError, match=r"has .* and . keypoints and .*: models with different outputs"):
            compare(*pair)


def test_outputs_of_another_kind_are_refused(exported: Path) -> None:
    spec = ModelSpec("segment", cell_spec().input, DenseOutput(), ("a",))
    with pytest.raises(SpecError, match=r"an output of 4 axes .* is \(1, 240, 16\)"):
        compare(exported / "static.onnx", exported / "static.onnx", spec=spec)


def test_a_network_that_takes_no_image_is_refused() -> None:
    import deploykit.runtime.session as runtime

    flat = runtime.TensorInfo("x", (1, 3), "float32")
    session = FakeSession(lambda inputs: {"output": inputs["x"]}, spec=cell_spec(), inputs=[flat])
    with pytest.raises(SpecError, match=r"expected one input .* x float32 \(1, 3\)"):
        compare(session, session)


def test_sessions_stay_open_for_their_owner(exported: Path) -> None:
    with open_session(exported / "static.onnx") as a, open_session(exported / "static.onnx") as b:
        report = compare(a, b)
        assert list(report.references) == ["session a"]
        assert a.run({"images": np.zeros((1, 3, 64, 64), np.float32)})["output"].shape == (1, 240, 16)
        assert compare(a, b).ok


def test_pytorch_and_an_artefact_of_one_model_agree_as_sessions(exported: Path) -> None:
    model = model_of("few", num_keypoints=3, objectness=3.0)
    with open_session(exported / "shape.onnx") as session:
        assert compare(TorchSession(model.module, spec_of_module(model)), session).ok


def _rotate(rows: Array) -> Array:
    return np.roll(rows, 1, axis=0)


def _leak(rows: Array) -> Array:
    return rows + np.float32(0.01) * (rows.mean(0) - rows)


@pytest.mark.parametrize("change", [_rotate, _leak], ids=["rotated", "leaking"])
def test_slots_that_a_backend_mixes_up_are_noticed(change: Callable[[Array], Array], exported: Path) -> None:
    with open_session(exported / "batch.onnx") as good, open_session(exported / "batch.onnx") as bad:
        report = compare(good, Changed(bad, change))
    failed = {d.input for d in report.differences if not d.ok}
    assert failed == {"3 slots shuffled"}


def test_nan_is_never_equal_to_anything_and_has_a_word_in_json(exported: Path) -> None:
    def broken(rows: Array) -> Array:
        rows[0, 3, 4] = np.nan
        return rows

    with open_session(exported / "static.onnx") as a, open_session(exported / "static.onnx") as b:
        for pair in ((a, Changed(b, broken)), (Changed(a, broken), Changed(b, broken))):
            report = compare(*pair)
            assert not report.ok
            assert report.worst is not None
            assert "row 3, column 4 is nan" in str(report.worst)
            found = json.loads(report.to_json({}), parse_constant=pytest.fail)  # NaN and Infinity are not JSON
            worst = [d for d in found["differences"] if not d["ok"]]
            assert worst[0]["values"] == "scores"
            assert (worst[0]["max_abs"], worst[0]["used"], worst[0]["worst"][3]) == ("inf", "inf", "nan")


def test_rows_that_are_all_zero_or_all_nan_are_compared_without_a_crash() -> None:
    def of(value: float) -> FakeSession:
        return FakeSession(lambda _: {"output": np.full((1, 64, 10), value, np.float32)}, spec=cell_spec())

    assert compare(of(0), of(0)).ok
    assert not compare(of(np.nan), of(np.nan)).ok


def test_a_model_that_ignores_its_input_is_noted(exported: Path) -> None:
    rows = np.random.default_rng(0).random((1, 64, 10), np.float32)
    session = FakeSession(lambda _: {"output": rows}, spec=cell_spec())
    assert compare(session, session).notes == (
        "the model gives the same output for different inputs: this comparison verifies little",
    )
    assert compare(exported / "static.onnx", exported / "static.onnx").notes == ()


def test_a_sample_that_is_missing_or_no_image_is_said(exported: Path, tmp_path: Path) -> None:
    file = exported / "static.onnx"
    with pytest.raises(NotFoundError, match=r"none\.jpg"):
        compare(file, file, images=[tmp_path / "none.jpg"])
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"empty.jpg is empty \(0 bytes\)"):
        compare(file, file, images=[tmp_path / "empty.jpg"])


def test_each_input_is_told_while_it_is_compared(exported: Path) -> None:
    heard = Heard()
    compare(exported / "static.onnx", exported / "static.onnx", progress=heard)
    assert heard.steps == ["static.onnx on apollo11_crew.jpg", "static.onnx on noise (seed 0)"] * 2


def test_two_artefacts_are_compared_without_torch(tmp_path: Path, root: Path) -> None:
    file = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    code = f"import sys, deploykit; print(deploykit.compare({str(file)!r}, {str(file)!r}).ok, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def channels_last(file: Path, out: Path, *, own: bool = True, kind: int = TensorProto.FLOAT) -> Path:
    """The same network with images ``(batch, height, width, channels)``, as converters from TensorFlow write it."""
    model = onnx.load(str(file))
    (given,) = model.graph.input
    batch, channels, height, width = given.type.tensor_type.shape.dim
    shape = [side.dim_param or side.dim_value for side in (batch, height, width, channels)]
    name = given.name
    nodes = [helper.make_node("Transpose", ["turned"], [name], perm=[0, 3, 1, 2])]
    nodes.insert(0, helper.make_node("Cast", ["pixels"], ["turned"], to=TensorProto.FLOAT))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    given.CopyFrom(helper.make_tensor_value_info("pixels", kind, shape))
    if not own:
        del model.metadata_props[:]
    onnx.checker.check_model(model)
    onnx.save(model, str(out))
    return out


@pytest.mark.parametrize("own", [True, False], ids=["its own spec", "no spec"])
def test_a_network_with_the_channels_last_gets_the_same_images(own: bool, tmp_path: Path) -> None:
    model = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    last = channels_last(model, tmp_path / "last.onnx", own=own)
    for a, b in ((model, last), (last, model), (last, foreign(model, tmp_path / "b.onnx"))):
        report = compare(a, b, spec=spec_in(model))
        assert report.ok, report.worst
        assert deploykit.verify(a, b, spec=spec_in(model)).ok
    with open_session(last) as session:
        assert not compare(model, Changed(session, lambda rows: rows + 1), spec=spec_in(model)).ok


def test_a_network_that_takes_bytes_is_refused_with_what_it_takes(tmp_path: Path) -> None:
    model = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    pixels = channels_last(model, tmp_path / "bytes.onnx", kind=TensorProto.UINT8)
    with pytest.raises(SpecError, match=r"expected one input of float images.* the model has: pixels uint8 \("):
        compare(model, pixels)
