"""The record beside an engine, and the profiles in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import ArtefactError, SpecError
from deploykit.runtime.engine_record import (
    FLAVOURS,
    BuilderOptions,
    EngineRecord,
    Profile,
    build_log_path,
    find_onnx_source,
    read_record,
    reference_values_path,
)
from tests.cell_model import cell_spec


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    sides = [sorted(draw(st.tuples(*[st.integers(1, 2000)] * 3))) for _ in range(4)]
    least, best, most = zip(*sides, strict=True)
    return Profile(least, best, most)


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"), exclude_characters="/\\:"), max_size=8
)


@st.composite
def records(draw: st.DrawFn) -> EngineRecord:
    return EngineRecord(
        flavour=draw(st.sampled_from(sorted(FLAVOURS))),  # type: ignore[arg-type]
        version=draw(TEXT),
        spec=cell_spec(dynamic=draw(st.booleans())),
        onnx=draw(TEXT) + ".onnx",
        onnx_sha256=draw(TEXT),
        size=draw(st.integers(0, 2**40)),
        gpu=draw(TEXT),
        profiles=tuple(draw(st.lists(profiles(), max_size=2))),
        options=BuilderOptions(
            workspace=draw(st.none() | st.integers(1, 2**40)),
            tf32=draw(st.booleans()),
            compute_capabilities=tuple(draw(st.lists(st.sampled_from(("sm89", "sm120")), max_size=2))),
        ),
        precision=draw(st.dictionaries(TEXT, st.integers(0, 900), max_size=3)),
        verified=draw(st.booleans()),
    )


@given(records())
def test_a_record_survives_a_round_trip_through_json(record: EngineRecord) -> None:
    assert EngineRecord.from_json(record.to_json()) == record


def test_a_profile_stands_in_the_file_as_the_first_version_wrote_it() -> None:
    profile = Profile((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    record = EngineRecord("tensorrt-rtx", "1.7", cell_spec(), "model.onnx", "00", profiles=(profile,))
    written = {"least": [1, 3, 8, 8], "best": [2, 3, 8, 8], "most": [4, 3, 8, 8]}
    assert json.loads(record.to_json())["profiles"] == [written]
    assert EngineRecord.from_json(record.to_json()).profiles == (profile,)
    with pytest.raises(SpecError, match=r"record\.profiles\[0\]"):
        EngineRecord.from_json('{"flavour": "tensorrt", "profiles": [1]}')


@given(profiles(), st.data())
def test_a_profile_covers_the_shapes_in_its_range(profile: Profile, data: st.DataObject) -> None:
    inside = tuple(data.draw(st.integers(a, b)) for a, b in zip(profile.min, profile.max, strict=True))
    assert profile.covers(inside)
    axis = data.draw(st.integers(0, 3))
    outside = [*inside]
    outside[axis] = data.draw(st.sampled_from((profile.min[axis] - 1, profile.max[axis] + 1)))
    assert not profile.covers(tuple(outside))
    assert not profile.covers(inside[:3])


@pytest.mark.parametrize(
    "shapes", [((1, 3), (1,), (1, 3)), ((2, 3), (1, 3), (4, 3)), ((1, 3), (4, 3), (2, 3)), ((0, 3), (1, 3), (1, 3))]
)
def test_a_profile_whose_shapes_decrease_is_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(SpecError, match="profile"):
        Profile(*shapes)


def test_files_beside_an_engine_carry_its_full_name(tmp_path: Path) -> None:
    engine = tmp_path / "model.trt"
    record = EngineRecord("tensorrt-rtx", "1.7", cell_spec(), "model.onnx", "00")
    record.write(engine)
    assert [p.name for p in tmp_path.iterdir()] == ["model.trt.json"]
    assert read_record(engine) == record
    assert reference_values_path(engine).name == "model.trt.parity.npz"
    assert build_log_path(engine).name == "model.trt.log"
    assert read_record(tmp_path / "other.trt") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be parsed"),
        ("[]", "record must be an object"),
        ('{"format": 2}', "expected an engine record of format 1 or older, got format 2: update deploykit"),
        ('{"format": 1, "flavour": "tensorflow"}', "record.flavour must be one of tensorrt, tensorrt-rtx"),
        ('{"flavour": "tensorrt"}', "missing 4 required"),
        ('{"flavour": "tensorrt", "precision": {"fp32": "x"}}', r"record.precision.fp32 must be of type int, got 'x'"),
        ('{"flavour": "tensorrt", "precision": []}', "record.precision must be an object"),
        ('{"flavor": "tensorrt"}', "record has no field 'flavor'"),
    ],
)
def test_an_invalid_record_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        EngineRecord.from_json(text)


def written(**fields: object) -> str:
    record = EngineRecord("tensorrt", "10.16", cell_spec(), "m.onnx", "00", precision={"fp32": 1})
    return json.dumps({**record.to_dict(), **fields})


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc/passwd", "../../../etc/passwd", "a/..", "m.onnx/", "a\x00b"]
)
def test_a_record_never_leads_to_another_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    (tmp_path / "outside.onnx").touch()
    engine = folder / "m.trt"
    (folder / "m.trt.json").write_text(written(onnx=name))
    with pytest.raises(
        SpecError, match=r"m\.trt\.json: the record's onnx must be the name of a file beside the engine"
    ):
        read_record(engine)
    assert find_onnx_source(engine) is None
    (folder / "m.onnx").touch()
    assert find_onnx_source(engine) == folder / "m.onnx"  # by the engine's own name


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpu": "\x1b[2J"}, r"record\.gpu must have no control characters, got '\\x1b'"),
        ({"unverified": "x" * 2000}, r"record\.unverified must have at most 1000 characters"),
        ({"precision": {"\x07": 1}}, "a name in the record must have no control characters"),
        ({"size": 10**400}, r"record\.size must be a number of at most 64 bits"),
        ({"format": -1}, "format 1 or older, got format -1"),
        ({"spec": {"task": "detect"}}, r"record\.spec: missing 2 required"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        EngineRecord.from_json(written(**fields))


@pytest.mark.parametrize("data", [b"\xff{}", b"[" * 10_000, b'{"a": 1, "a": 2}'])
def test_a_record_that_is_damaged_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.trt.json").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"cannot read the engine record .*m\.trt\.json \(.*\): copy it again"):
        read_record(tmp_path / "m.trt")
