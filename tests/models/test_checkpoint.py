"""The checkpoint reader against torch, safetensors and numpy, on files made here."""

from __future__ import annotations

import collections
import hashlib
import os
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

from deploykit.errors import CheckpointError, NotFoundError, UnsafeCheckpointError
from deploykit.models._checkpoint import Checkpoint, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FORMATS: dict[str, dict[str, Any]] = {
    "torch-zip": {},
    "torch-zip, protocol 4": {"pickle_protocol": 4},
    "torch-legacy": {"_use_new_zipfile_serialization": False},
}
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.float8_e4m3fn),
)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
def test_every_type_of_element_comes_back(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    tensors = {
        "w": torch.arange(7).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
    }
    if form == "torch-legacy" and dtype in (torch.uint16, torch.float8_e4m3fn):
        pytest.skip("torch has no legacy form of this type")

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


def test_source_code_in_a_legacy_file_is_named_and_ignored(net: Net, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(net, tmp_path / "a.pt", _use_new_zipfile_serialization=False))

    assert any(note.startswith(f"embedded source code of {Net.__module__}.Net") for note in checkpoint.notes)


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


# What is refused


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    save({"w": torch.ones(1)}, tmp_path / "yolov7-tiny.pt")
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
    path = save({"w": torch.ones(1)}, tmp_path / "a.pt")
    if os.access(path, os.R_OK) and os.geteuid() == 0:  # root may read everything

        def forbidden(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", forbidden)
    path.chmod(0)
    with pytest.raises(CheckpointError, match=r"a\.pt: it cannot be read \(Permission denied\); check its permissions"):
        read_checkpoint(path)


def test_a_checkpoint_without_weights_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no weights: expected .* found 'epoch', 'names'"):
        read_checkpoint(save({"epoch": 1, "names": ["a"]}, tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="found a list"):
        read_checkpoint(save([1, 2], tmp_path / "b.pt"))


def test_weights_of_a_kind_that_is_not_read_are_named(tmp_path: Path) -> None:
    sparse = torch.eye(2).to_sparse()
    with pytest.raises(CheckpointError, match=r"'s' is a torch\._utils\._rebuild_sparse_tensor, which is not read"):
        read_checkpoint(save({"w": torch.ones(1), "s": sparse}, tmp_path / "a.pt"))


def test_a_torchscript_archive_is_refused_as_a_program(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "a.torchscript"))
    with pytest.raises(CheckpointError, match="TorchScript program"):
        read_checkpoint(tmp_path / "a.torchscript")


def test_a_changed_weight_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = save({"w": torch.arange(1000.0)}, tmp_path / "a.pt")
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
        read_checkpoint(save({"w": torch.ones(1), "x": Attack()}, tmp_path / "a.pt"))
    assert not (tmp_path / "ran").exists()


# Memory

MEASURE = """
import pathlib, sys, time, torch
from deploykit.models._checkpoint import read_checkpoint
def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
torch.ones(10).half().float()
before, start = status("VmRSS"), time.perf_counter()
checkpoint = read_checkpoint(sys.argv[1])
seconds, read = time.perf_counter() - start, status("VmHWM") - before
checkpoint.float32()
print(read, status("VmHWM") - before, seconds)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process had at its peak")
@pytest.mark.parametrize("form", ["torch-zip", "torch-legacy", "safetensors", "pickle"])
def test_the_peak_of_memory_is_under_three_times_the_file(form: str, tmp_path: Path) -> None:
    weights = {f"layer{i}.weight": torch.full((1 << 20,), 0.5, dtype=torch.float16) for i in range(20)}  # 40 MB
    path = tmp_path / "a"
    if form == "safetensors":
        save_file(weights, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({key: tensor.numpy() for key, tensor in weights.items()}))
    else:
        save(weights, path, **FORMATS[form])
    size = path.stat().st_size

    command = [sys.executable, "-c", MEASURE, str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)

    read, converted, seconds = map(float, run.stdout.split())
    assert read <= 3 * size + (32 << 20)
    assert converted <= 4 * size + (32 << 20)
    assert seconds < 10


# Real files


REAL = {
    "golden/cmt-narrow.pt": ("model", 253, 454133),
    "golden/crossformer-narrow.pt": ("model", 162, 433093),
    "golden/kapao-s-narrow.pt": ("model", 472, 839913),
    "golden/nafnet-width8.pt": ("params", 214, 440411),
    "golden/unet-narrow.pt": ("", 118, 488052),
    "golden/vitdet-backbone-narrow.pkl": ("model", 91, 101000),
    "golden/yolov5s6-pose-narrow.pt": ("model", 744, 1024917),
    "golden/yolov6n-narrow.pt": ("model", 756, 1278413),
    "golden/yolov7-tiny-training-narrow.pt": ("model", 344, 387331),
    "golden/yolov7-training-narrow.pt": ("model", 566, 651826),
    "golden/yolov7-w6-pose-narrow.pt": ("model", 908, 1346871),
    "golden/yolox-s-narrow.pt": ("model", 462, 570181),
    "data/weights/dncnn_wholemodel_main.pth": ("", 93, 558031),
    "data/weights/official_yolov7-tiny.structure-randomfill.pt": ("model", 338, 6241976),
    "data/weights/resnet20_cifar10.th": ("state_dict", 97, 271098),
    "data/weights/unet_carvana_small.pth": ("", 40, 102311),
    "data/weights/unet_clouds_4ch.pth": ("", 90, 539593),
    "data/weights/yolo-pose-ghost_coco17kpt.pt": ("model", 470, 636229),
    "data/weights/yolov5n_official_coco.pt": ("model", 349, 1881736),
    "data/weights/yolov7-lite-e_face5kpt.pt": ("model", 398, 746486),
    "data/weights/yolov7-lite-s_plate4kpt.pt": ("model", 464, 1089240),
    "data/weights/yolov8n_dill_globals.pt": ("model", 355, 3021695),
    "data/weights/yolox_nano_bubbliiiing.pth": ("", 642, 912250),
}


def real(name: str) -> Path:
    path = ROOT.parent / "shared" / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_a_real_checkpoint_is_read(name: str) -> None:
    entry, keys, parameters = REAL[name]

    checkpoint = read_checkpoint(real(name))

    assert (checkpoint.entry, len(checkpoint.state_dict)) == (entry, keys)
    assert sum(tensor.numel() for tensor in checkpoint.state_dict.values()) == parameters
    assert "dill" not in sys.modules


@pytest.mark.data
@pytest.mark.parametrize(
    "name", [name for name, (entry, *_) in REAL.items() if entry != "model" and "dncnn" not in name]
)
def test_a_real_state_dict_equals_what_torch_reads(name: str) -> None:
    entry = REAL[name][0]
    loaded = torch.load(real(name), map_location="cpu", weights_only=True)
    expected = loaded[entry] if entry else {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)}

    same(read_checkpoint(real(name)).state_dict, {key.removeprefix("module."): v for key, v in expected.items()})


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "yaml", "stride", "names"),
    [
        ("golden/yolov7-w6-pose-narrow.pt", {"nc": 1, "nkpt": 17}, (8, 16, 32, 64), ("person",)),
        ("data/weights/yolov7-lite-s_plate4kpt.pt", {"nc": 2, "nkpt": 4}, (8, 16, 32), ("single", "double")),
        ("data/weights/yolov8n_dill_globals.pt", {"nc": 2}, (8, 16, 32), ("Keratin Pearl", "keratin pearls")),
    ],
)
def test_a_real_model_describes_itself(
    name: str, yaml: dict[str, int], stride: tuple[int, ...], names: tuple[str, ...]
) -> None:
    checkpoint = read_checkpoint(real(name))

    assert checkpoint.yaml is not None
    assert {key: checkpoint.yaml[key] for key in yaml} == yaml
    assert (checkpoint.stride, checkpoint.names) == (stride, names)
    norms = [module for module in checkpoint.modules if module.kind.endswith("BatchNorm2d")]
    assert norms
    assert {module.attributes["eps"] for module in norms} == {1e-3}


def _notes(name: str) -> Checkpoint:
    return read_checkpoint(real(name))


@pytest.mark.data
def test_real_oddities_are_said() -> None:
    assert any(
        re.match(r"names dill\._dill\._load_type.*: not imported", note)
        for note in _notes("data/weights/yolov8n_dill_globals.pt").notes
    )
    assert "DataParallel prefix 'module.' removed" in _notes("data/weights/resnet20_cifar10.th").notes
    dncnn = _notes("data/weights/dncnn_wholemodel_main.pth")
    assert any(note.startswith("embedded source code of __main__.DnCNN") for note in dncnn.notes)
    assert dncnn.modules[0].kind == "__main__.DnCNN"


@pytest.mark.data
def test_a_real_truncated_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(real("data/weights/official_yolov7-tiny.truncated.pt"))
