"""Where an export writes: the path that is meant, what is left of a trial, and what is moved at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.errors import OutputError, UsageError
from deploykit.export.output import check_writable, output_path, publish, staging_dir


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        (None, "weights/m.onnx"),
        ("there", "there/m.onnx"),
        ("new/", "new/m.onnx"),
        ("other.onnx", "other.onnx"),
    ],
)
def test_the_path_that_is_meant(
    out: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert output_path(Path("weights/m.onnx"), out, (".onnx",)) == Path(expected)


def test_a_name_with_another_suffix_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ends in \.trt or \.engine, or a folder; got m\.onnx"):
        output_path(Path("m.trt"), "m.onnx", (".trt", ".engine"))


def test_a_trial_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    check_writable(tmp_path / "a" / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(OutputError, match="it is a folder"):
        check_writable(tmp_path / "a")


def test_folders_stay_only_with_a_result_in_them(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "m.onnx"
    with pytest.raises(UsageError), staging_dir(out) as folder:  # noqa: PT012
        (folder / out.name).write_bytes(b"1")
        raise UsageError("refused")
    assert list(tmp_path.iterdir()) == []
    with staging_dir(out) as folder:
        for name in (out.name, f"{out.name}.data", f"{out.name}.parity.json"):
            (folder / name).write_bytes(b"1")
        publish(folder, out, companions=())
    assert sorted(p.name for p in out.parent.iterdir()) == ["m.onnx", "m.onnx.data", "m.onnx.parity.json"]
