"""Safetensors in shards: an index, a folder or any of them gives the whole, and nothing leaves the folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deploykit.cli import main
from deploykit.errors import CheckpointError, NotFoundError, UnsafeCheckpointError
from deploykit.models.checkpoint.reader import read_checkpoint
from tests.narrow_dense import narrow_dense

NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.arange(4).half(), "c": torch.ones(3)}
PLACES = dict(zip(TENSORS, (NAMES[0], NAMES[1], NAMES[0]), strict=True))


def write(folder: Path, index: Any = None, tensors: dict[str, torch.Tensor] = TENSORS, places: Any = None) -> Path:
    """Two shards, and their index unless it is False."""
    places = places or PLACES
    for name in NAMES:
        save_file({key: tensor for key, tensor in tensors.items() if places[key] == name}, folder / name)
    if index is not False:
        said = {"metadata": {"total_size": 44}, "weight_map": places} if index is None else index
        (folder / INDEX).write_text(said if isinstance(said, str) else json.dumps(said))
    return folder


@pytest.mark.parametrize("given", ["", INDEX, *NAMES])
@pytest.mark.parametrize("index", [None, False])
def test_each_way_in_gives_the_whole(tmp_path: Path, given: str, index: Any) -> None:
    if index is False and given in ("", INDEX):
        pytest.skip("without an index, a shard is the way in")
    found = read_checkpoint(write(tmp_path, index) / given)
    assert found.state_dict.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert torch.equal(found.state_dict[key], tensor)
        assert found.state_dict[key].dtype == tensor.dtype
    whole = b"".join((tmp_path / name).read_bytes() for name in NAMES)
    assert (found.format, found.size, found.sha256) == ("safetensors", len(whole), hashlib.sha256(whole).hexdigest())
    said = (
        "it is one of 2 shards: all of them are read" if given in NAMES else f"the shards that {INDEX} lists are read"
    )
    assert said in found.notes


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    found = read_checkpoint(tmp_path)
    assert found.state_dict.keys() == TENSORS.keys()
    assert "model.safetensors of the folder is read" in found.notes
    save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"it has model\.safetensors, other\.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["../model-00001-of-00002.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", "c.pt", ""]
)
def test_an_index_never_leads_to_another_place(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    write(tmp_path)
    write(folder, {"weight_map": {**PLACES, "a.weight": name}})
    with pytest.raises(UnsafeCheckpointError, match="which is no safetensors file beside it"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ("{", "the index of the shards is not JSON"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ({}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": {"a": 1}}, "names a file that is no text"),
        ({"weight_map": PLACES | {"d": NAMES[1]}}, r"1 tensors of the index are in no shard \(d\)"),
        ({"weight_map": PLACES | {"c": NAMES[1]}}, rf"the tensor c is in {NAMES[0]}, and the index says {NAMES[1]}"),
        ({"weight_map": {k: v for k, v in PLACES.items() if k != "c"}}, "the index does not list it"),
        ({"weight_map": PLACES | {"d": "model-00003-of-00003.safetensors"}}, "1 of its 3 shards are not in"),
        ({"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(300)}}, "names 300 files, the limit is 256"),
        ('{"weight_map": {' + " " * (4 << 20) + "}}", "it is longer than 4,194,304 bytes"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path: Path, index: Any, told: str) -> None:
    with (
        pytest.raises(CheckpointError, match=told)
        if "shards are not" not in told
        else pytest.raises(NotFoundError, match=told)
    ):
        read_checkpoint(write(tmp_path, index) / INDEX)


def test_a_shard_that_is_missing_or_not_of_the_set(tmp_path: Path) -> None:
    write(tmp_path, False)
    (tmp_path / NAMES[1]).unlink()
    with pytest.raises(NotFoundError, match=rf"1 of its 2 shards are not in .* \({NAMES[1]}\): get them too"):
        read_checkpoint(tmp_path / NAMES[0])
    save_file({"a.weight": torch.ones(1)}, tmp_path / NAMES[1])
    with pytest.raises(CheckpointError, match=r"the tensor a\.weight is in two of its shards"):
        read_checkpoint(tmp_path / NAMES[0])
    with pytest.raises(UnsafeCheckpointError, match="one of 99,999 shards"):
        read_checkpoint(tmp_path / "m-00001-of-99999.safetensors")
    with pytest.raises(NotFoundError, match="no such file"):
        read_checkpoint(tmp_path / INDEX)


@pytest.mark.usefixtures("one_thread")
def test_every_command_takes_a_folder(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = narrow_dense("resnet20-cifar10").module.state_dict()
    folder = tmp_path / "net"
    folder.mkdir()
    write(folder, None, state, {key: NAMES[i % 2] for i, key in enumerate(state)})
    assert main(["export", "--weights", str(folder), "--no-check"]) == 0
    assert (tmp_path / "net.onnx").is_file()
    assert main(["compare", str(folder), str(tmp_path / "net.onnx")]) == 0
    assert main(["inspect", str(folder / INDEX)]) == 0
    image = str(root / "deploykit/assets/apollo11_crew.jpg")
    assert main(["predict", "--model", str(folder), "--source", image]) == 0
    assert main(["export", "--weights", str(folder / INDEX), "--no-check"]) == 0
    assert main(["export", "--weights", str(folder / NAMES[1]), "--no-check"]) == 0
    assert (folder / "model.onnx").is_file()
    assert "one of 2 shards" in capsys.readouterr().out
