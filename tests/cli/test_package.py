"""``deploykit package``: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploykit.cli import main
from deploykit.errors import OutputError, UsageError
from tests.cell_model import cell_spec, write_cell_model


def test_a_repository_of_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write_cell_model(tmp_path / f"{name}.onnx", spec=cell_spec()) for name in ("a", "b")]
    folder = tmp_path / "repository"
    words = ["package", str(files[0]), f"other={files[1]}", "--triton", str(folder)]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == {"a": str(files[0]), "other": str(files[1])}
    assert {Path(entry).name for entry in document["written"]} == {entry.name for entry in folder.iterdir()}
    assert {"a", "a_network", "other", "other_postprocess"} <= {entry.name for entry in folder.iterdir()}
    assert main(words) == OutputError.exit_code
    assert "exists: choose another folder, or pass --force" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--max-batch", "2"]) == 0


def test_a_target_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_cell_model(tmp_path / "a.onnx", spec=cell_spec())
    assert main(["package", str(file)]) == UsageError.exit_code
    assert "--triton" in capsys.readouterr().err


def test_every_target_is_written_and_replaced_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write_cell_model(tmp_path / "Best.onnx", spec=cell_spec()))
    targets = {
        "image": ["--docker", "image", "--max-batch", "4"],
        "k.yaml": ["--kserve", "k.yaml", "--image", "i"],
        "t.yaml": ["--kserve", "t.yaml", "--storage-uri", "s3://bucket/repository"],
        "d.service": ["--systemd", "d.service", "--models-at", "/data", "--device", "cuda"],
    }
    for name, (target, _, *options) in targets.items():
        words = ["package", file, target, str(tmp_path / name), *options]
        assert main(words) == 0, name
        assert capsys.readouterr().out.startswith(str(tmp_path / name))
        assert main(words) == OutputError.exit_code
        assert main([*words, "--force"]) == 0
        capsys.readouterr()
    assert "name: best\n" in (tmp_path / "k.yaml").read_text()
    assert '"--max-batch", "4"' in (tmp_path / "image" / "Dockerfile").read_text()
    unit = (tmp_path / "d.service").read_text()
    assert "Best=/data/Best/Best.onnx" in unit
    assert "--device cuda" in unit
    texts = [
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".onnx"
    ]
    assert not [text for text in texts if str(tmp_path) in text]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--docker", "x", "--image", "i"], "--image is for --kserve, not for --docker"),
        (["--systemd", "x", "--workers", "3"], "--workers is for --triton, not for --systemd"),
        (["--triton", "x", "--name", "n"], "--name is for --docker and --kserve, not for --triton"),
        (["--kserve", "x"], "name the image of deploykit's server (--image)"),
        (["--triton", "x", "--max-batch", "0"], "max_batch must be at least 1, got 0"),
        (["--systemd", "x", "--max-batch", "0"], "max_batch must be at least 1, got 0"),
    ],
)
def test_options_of_another_target_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_cell_model(tmp_path / "a.onnx", spec=cell_spec())
    assert main(["package", str(file), *words]) == UsageError.exit_code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_file_of_the_folder_does_not_choose_what_a_server_will_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_cell_model(tmp_path / "a.onnx", spec=cell_spec())
    (tmp_path / "deploykit.toml").write_text('[package]\nimage = "registry.example/a:1"\nmodels-at = "/data"\n')
    words = ["package", str(file), "--kserve", "k.yaml"]
    assert main(words) == UsageError.exit_code
    assert "image" in capsys.readouterr().err
    assert not (tmp_path / "k.yaml").exists()
    (tmp_path / "deploykit.toml").write_text('[package]\nimage = "registry.example/a:1"\n')
    assert main([*words, "--config", "deploykit.toml"]) == 0
    assert "image: registry.example/a:1\n" in (tmp_path / "k.yaml").read_text()
