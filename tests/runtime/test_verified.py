"""Whether a file is the one that was verified."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deploykit.errors import ArtefactError, UsageError
from deploykit.facade import load, open_session
from deploykit.runtime.engine_record import EngineRecord, parity_report_path, reference_values_path, second_stage_path
from deploykit.runtime.verified import check_verified, digests, engine_doubt, onnx_doubt, sha256, size_doubt
from tests.cell_model import cell_spec, write_cell_model


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An ONNX file with a part and its report."""
    file = write_cell_model(tmp_path / "m.onnx", spec=cell_spec())
    part = tmp_path / "m.onnx.data"
    part.write_bytes(b"weights")
    parity_report_path(file).write_text(json.dumps({**digests(file, (part, tmp_path / "none")), "ok": True}))
    return file


def flip_bit(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_whole_export_is_the_one_that_was_verified(export: Path) -> None:
    assert onnx_doubt(export) == ""
    check_verified(export)
    about = json.loads(parity_report_path(export).read_text())
    assert about["sha256"] == sha256(export)
    assert about["parts"] == {"m.onnx.data": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"}
    with open_session(export, verify=True), load(export, verify=True):
        pass


@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.data"])
def test_one_flipped_bit_is_found(name: str, export: Path) -> None:
    flip_bit(export.with_name(name), -3)
    expected = f"(m.onnx.parity.json) is of another file: {name} has changed since it was verified, or was replaced"
    assert expected in onnx_doubt(export)
    for opened in (open_session, load):
        with pytest.raises(ArtefactError, match="is not known to be verified: the parity report beside it"):
            opened(export, verify=True)


def test_another_size_is_found_whenever_a_file_is_opened(export: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert size_doubt(export) == ""
    about = json.loads(parity_report_path(export).read_text())
    assert about["size"] == export.stat().st_size + len(b"weights")
    flip_bit(export.with_name("m.onnx.data"), -3)
    assert size_doubt(export) == ""  # of the same size: only hashes tell
    export.with_name("m.onnx.data").write_bytes(b"weights and more")
    doubt = f"{export} is not the file that was verified: its parity report is of {about['size']:,} bytes"
    with open_session(export) as session:
        assert [note for note in session.notes if note.startswith(doubt)]
    assert doubt in caplog.text


@pytest.mark.parametrize(
    "text", [None, "{", "[]", "{}", '{"size": "7"}', '{"size": 7, "parts": 7}', '{"size": 7, "parts": {"\\u0000": ""}}']
)
def test_a_report_without_a_size_raises_no_doubt_about_it(text: str | None, export: Path) -> None:
    parity_report_path(export).unlink()
    if text is not None:
        parity_report_path(export).write_text(text)
    assert size_doubt(export) == ""


def test_a_part_that_is_gone_is_named(export: Path) -> None:
    export.with_name("m.onnx.data").unlink()
    assert onnx_doubt(export).endswith("is about a file with m.onnx.data, which is missing")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no parity report beside it: its numbers are not verified"),
        ("{", "cannot be read: export again"),
        ("[" * 100_000, "cannot be read: export again"),
        ("[]", "does not say which file it is about: export again"),
        ('{"ok": true}', "does not say which file it is about: export again"),
        ('{"sha256": 7}', "does not say which file it is about: export again"),
        ('{"sha256": "0", "parts": []}', "m.onnx has changed since it was verified"),
        ('{"sha256": "S", "parts": {"../m": "0"}}', "names '../m', which does not lie beside it"),
        ('{"sha256": "S", "parts": {"": "0"}}', "names '', which does not lie beside it"),
    ],
)
def test_a_report_that_says_nothing_of_this_file(text: str | None, said: str, export: Path) -> None:
    report = parity_report_path(export)
    report.unlink()
    if text is not None:
        report.write_text(text.replace("S", sha256(export)))
    assert said in onnx_doubt(export)
    with pytest.raises(ArtefactError):
        check_verified(export)


def test_a_renamed_pair_is_still_one(export: Path) -> None:
    renamed = export.with_name("n.onnx")
    parity_report_path(export).rename(parity_report_path(renamed))
    export.rename(renamed)
    check_verified(renamed)


@pytest.fixture
def engine(tmp_path: Path) -> tuple[Path, EngineRecord]:
    """An engine of two stages with its record."""
    file = tmp_path / "m.trt"
    file.write_bytes(b"plan")
    rest = second_stage_path(file)
    rest.write_bytes(b"rest")
    stages = {".rest.onnx": sha256(rest)}
    record = EngineRecord("tensorrt", "10.0", cell_spec(), "m.onnx", "0" * 64, size=4, verified=True)
    record = replace(record, sha256=sha256(file), second_stage=stages)
    record.write(file)
    return file, record


def test_an_engine_is_bound_to_its_record(engine: tuple[Path, EngineRecord]) -> None:
    file, record = engine
    check_verified(file)
    assert EngineRecord.from_json(record.to_json()) == record
    second_stage_path(file).write_bytes(b"rust")
    assert "(m.trt.json) is of another file: m.trt.rest.onnx has changed" in engine_doubt(file, record)
    second_stage_path(file).write_bytes(b"rest")
    file.write_bytes(b"plam")  # of the same size
    with pytest.raises(ArtefactError, match=r"is of another file: m\.trt has changed since it was verified"):
        open_session(file, verify=True)


def test_what_a_record_does_not_say(engine: tuple[Path, EngineRecord]) -> None:
    file, record = engine
    assert "has no hash of the engine" in engine_doubt(file, replace(record, sha256=""))
    assert "knows of no second stage, but m.trt.rest.onnx lies" in engine_doubt(file, replace(record, second_stage={}))
    assert "which does not lie beside it" in engine_doubt(file, replace(record, second_stage={"/../x": "0"}))
    assert "second_stage" not in replace(record, second_stage={}).to_dict()  # as older versions wrote it
    unverified = replace(record, verified=False, unverified="built, not run: no GPU")
    unverified.write(file)
    with pytest.raises(ArtefactError, match="its numbers are not verified: built, not run: no GPU"):
        check_verified(file)
    reference_values_path(file).write_bytes(b"")  # with them, loading compares
    check_verified(file)
    file.with_name("m.trt.json").unlink()
    with pytest.raises(ArtefactError, match=r"there is no record \(m\.trt\.json\) beside it"):
        check_verified(file)


def test_a_checkpoint_has_nothing_to_verify(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"")
    with pytest.raises(UsageError, match="is a checkpoint, which exports are verified against"):
        open_session(tmp_path / "m.pt", verify=True)
