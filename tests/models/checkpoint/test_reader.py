"""The checkpoint reader against torch, safetensors and numpy, on files made here."""

from __future__ import annotations

import collections
import hashlib
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from deploykit.models.checkpoint.reader import read_checkpoint

ROOT = Path(__file__).resolve().parents[3]
FORMATS: dict[str, dict[str, Any]] = {
    "torch-zip": {},
    "torch-zip, protocol 4": {"pickle_protocol": 4},
    "torch-legacy": {"_use_new_zipfile_serialization": False},
}
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.float8_e4m3fn),
)

NEW = (torch.uint16, torch.float8_e4m3fn)  # without a legacy form


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.register_buffer("table", torch.arange(6.0).view(2, 3))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_buffer("absent", None)
        self.register_parameter("nothing", None)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(4, 4)
        self.model = nn.Sequential(Block(4), Block(4), nn.Identity())
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.late.weight
        self.optional: nn.Module | None = nn.ReLU()
        self.optional = None
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.yaml = {"nc": 2, "anchors": [[1, 2], [3, 4]], "backbone": [[-1, 1, "Conv", [4, 3]]]}
        self.names = {1: "dog", 0: "cat"}
        self.stride = torch.tensor([8.0, 16.0, 32.0])
        self.shape = (1, 2.5, None, True, "x")
        self.device = torch.device("cpu")
        self.size = torch.Size([2, 3])
        self.function = torch.relu
        self.forward_hook = nn.functional.silu


def save(value: object, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert found[key].shape == tensor.shape, key
        pair = (t.contiguous().reshape(-1).view(torch.uint8) for t in (found[key], tensor))
        assert torch.equal(*pair), key


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("form", FORMATS)
def test_a_pickled_model_gives_torchs_own_state_dict(net: Net, form: str, tmp_path: Path) -> None:
    path = save({"model": net.half(), "epoch": 3}, tmp_path / "a.pt", **FORMATS[form])

    checkpoint = read_checkpoint(path)

    same(checkpoint.state_dict, net.state_dict())
    assert checkpoint.format == form.partition(",")[0]
    assert (checkpoint.entry, checkpoint.metadata) == ("model", {"epoch": 3})
    assert checkpoint.size == path.stat().st_size
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", FORMATS)
def test_a_state_dict_comes_back(net: Net, form: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(net.state_dict(), tmp_path / "a.pth", **FORMATS[form]))

    same(checkpoint.state_dict, net.state_dict())
    assert (checkpoint.entry, checkpoint.modules, checkpoint.yaml, checkpoint.names) == ("", (), None, None)


def test_modules_are_named_and_ordered_as_by_torch(net: Net, tmp_path: Path) -> None:
    modules = read_checkpoint(save({"model": net}, tmp_path / "a.pt")).modules

    named = dict(net.named_modules())
    assert [module.path for module in modules] == list(named)
    for module in modules:
        original = type(named[module.path])
        assert module.kind == f"{original.__module__}.{original.__qualname__}"


def test_facts_that_no_state_dict_holds(net: Net, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save({"model": net}, tmp_path / "a.pt"))
    modules = {module.path: module.attributes for module in checkpoint.modules}

    assert checkpoint.yaml == net.yaml
    assert checkpoint.names == ("cat", "dog")
    assert checkpoint.stride == (8, 16, 32)
    assert modules[""]["stride"] == [8.0, 16.0, 32.0]
    assert modules[""]["shape"] == (1, 2.5, None, True, "x")
    assert modules[""]["device"] == "cpu"
    assert modules[""]["size"] == (2, 3)
    assert not {"function", "_parameters", "optional"} & set(modules[""])
    assert modules["model.1.bn"]["eps"] == 1e-3
    assert modules["model.1.act"]["negative_slope"] == 0.1


@pytest.mark.parametrize(
    ("form", "dtype"),
    [(form, dtype) for form in FORMATS for dtype in DTYPES if form != "torch-legacy" or dtype not in NEW],
)
def test_every_type_of_element_comes_back(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        "w": torch.arange(7).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
    }

    same(read_checkpoint(save(tensors, tmp_path / "a.pt", **FORMATS[form])).state_dict, tensors)


@pytest.mark.parametrize("form", FORMATS)
def test_views_of_one_storage_stay_views_of_one(form: str, tmp_path: Path) -> None:
    base = torch.arange(24.0)
    views = {
        "all": base,
        "part": base[4:10],
        "steps": base[::3],
        "turned": base.view(4, 6).T,
        "spread": base[3].expand(2, 5),
        "same": base,
    }

    found = read_checkpoint(save(views, tmp_path / "a.pt", **FORMATS[form])).state_dict

    assert {key: tensor.tolist() for key, tensor in found.items()} == {k: v.tolist() for k, v in views.items()}
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1
    assert found["turned"].stride() == (1, 6)


def test_float32_converts_floats_alone_and_keeps_ties(net: Net, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save({"model": net.half()}, tmp_path / "a.pt"))

    converted = checkpoint.float32()

    assert converted["late.weight"] is converted["tied.weight"]
    assert converted["model.0.bn.num_batches_tracked"].dtype == torch.int64
    for key, tensor in converted.items():
        assert tensor.is_contiguous()
        assert torch.equal(tensor, net.state_dict()[key].float() if tensor.is_floating_point() else tensor)
    assert checkpoint.state_dict["late.weight"].dtype == torch.float16


@given(data=st.data())
def test_any_view_is_torchs_view(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = torch.arange(60.0)
    size = data.draw(st.lists(st.integers(0, 3), max_size=3))
    stride = data.draw(st.lists(st.integers(0, 7), min_size=len(size), max_size=len(size)))
    view = base.as_strided(size, stride, data.draw(st.integers(0, 15)))
    path = save({"w": view}, tmp_path_factory.getbasetemp() / "view.pt")

    found = read_checkpoint(path).state_dict["w"]

    assert found.tolist() == view.tolist()
    assert found.stride() == view.stride() or not view.numel()


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        ({"ema": {"w": 1}, "model": {"w": 2}}, "ema"),
        ({"ema": None, "model": {"w": 1}}, "model"),
        ({"ema": {"module": {"w": 1}, "updates": 3}, "model": {"w": 2}}, "ema.module"),
        ({"model": "resnet", "state_dict": {"w": 1}}, "state_dict"),
        ({"params": {"w": 2}, "params_ema": {"w": 1}}, "params_ema"),
        ({"params": {"w": 1}}, "params"),
        ({"w": 1}, ""),
    ],
)
def test_the_entry_that_holds_the_weights(content: dict[str, Any], entry: str, tmp_path: Path) -> None:
    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v if k == "updates" else tensors(v) for k, v in value.items()}
        return torch.tensor(float(value)) if isinstance(value, int) else value

    checkpoint = read_checkpoint(save(tensors(content), tmp_path / "a.pt"))

    assert checkpoint.entry == entry
    assert {key: tensor.item() for key, tensor in checkpoint.state_dict.items()} == {"w": 1.0}


