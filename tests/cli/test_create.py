"""``deploykit create``: a checkpoint for trying things out, marked as random."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit.cli import main
from deploykit.errors import CheckpointError, DeployError, DiskFullError, NotFoundError, OutputError, UsageError
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.sessions.torch_module import open_torch_session
from deploykit.models.checkpoint.reader import read_checkpoint


def tensors(file: Path) -> str:
    """A hash of every name and value; the bytes of the zip file itself depend on torch."""
    digest = hashlib.sha256()
    for name, tensor in read_checkpoint(file).state_dict.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"%d" % int(tensor))
    return digest.hexdigest()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("create") / "tiny.pt"
    assert main(["create", "yolov7-tiny", "--classes", "3", "--out", str(file)]) == 0
    return file


def create(*words: object) -> int:
    return main(["create", *map(str, words)])


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same, other = tmp_path / "same.pt", tmp_path / "other.pt"
    torch.manual_seed(7)  # the state of torch's generator must not matter
    before = torch.random.get_rng_state()
    assert create("yolov7_tiny", "--classes", 3, "--out", same) == 0
    assert (torch.random.get_rng_state() == before).all()
    assert create("yolov7-tiny", "--classes", 3, "--seed", 1, "--out", other) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{same}: yolov7-tiny with random weights (seed 0); predictions are meaningless"
    assert out[1].startswith(f"{other}: yolov7-tiny with random weights (seed 1)")
    assert tensors(same) == tensors(tiny) != tensors(other)


def test_the_checkpoint_holds_names_seed_and_half_precision_weights(tiny: Path) -> None:
    found = read_checkpoint(tiny)
    assert found.names == ("class 0", "class 1", "class 2")
    assert found.metadata["random_seed"] == 0
    floating = {t.dtype for t in found.state_dict.values() if t.is_floating_point()}
    assert floating == {torch.float16}


def test_inspect_reports_that_the_weights_are_random(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny)]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    facts = dict(line.split(maxsplit=1) for line in lines)
    assert (facts["model"], facts["task"], facts["family"]) == ("yolov7-tiny", "detect", "YOLOv7")
    assert facts["note"] == "random weights (seed 0): predictions are meaningless"


def test_the_output_depends_on_the_image_and_is_finite(tiny: Path) -> None:
    session, spec = open_torch_session(tiny)
    fed = make_parity_inputs(spec).images
    a, b = (session.run({"images": fed[label]})["output"] for label in ("apollo11_crew.jpg", "noise (seed 0)"))
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    assert np.median(np.abs(a - b)[..., :4].max(-1)) > 0.1  # pixels; the parity tolerance is a hundredth of it
    scores = a[..., 4]
    assert 0 < scores.mean() < 0.1  # few anchors are confident


def test_the_default_path_is_the_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert create("yolov7_tiny") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["yolov7-tiny.pt"]
    assert shlex.split(capsys.readouterr().out)[0] == "yolov7-tiny.pt:"


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["yolov7-tny", "--out", "x.pt"], NotFoundError, "there is no model 'yolov7-tny': did you mean yolov7-tiny?"),
        (["yolov7-tiny", "--out", "x.onnx"], UsageError, "ends in .pt or .pth, got x.onnx"),
        (["yolov7-tiny", "--out", "folder"], UsageError, "ends in .pt or .pth, got folder"),
        (["yolov7-tiny", "--out", "x.pt", "--classes", "0"], DeployError, "class"),
        (["yolov7-tiny", "--out", "x.pt", "--classes", "-1"], DeployError, "class"),
        (["yolov7-tiny", "--out", "x.pt", "--classes", "1000000"], CheckpointError, "class"),
        (["yolov7-tiny", "--out", "x.pt", "--seed", str(2**70)], UsageError, "seed"),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(
    words: list[str], error: type[DeployError], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status = create(*words)
    assert status in {error.exit_code, *(e.exit_code for e in error.__subclasses__())}
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("deploykit: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_by_force(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trained.pt"
    out.write_bytes(b"trained for weeks")
    assert create("yolov7-tiny", "--out", out) == OutputError.exit_code
    assert "random weights would replace it: choose another --out, or pass --force" in capsys.readouterr().err
    assert out.read_bytes() == b"trained for weeks"
    assert create("yolov7-tiny", "--classes", 3, "--force", "--out", out) == 0
    assert tensors(out) == tensors(tiny)


def test_a_full_disk_leaves_the_old_file(
    tiny: Path, tmp_path: Path, size_limit: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "old.pt"
    out.write_bytes(b"old")
    assert create("yolov7-tiny", "--force", "--out", out) == DiskFullError.exit_code
    assert capsys.readouterr().err.startswith(f"deploykit: cannot write {out}: ")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"old.pt": b"old"}
