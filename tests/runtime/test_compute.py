"""What computes a model, and with how many threads: what people type, the environment, limits of a container."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

import deploykit
from deploykit.errors import BackendError, DeviceError, UsageError, installing
from deploykit.runtime import cores
from deploykit.runtime.backends.ort import CPU, CUDA, OrtSession, _provider_list
from deploykit.runtime.compute import ComputeOptions, default_threads, parse_device
from deploykit.runtime.cores import core_limit, limited_threads, usable_cores
from deploykit.runtime.session import open_session
from tests.cell_model import cell_spec, write_cell_model
from tests.narrow import few_layers, write_checkpoint

NO_CUDA = pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


class Machine:
    """A machine of other cores, affinity and control groups than the one that runs the test."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        monkeypatch.delenv("DEPLOYKIT_THREADS", raising=False)
        monkeypatch.setattr(cores, "CGROUP", root / "cgroup")
        monkeypatch.setattr(cores, "OWN_GROUPS", root / "own")
        monkeypatch.setattr(cores, "TOPOLOGY", root / "cpu")
        monkeypatch.setattr(os, "cpu_count", lambda: self.count)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: self.allowed, raising=False)
        self.cores(8)

    def cores(self, count: int, *, allowed: set[int] | None = None, threads_per_core: int = 1) -> None:
        self.count, self.allowed = count, set(range(count)) if allowed is None else allowed
        for core in range(count):
            first = core - core % threads_per_core
            self.write(
                f"cpu/cpu{core}/topology/thread_siblings_list",
                ",".join(str(first + n) for n in range(threads_per_core)),
            )

    def write(self, name: str, text: str) -> None:
        place = self.root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "machine", monkeypatch)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("auto", "auto"), ("CPU", "cpu"), ("cuda", "cuda"), ("gpu", "cuda"), ("cuda:1", "cuda:1"),
        ("cuda:01", "cuda:1"),
        ("0", "cuda:0"), (1, "cuda:1"), (" 1 ", "cuda:1"), ("gpu:2", "cuda:2"), ("CUDAExecutionProvider", "cuda"),
        ("CPUExecutionProvider", "cpu"), ("openvino", "openvino"), ("coreml", "coreml"),
        ("tensorrt-rtx", "tensorrt-rtx"),
    ],
)  # fmt: skip
def test_a_device_in_the_forms_that_people_type(typed: str | int, found: str) -> None:
    assert parse_device(typed) == found == ComputeOptions(typed).provider


@pytest.mark.parametrize("typed", ["", "cuda:", "cuda1", ":1", "cuda:-1", -1, "0,1", "c u", True, "cuda:x"])
def test_what_is_no_device_is_refused(typed: str | int) -> None:
    with pytest.raises(UsageError, match="must be auto, cpu, cuda, cuda:N, the number of a GPU, or a provider"):
        ComputeOptions(typed)
    if typed == "0,1":
        with pytest.raises(UsageError, match="got '0,1'; a model runs on one GPU"):
            parse_device(typed)


def test_the_environment_is_the_default_and_an_option_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEPLOYKIT_DEVICE", raising=False)
    assert ComputeOptions().provider == "auto"
    monkeypatch.setenv("DEPLOYKIT_DEVICE", "1")
    assert ComputeOptions().provider == "cuda:1"
    assert ComputeOptions("cpu").provider == "cpu"
    assert ComputeOptions("auto").provider == "auto"
    monkeypatch.setenv("DEPLOYKIT_DEVICE", "0,1")
    with pytest.raises(UsageError, match="DEPLOYKIT_DEVICE must be auto"):
        _ = ComputeOptions().provider
    monkeypatch.setenv("DEPLOYKIT_THREADS", "3")
    assert default_threads() == (3, "DEPLOYKIT_THREADS")
    for wrong in ("0", "two", "-1", "1.5", "9" * 5000):
        monkeypatch.setenv("DEPLOYKIT_THREADS", wrong)
        with pytest.raises(UsageError, match=f"DEPLOYKIT_THREADS must be a whole number from 1 on, got '{wrong}'"):
            default_threads()


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"cgroup/cpu.max": "max 100000"}, None),
        ({"cgroup/cpu.max": "nonsense"}, None),
        ({"cgroup/cpu/cpu.cfs_quota_us": "250000", "cgroup/cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ({"cgroup/cpu/cpu.cfs_quota_us": "-1", "cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cgroup/cpu/cpu.cfs_quota_us": "100000", "cgroup/cpu/cpu.cfs_period_us": "0"}, None),
        # A service of systemd, not a container: the limit is that of its own group, or of one above it.
        ({"own": "0::/a.slice/b.service", "cgroup/a.slice/b.service/cpu.max": "50000 100000"}, 0.5),
        ({"own": "0::/a.slice/b.service", "cgroup/a.slice/cpu.max": "300000 100000",
          "cgroup/a.slice/b.service/cpu.max": "400000 100000"}, 3.0),
        ({"own": "0::/other", "cgroup/a.slice/cpu.max": "300000 100000"}, None),
        ({"own": "3:cpuset:/x\n2:cpu,cpuacct:/y", "cgroup/cpu/y/cpu.cfs_quota_us": "400000",
          "cgroup/cpu/y/cpu.cfs_period_us": "100000", "cgroup/cpu/x/cpu.cfs_quota_us": "1000",
          "cgroup/cpu/x/cpu.cfs_period_us": "100000"}, 4.0),
        ({"own": "0::/../../elsewhere", "elsewhere/cpu.max": "1000 100000"}, None),
    ],
)  # fmt: skip
def test_the_quota_of_a_control_group(files: dict[str, str], limit: float | None, machine: Machine) -> None:
    for name, text in files.items():
        machine.write(name, text)
    assert core_limit() == limit