@pytest.mark.parametrize("whole", [True, False], ids=["model", "state dict"])
def test_the_prefix_of_data_parallel_is_removed(net: Net, whole: bool, tmp_path: Path) -> None:
    wrapped = nn.DataParallel(net)
    content = wrapped if whole else {"state_dict": wrapped.state_dict()}

    checkpoint = read_checkpoint(save(content, tmp_path / "a.pt"))

    same(checkpoint.state_dict, net.state_dict())
    assert "DataParallel prefix 'module.' removed" in checkpoint.notes
    assert [module.path for module in checkpoint.modules] == (list(dict(net.named_modules())) if whole else [])
    assert checkpoint.names == (("cat", "dog") if whole else None)


def test_a_model_whose_part_is_called_module_keeps_its_names(tmp_path: Path) -> None:
    outer = nn.Module()
    outer.module = nn.Linear(2, 2)

    checkpoint = read_checkpoint(save({"model": outer}, tmp_path / "a.pt"))

    assert list(checkpoint.state_dict) == ["module.weight", "module.bias"]


def test_what_lies_beside_the_weights(net: Net, tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(net.parameters())
    sum(parameter.sum() for parameter in net.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    beside = {"hyp": {"lr0": 0.01}, "results": np.float64(0.5), "fitness": np.array([0.25]), "path": Path("a/b")}

    checkpoint = read_checkpoint(
        save({"model": net.double(), "optimizer": optimizer.state_dict(), **beside}, tmp_path / "a.pt")
    )

    assert checkpoint.metadata == {"hyp": {"lr0": 0.01}, "results": 0.5, "fitness": [0.25]}
    count = len(optimizer.state_dict()["state"]) * 3
    assert f"carries an optimizer state ({count} tensors): ignored" in checkpoint.notes
    assert "weights are float64" in checkpoint.notes
    assert any(re.fullmatch(r"names .*pathlib\S*Path: not imported, not called", note) for note in checkpoint.notes)


def _scaler_state() -> dict[str, Any]:
    return torch.amp.GradScaler("cpu", enabled=True).state_dict()


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(
    ("extras", "told"),
    [
        ({"amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 120}}}, "by apex.amp"),
        ({"scaler": "torch"}, "by torch.amp: its gradient scaler ('scaler')"),
        ({"grad_scaler_state": "torch"}, "by torch.amp: its gradient scaler ('grad_scaler_state')"),
        ({"optimizer": "apex"}, "float32 copies of the weights"),
        ({"amp": "O2"}, None),
    ],
)
def test_mixed_precision_training_leaves_nothing_that_changes_the_weights(
    net: Net, tmp_path: Path, extras: dict[str, Any], told: str | None, half: bool
) -> None:
    floats = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    weights = {name: value.half() if half else value for name, value in floats.items()}
    masters = {"fp32_from_fp16": [[value.float() + 1 for value in net.parameters()]], "optimizer_state_dict": {}}
    stand_ins = {"torch": _scaler_state(), "apex": masters}
    beside = {name: stand_ins.get(str(value), value) for name, value in extras.items()}

    checkpoint = read_checkpoint(save({"model": weights, **beside}, tmp_path / "a.pt"))

    assert checkpoint.entry == "model"
    for name, value in weights.items():
        torch.testing.assert_close(checkpoint.float32()[name], value.float(), rtol=0, atol=0)
    found = [note for note in checkpoint.notes if "mixed precision" in note or "float32 copies" in note]
    assert (len(found) == 1 and told in found[0]) if told else not found


def test_source_code_in_a_legacy_file_is_named_and_ignored(net: Net, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(net, tmp_path / "a.pt", _use_new_zipfile_serialization=False))

    assert any(note.startswith(f"embedded source code of {Net.__module__}.Net") for note in checkpoint.notes)


def test_what_is_beside_tensors_at_the_top_is_not_taken_for_a_weight(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save({"w": torch.ones(1), "activation": nn.ReLU(), "epoch": 1}, tmp_path / "a.pt"))

    assert (list(checkpoint.state_dict), checkpoint.metadata) == (["w"], {"epoch": 1})


def test_tensors_with_attributes_are_tensors(tmp_path: Path) -> None:
    marked = torch.arange(3.0)
    marked.kind = "marked"  # type: ignore[attr-defined]
    parameter = nn.Parameter(torch.arange(4.0))
    parameter.kind = "marked"  # type: ignore[attr-defined]

    found = read_checkpoint(save({"a": marked, "b": parameter}, tmp_path / "a.pt")).state_dict

    assert (found["a"].tolist(), found["b"].tolist()) == ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0])
    assert not found["b"].requires_grad


def test_safetensors_comes_back_with_its_metadata(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.arange(6).to(dtype).view(2, 3) for dtype in DTYPES}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})

    checkpoint = read_checkpoint(tmp_path / "a.safetensors")

    same(dict(sorted(checkpoint.state_dict.items())), dict(sorted(tensors.items())))
    assert (checkpoint.format, checkpoint.entry, checkpoint.metadata) == ("safetensors", "", {"format": "pt"})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_numpy_arrays_comes_back(protocol: int, tmp_path: Path) -> None:
    kinds = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "b1", "c8")
    arrays = {kind: np.arange(6).astype(kind).reshape(2, 3) for kind in kinds}
    arrays |= {"fortran": np.asfortranarray(arrays["f4"]), "empty": np.zeros((0, 2), "f4"), "one": np.array(3.0)}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": collections.OrderedDict(arrays), "__author__": "a"}, protocol))

    checkpoint = read_checkpoint(path)

    same(checkpoint.state_dict, {key: torch.from_numpy(array.copy()) for key, array in arrays.items()})
    assert (checkpoint.format, checkpoint.entry, checkpoint.metadata) == ("pickle", "model", {"__author__": "a"})


