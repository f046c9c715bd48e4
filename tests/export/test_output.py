"""Where an export writes: the path that is meant, what is left of a trial, and what is moved at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploykit.atomic import alone_in
from deploykit.errors import OutputError, UsageError
from deploykit.export.output import check_writable, output_path, publish, staging_dir
from deploykit.runtime.engine_record import parity_report_path
from deploykit.runtime.verified import digests, onnx_doubt


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


def test_a_trial_finds_what_may_not_be_replaced(tmp_path: Path) -> None:
    out, report = tmp_path / "m.onnx", tmp_path / "m.onnx.parity.json"
    report.symlink_to("elsewhere.json")
    with pytest.raises(OutputError, match=r"m\.onnx\.parity\.json: it is a link to elsewhere\.json; give that path"):
        check_writable(out, (report,))
    report.unlink()
    os.mkfifo(out)
    with pytest.raises(OutputError, match=r"m\.onnx: it is a pipe; choose another path"):
        check_writable(out, (report,))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    with pytest.raises(OutputError, match="File name too long"):
        check_writable(tmp_path / f"{'x' * 245}.onnx", (tmp_path / f"{'x' * 245}.onnx.parity.json",))


def test_folders_are_made_only_for_a_result(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "m.onnx"
    with pytest.raises(UsageError), staging_dir(out) as folder:  # noqa: PT012
        (folder / out.name).write_bytes(b"1")
        assert [p.name for p in tmp_path.iterdir()] == [folder.name]
        raise UsageError("refused")
    assert list(tmp_path.iterdir()) == []
    with staging_dir(out) as folder:
        for name in (out.name, f"{out.name}.data", f"{out.name}.parity.json"):
            (folder / name).write_bytes(b"1")
        publish(folder, out, parts=(data_of(out),), reports=(parity_report_path(out),))
    assert sorted(p.name for p in out.parent.iterdir()) == ["m.onnx", "m.onnx.data", "m.onnx.parity.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def data_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.data")


def write_export(folder: Path, version: str, *, apart: bool) -> None:
    """An export of three files, or of two without ``apart``; the graph says with which weights it belongs."""
    file = folder / "m.onnx"
    file.write_text(f"graph {version}{' and data' if apart else ''}")
    if apart:
        data_of(file).write_text(f"data {version}")
    parity_report_path(file).write_text(json.dumps(digests(file, (data_of(file),))))


KILLED = """
import os, signal, sys
from pathlib import Path
from deploykit.export.output import publish

def killed(method):
    def step(self, *args, **kwargs):
        if not int(sys.argv[3]) - len(steps):
            os.kill(os.getpid(), signal.SIGKILL)
        steps.append(self.name)
        return method(self, *args, **kwargs)
    return step

steps = []
Path.replace, Path.unlink = killed(Path.replace), killed(Path.unlink)
out = Path(sys.argv[2])
publish(
    Path(sys.argv[1]), out,
    parts=(out.with_name(out.name + ".data"),), reports=(out.with_name(out.name + ".parity.json"),)
)
print(len(steps))
"""


@pytest.mark.parametrize("before", [None, False, True], ids=["nothing", "one", "with-data"])
@pytest.mark.parametrize("after", [False, True], ids=["one", "with-data"])
def test_a_kill_at_any_step_leaves_no_files_that_differ(
    before: bool | None, after: bool, root: Path, tmp_path: Path
) -> None:
    """Whatever is left: a report is about its file, and a graph lies beside its own weights."""
    for kill in range(20):
        folder = tmp_path / str(kill)
        (folder / "new").mkdir(parents=True)
        if before is not None:
            write_export(folder, "old", apart=before)
        write_export(folder / "new", "new", apart=after)
        command = [sys.executable, "-c", KILLED, str(folder / "new"), str(folder / "m.onnx"), str(kill)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        out = folder / "m.onnx"
        if out.exists():
            text = out.read_text()
            if text.endswith(" and data"):
                assert data_of(out).read_text() == text.replace("graph", "data").removesuffix(" and data")
            assert onnx_doubt(out) in ("", NO_REPORT), kill
        else:
            assert not parity_report_path(out).exists()
        if done.returncode == 0:
            assert done.stdout.strip() == str(kill)
            break
        assert done.returncode == -9, done.stderr
    assert kill > 2
    assert out.read_text().startswith("graph new")
    assert onnx_doubt(out) == ""
    assert data_of(out).exists() == after


NO_REPORT = "there is no parity report beside it: its numbers are not verified"


KILLED_IN_A_NEW_FOLDER = """
import os, signal, sys
from pathlib import Path
from deploykit.export.output import publish, staging_dir

def killed(method):
    def step(self, *args, **kwargs):
        if len(steps) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        steps.append(self.name)
        return method(self, *args, **kwargs)
    return step

steps = []
out = Path(sys.argv[1])
Path.mkdir, Path.rename = killed(Path.mkdir), killed(Path.rename)
with staging_dir(out) as folder:
    for name in ("m.onnx", "m.onnx.data", "m.onnx.parity.json"):
        (folder / name).write_bytes(b"1")
    publish(folder, out, parts=(folder / "m.onnx.data",), reports=(folder / "m.onnx.parity.json",))
"""
EXPORTED = ["m.onnx", "m.onnx.data", "m.onnx.parity.json"]


def test_a_kill_while_a_new_folder_appears_leaves_all_of_it_or_none(root: Path, tmp_path: Path) -> None:
    """And nothing above it, after the next start."""
    for kill in range(20):
        out = tmp_path / str(kill) / "a" / "b" / "m.onnx"
        (tmp_path / str(kill)).mkdir()
        command = [sys.executable, "-c", KILLED_IN_A_NEW_FOLDER, str(out)]
        done = subprocess.run([*command, str(kill)], cwd=root, capture_output=True, text=True, check=False)
        whole = (tmp_path / str(kill) / "a").exists()
        assert (sorted(p.name for p in out.parent.iterdir()) if whole else EXPORTED) == EXPORTED
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        subprocess.run([*command, "99"], cwd=root, check=True)
        assert [p.name for p in (tmp_path / str(kill)).iterdir()] == ["a"]
    assert kill > 4
    assert whole


def test_two_exports_to_one_path_at_once_are_both_whole(tmp_path: Path) -> None:
    """Whichever is the last one, its graph has its own weights and its own report."""
    out, failed = tmp_path / "m.onnx", []

    def export(version: str) -> None:
        try:
            for i in range(8):
                with staging_dir(out) as folder:
                    write_export(folder, version, apart=i % 3 > 0)
                    publish(folder, out, parts=(data_of(out),), reports=(parity_report_path(out),))
                with alone_in(tmp_path):
                    text = out.read_text()
                    assert onnx_doubt(out) == ""
                    assert data_of(out).exists() == text.endswith(" and data")
                    if data_of(out).exists():
                        assert data_of(out).read_text() == text.replace("graph", "data").removesuffix(" and data")
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=export, args=(version,)) for version in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {p.name for p in tmp_path.iterdir()} in ({"m.onnx", "m.onnx.parity.json"}, set(EXPORTED))