def test_threads_follow_the_quota_and_the_affinity_and_nothing_changes_without(machine: Machine) -> None:
    assert limited_threads() == (None, "")
    machine.write("cgroup/cpu.max", "800000 100000")  # as much as there is
    assert limited_threads() == (None, "")
    machine.write("cgroup/cpu.max", "150000 100000")
    assert limited_threads() == (2, "a CPU quota of 1.5 cores")
    machine.write("cgroup/cpu.max", "10000 100000")
    assert limited_threads() == (1, "a CPU quota of 0.1 cores")
    machine.cores(8, allowed={2, 3, 5})
    machine.write("cgroup/cpu.max", "700000 100000")  # more than is allowed
    assert limited_threads() == (3, "3 of 8 cores are allowed to this process")


def test_a_quota_and_an_affinity_that_change_hold_for_the_models_that_are_opened_then(
    model: Path, machine: Machine
) -> None:
    version_1 = "cgroup/cpu/cpu.cfs_{}_us"
    machine.write(version_1.format("period"), "50000")
    found = []
    for quota in ("100000", "175000", "-1"):
        machine.write(version_1.format("quota"), quota)
        with open_session(model) as session:
            found.append((session.threads, usable_cores()[0]))
    assert found == [(2, 2), (4, 4), (None, 8)]
    machine.write("own", "0::/system.slice/app.service")
    machine.write("cgroup/system.slice/app.service/cpu.max", "600000 100000")
    first = open_session(model)
    machine.write("cgroup/system.slice/app.service/cpu.max", "200000 100000")
    machine.cores(8, allowed={1})
    with first, open_session(model) as second:
        assert (first.threads, second.threads) == (6, 1), "one that is open keeps its threads"
    machine.cores(8, allowed={1, 2, 3})
    assert limited_threads() == (2, "a CPU quota of 2 cores")
    (machine.root / "cgroup/system.slice/app.service/cpu.max").unlink()  # the group is gone, or cannot be read
    assert limited_threads() == (3, "3 of 8 cores are allowed to this process")


def test_two_threads_of_one_core_count_once(machine: Machine) -> None:
    machine.cores(16, threads_per_core=2)
    machine.write("cgroup/cpu.max", "1200000 100000")
    assert limited_threads() == (8, "a CPU quota of 12 cores")  # of 8 cores with two threads each
    machine.cores(16, allowed={0, 1, 2, 3}, threads_per_core=2)
    machine.write("cgroup/cpu.max", "max 100000")
    assert limited_threads() == (2, "4 of 16 cores are allowed to this process")


def _threads(session: object) -> int:
    assert isinstance(session, OrtSession)
    return int(session._session.get_session_options().intra_op_num_threads)


