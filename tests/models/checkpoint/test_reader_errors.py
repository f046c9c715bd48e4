"""What the checkpoint reader refuses, and in which words."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.errors import CheckpointError, NotFoundError, UnsafeCheckpointError
from deploykit.models.checkpoint.reader import read_checkpoint


def torch_saved(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    torch_saved({"w": torch.ones(1)}, tmp_path / "yolov7-tiny.pt")
    with pytest.raises(NotFoundError, match=r"no such file; did you mean yolov7-tiny\.pt\?"):
        read_checkpoint(tmp_path / "yolov7_tiny.pt")
    with pytest.raises(NotFoundError, match=r"no such file in .*; check the path"):
        read_checkpoint(tmp_path / "completely different")
    with pytest.raises(NotFoundError, match="is not there either"):
        read_checkpoint(tmp_path / "no folder" / "a.pt")


@pytest.mark.parametrize("path", ["a\0b.pt", "x" * 5000])
def test_a_path_that_cannot_exist_is_our_own_error(path: str) -> None:
    with pytest.raises((NotFoundError, CheckpointError)):
        read_checkpoint(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it is a folder; expected the checkpoint file itself"):
        read_checkpoint(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(CheckpointError, match="a device or a pipe"):
        read_checkpoint(tmp_path / "pipe.pt")


def test_a_file_that_may_not_be_read_is_our_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = torch_saved({"w": torch.ones(1)}, tmp_path / "a.pt")
    if os.access(path, os.R_OK) and os.geteuid() == 0:  # root may read everything

        def forbidden(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", forbidden)
    path.chmod(0)
    with pytest.raises(CheckpointError, match=r"a\.pt: it cannot be read \(Permission denied\); check its permissions"):
        read_checkpoint(path)


def test_a_checkpoint_without_weights_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no weights: expected .* found 'epoch', 'names'"):
        read_checkpoint(torch_saved({"epoch": 1, "names": ["a"]}, tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="found a list"):
        read_checkpoint(torch_saved([1, 2], tmp_path / "b.pt"))


def test_weights_of_a_kind_that_is_not_read_are_named(tmp_path: Path) -> None:
    sparse = torch.eye(2).to_sparse()
    with pytest.raises(CheckpointError, match=r"'s' is a sparse tensor \(.*\), which is not read; save it dense"):
        read_checkpoint(torch_saved({"w": torch.ones(1), "s": sparse}, tmp_path / "a.pt"))


def test_a_torchscript_archive_is_refused_as_a_program(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "a.torchscript"))
    with pytest.raises(CheckpointError, match="TorchScript program"):
        read_checkpoint(tmp_path / "a.torchscript")


def test_a_changed_weight_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = torch_saved({"w": torch.arange(1000.0)}, tmp_path / "a.pt")
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(500.0, 503.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        read_checkpoint(path)


def test_a_file_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    with pytest.raises(UnsafeCheckpointError, match=r"a\.pt: it names (posix|nt)\.system"):
        read_checkpoint(torch_saved({"w": torch.ones(1), "x": Attack()}, tmp_path / "a.pt"))
    assert not (tmp_path / "ran").exists()