# Memory

MEASURE = """
import os, pathlib, sys, time, torch
from deploykit.models.checkpoint.reader import read_checkpoint
def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
torch.set_num_threads(1)  # forks have no other threads
torch.ones(10).half().float()
for path in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    before, start = status("VmRSS"), time.perf_counter()
    checkpoint = read_checkpoint(path)
    seconds, read = time.perf_counter() - start, status("VmHWM") - before
    checkpoint.float32()
    print(checkpoint.format, checkpoint.size, read, status("VmHWM") - before, seconds, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process had at its peak")
def test_the_peak_of_memory_is_under_three_times_the_file(tmp_path: Path) -> None:
    weights = {f"layer{i}.weight": torch.full((1 << 20,), 0.5, dtype=torch.float16) for i in range(20)}  # 40 MB
    save(weights, tmp_path / "a.pt")
    save(weights, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "c.safetensors")
    (tmp_path / "d.pkl").write_bytes(pickle.dumps({key: tensor.numpy() for key, tensor in weights.items()}))

    command = [sys.executable, "-c", MEASURE, *map(str, sorted(tmp_path.iterdir()))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)

    rows = [line.split() for line in run.stdout.splitlines()]
    assert [row[0] for row in rows] == ["torch-zip", "torch-legacy", "safetensors", "pickle"]
    for _, *numbers in rows:
        size, read, converted, seconds = map(float, numbers)
        assert read <= 3 * size + (32 << 20)
        assert converted <= 4 * size + (32 << 20)
        assert seconds < 10