def test_onnx_runtime_takes_the_number(model: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(model) as session:
        assert (session.threads, session.threads_from, _threads(session)) == (None, "", 0)  # 0: its own choice
    machine.write("cgroup/cpu.max", "300000 100000")
    with open_session(model) as session:
        assert (session.threads, session.threads_from, _threads(session)) == (3, "a CPU quota of 3 cores", 3)
    with open_session(model, threads=5) as session:
        assert (session.threads, session.threads_from, _threads(session)) == (5, "as asked for", 5)
    monkeypatch.setenv("DEPLOYKIT_THREADS", "2")
    with open_session(model) as session:
        assert (session.threads, session.threads_from, _threads(session)) == (2, "DEPLOYKIT_THREADS", 2)


def test_opencv_is_limited_too(model: Path, machine: Machine) -> None:
    before = cv2.getNumThreads()
    try:
        deploykit.load(model).close()
        assert cv2.getNumThreads() == before
        machine.write("cgroup/cpu.max", "100000 100000")
        deploykit.load(model, threads=4).close()
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


def test_torch_computes_with_the_number_and_keeps_its_own_afterwards(tmp_path: Path, machine: Machine) -> None:
    import torch

    own, seen = torch.get_num_threads(), []
    checkpoint = write_checkpoint(tmp_path / "few.pt", few_layers(num_keypoints=3))
    machine.write("cgroup/cpu.max", "100000 100000")
    image = np.zeros((1, 3, 64, 64), np.float32)
    for given, expected in (({}, 1), ({"threads": 2}, 2)):
        with deploykit.open_session(checkpoint, **given) as session:  # type: ignore[arg-type]  # one of two keywords
            session._module.register_forward_pre_hook(  # type: ignore[attr-defined]
                lambda *_: seen.append(torch.get_num_threads())
            )
            session.run({session.inputs[0].name: image})
            assert session.threads == expected == seen[-1]
    assert torch.get_num_threads() == own


ALL = ["TensorrtExecutionProvider", CUDA, "OpenVINOExecutionProvider", "CoreMLExecutionProvider",
       "DmlExecutionProvider", "QNNExecutionProvider", CPU]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "available", "asked"),
    [
        ("auto", [CPU], [CPU]),
        ("auto", [CUDA, CPU], [CUDA, CPU]),
        ("cpu", [CUDA, CPU], [CPU]),
        ("cuda", [CUDA, CPU], [CUDA, CPU]),
        ("cuda:1", [CUDA, CPU], [(CUDA, {"device_id": "1"}), CPU]),
        ("openvino", ["OpenVINOExecutionProvider", CPU], ["OpenVINOExecutionProvider", CPU]),
        ("OpenVINOExecutionProvider", ["OpenVINOExecutionProvider", CPU], ["OpenVINOExecutionProvider", CPU]),
        ("CoreML", ["CoreMLExecutionProvider", CPU], ["CoreMLExecutionProvider", CPU]),
        ("directml", ["DmlExecutionProvider", CPU], ["DmlExecutionProvider", CPU]),
        ("dml", ["DmlExecutionProvider", CPU], ["DmlExecutionProvider", CPU]),
    ],
)
def test_the_providers_that_onnx_runtime_is_asked_for(device: str, available: list[str], asked: list[object]) -> None:
    assert _provider_list(device, available, ALL) == asked


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:1", f"no {CUDA}, only {CPU}: {installing('gpu')} instead of the extra cpu"),
        ("openvino", f"no OpenVINOExecutionProvider, only {CPU}: pip install onnxruntime-openvino in place of"),
        ("directml", f"no DmlExecutionProvider, only {CPU}: pip install onnxruntime-directml"),
        ("coreml", "no CoreMLExecutionProvider, only CPUExecutionProvider: it is part of onnxruntime on macOS only"),
    ],
)
def test_a_device_that_is_not_there_is_named_with_what_to_install(device: str, said: str) -> None:
    with pytest.raises(BackendError, match=re.escape(said)):
        _provider_list(device, [CPU], ALL)
    with pytest.raises(UsageError, match=f"this one has {CPU}; got 'rubber'"):
        _provider_list("rubber", [CPU], ALL)


@NO_CUDA
def test_every_way_in_takes_a_device(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with deploykit.load(model, device="cpu", threads=1) as predictor:
        assert (predictor.session.providers, predictor.session.threads) == ((CPU,), 1)
    monkeypatch.setenv("DEPLOYKIT_DEVICE", "cuda")
    for call in (
        lambda: deploykit.load(model),
        lambda: deploykit.load(model, device=0),
        lambda: deploykit.open_session(model, provider="cuda"),
        lambda: deploykit.evaluate(model, tmp_path / "a.json", images=tmp_path, device="cuda"),
        lambda: deploykit.compare(model, model, device="cuda"),
    ):
        with pytest.raises(BackendError, match=f"no {CUDA}"):
            call()
    deploykit.load(model, device="cpu").close()
    with pytest.raises(UsageError, match="provider is another name of device: give one of them"):
        deploykit.open_session(model, device="cpu", provider="cpu")


def test_a_checkpoint_runs_on_a_device_of_torch(tmp_path: Path) -> None:
    import torch

    checkpoint = write_checkpoint(tmp_path / "few.pt", few_layers(num_keypoints=3))
    with deploykit.open_session(checkpoint, device="cpu") as session:
        assert session.providers == ("PyTorch CPU float32",)
    with pytest.raises(UsageError, match="runs in torch, on the device cpu, cuda or cuda:N; 'openvino' is for exports"):
        deploykit.open_session(checkpoint, device="openvino")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match=r"PyTorch .*(is built for the CPU: for cuda:1 install|has no GPU)"):
            deploykit.open_session(checkpoint, device=1)


def test_an_engine_is_not_for_the_cpu(tmp_path: Path) -> None:
    engine = tmp_path / "m.plan"
    engine.write_bytes(b"x")
    with pytest.raises(UsageError, match=r"which runs on an NVIDIA GPU only: for the device cpu take its ONNX file"):
        open_session(engine, device="cpu")
