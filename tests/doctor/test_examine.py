"""``deploykit doctor``: what works, what is broken, and that nothing broken ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

import deploykit
from deploykit.cli import main
from deploykit.doctor.examine import (
    examine,
    extra_items,
    package_items,
    plugin_items,
    provider_items,
    self_test_item,
)
from deploykit.doctor.packages import MODULES, Requirement, conflicts, extras, requirements_of
from deploykit.doctor.probe import model_file
from deploykit.doctor.probing import probe
from deploykit.doctor.report import DoctorReport, Item
from deploykit.errors import DISTRIBUTION, MissingDependencyError
from tests.cell_model import cell_spec, write_cell_model

FINE = {f"import:{module}": {"version": "1.0"} for module in MODULES}
NO_GPU = "this machine has no NVIDIA driver"


def told(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return FINE | {f"import:{name.replace('__', '.')}": value for name, value in changes.items()}


def named(items: list[Item], name: str) -> Item:
    return next(item for item in items if item.name == name)


def test_this_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests run with works, or the test run would not."""
    quick = {module: MODULES[module] for module in ("numpy", "cv2", "rich", "yaml", "onnxruntime", "onnx")}
    monkeypatch.setattr("deploykit.doctor.examine.MODULES", quick)
    report = examine()
    items = list(report.items)
    assert {item.section for item in items} >= {"packages", "ONNX Runtime", "GPU", "machine", "self-test"}
    for name in quick:
        item = next(item for item in items if item.name == name and item.section == "packages")
        assert item.state == "ok"
        assert item.says[0].isdigit()
    assert named(items, "CPU").state == "ok"
    assert named(items, "predict").says == "letterbox, network and NMS give the known values"
    assert json.loads(json.dumps(report.to_dict()))["ok"] is report.ok


def test_the_network_of_the_self_test_is_the_one_of_the_tests(tmp_path: Path) -> None:
    made = write_cell_model(tmp_path / "m.onnx", spec=cell_spec())
    assert onnx.load(str(model_file())) == onnx.load(str(made))
    assert model_file().stat().st_size < 10_000


def test_a_wrong_result_of_the_self_test_is_broken() -> None:
    assert self_test_item({"right": False, "found": "boxes []"}, installed=True).state == "broken"
    assert self_test_item({"error": "no onnxruntime"}, installed=False).state == "missing"
    assert self_test_item({"error": "it crashed"}, installed=True).state == "broken"


BASE = ("numpy", "cv2", "rich", "markdown_it", "mdurl", "pygments", "yaml")


def run_doctor(folder: Path, *others: str, words: tuple[str, ...] = ("--json",)) -> Any:
    """The command in a fresh interpreter without installed packages, but for what is in ``folder`` and ``others``."""
    links = folder / "installed"
    links.mkdir()
    for name in others:
        for wanted in (name, f"{name}.libs", "opencv_python.libs", "opencv_python_headless.libs"):
            found = next((Path(place, wanted) for place in sys.path if Path(place, wanted).is_dir()), None)
            if found and not (links / wanted).exists():
                (links / wanted).symlink_to(found)
    package = str(Path(deploykit.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(links), package])}
    command = [sys.executable, "-S", "-m", "deploykit", "doctor", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=180)


def broken_package(folder: Path, module: str, body: str) -> Path:
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text(body)
    return folder


CRASH = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"


@pytest.mark.parametrize(
    ("module", "body", "says", "do"),
    [
        (
            "cv2",
            "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')",
            "ImportError: libGL.so.1",
            "opencv-python-headless",
        ),
        ("torch", CRASH, "it ended its process (SIGSEGV)", "pip install --force-reinstall torch"),
        ("onnx", "raise OSError('bad ELF')", "OSError: bad ELF", "pip install --force-reinstall onnx"),
        ("rawpy", "import numpi", "No module named 'numpi'", "pip install numpi"),
    ],
)
def test_a_broken_package_is_told_and_ends_nothing(module: str, body: str, says: str, do: str, tmp_path: Path) -> None:
    done = run_doctor(broken_package(tmp_path, module, body), *BASE)
    assert done.returncode == MissingDependencyError.exit_code, done.stderr
    items = json.loads(done.stdout)["items"]
    (item,) = [i for i in items if i["name"] == module and i["state"] == "broken"]
    assert says in item["says"]
    assert do in item["do"]
    assert next(i for i in items if i["name"] == "numpy")["state"] == "ok"


def test_the_base_packages_alone_are_a_whole_installation(tmp_path: Path) -> None:
    done = run_doctor(tmp_path, *BASE)
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["items"]
    assert [i for i in items if i["state"] in ("broken", "warning")] == []
    assert next(i for i in items if i["name"] == "onnxruntime")["state"] == "missing"
    assert next(i for i in items if i["section"] == "self-test")["state"] == "missing"


def test_with_numpy_and_opencv_alone_it_works_and_says_what_is_missing(tmp_path: Path) -> None:
    """Neither rich nor YAML, which deploykit requires."""
    done = run_doctor(tmp_path, "numpy", "cv2", words=())
    assert done.returncode == MissingDependencyError.exit_code, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "problems"
    assert lines[1].split()[:2] == ["rich", "broken:"]
    assert "pip install pyyaml" in lines[2]
    assert any(line.split()[:1] == ["numpy"] for line in lines)
    assert "Traceback" not in done.stderr


FAKE_RUNTIME = """
__version__ = "1.99"
def get_available_providers():
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
class SessionOptions: pass
class InferenceSession:
    def __init__(self, *args, **kwargs): pass
    def get_providers(self): return ["CPUExecutionProvider"]
"""


def test_a_provider_that_falls_back_is_not_taken_for_one_that_loads(tmp_path: Path) -> None:
    folder = broken_package(tmp_path, "onnxruntime", FAKE_RUNTIME)
    items = json.loads(run_doctor(folder, *BASE).stdout)["items"]
    states = {i["name"]: i["state"] for i in items if i["section"] == "ONNX Runtime"}
    assert states["CPU"] == "ok"
    assert states["CUDA"] in ("broken", "warning")  # as there is a GPU or not
    (test,) = [i for i in items if i["section"] == "self-test"]
    assert test["state"] == "broken"


def test_cuda_that_does_not_load_is_broken_where_there_is_a_gpu() -> None:
    tried = {"CUDAExecutionProvider": {"loaded": False, "missing": "libcublasLt.so.13: cannot open shared object file"}}
    (item,) = provider_items(tried, gpu="")
    assert item.state == "broken"
    assert "libcublasLt.so.13" in item.says
    assert "onnxruntime-gpu[cuda,cudnn]" in item.do
    (item,) = provider_items(tried, gpu=NO_GPU)
    assert item.state == "warning"
    (item,) = provider_items({"CPUExecutionProvider": {"error": "it ended its process (SIGILL)"}}, gpu=NO_GPU)
    assert item.state == "broken"


def test_a_plugin_without_a_device_is_no_fault_of_the_installation() -> None:
    (item,) = provider_items({"webgpu": {"error": "BackendError: it finds none: it needs a GPU"}}, gpu=NO_GPU)
    assert (item.state, item.says) == ("warning", "it makes no session: it finds none: it needs a GPU")
    (item,) = provider_items({"webgpu": {"loaded": True, "missing": ""}}, gpu=NO_GPU)
    assert item.state == "ok"


def test_cuda_is_tried_with_the_libraries_of_nvidias_wheels(tmp_path: Path) -> None:
    """As a model is opened: without ``preload_dlls``, CUDA that works would be called broken."""
    script = (
        "import onnxruntime, sys\nfrom deploykit.doctor.probe import main\n"
        "onnxruntime.preload_dlls = lambda: print('preloaded', file=sys.stderr)\n"
        "sys.exit(main(['provider:CUDAExecutionProvider']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert '"loaded": ' in done.stdout
    assert done.stderr.startswith("preloaded\n")


def test_packages_that_overwrite_each_other() -> None:
    (both,) = conflicts({"onnxruntime": "1.31", "onnxruntime-gpu": "1.31", "opencv-python": "5.0"})
    assert (both.state, both.name) == ("broken", "ONNX Runtime")
    assert both.do == "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
    (two,) = conflicts({"opencv-python": "5.0", "opencv-python-headless": "4.10"})
    assert (two.state, two.name) == ("warning", "OpenCV")
    assert conflicts({"onnxruntime-gpu": "1.31", "opencv-python-headless": "5.0", "deploykit": "0.1"}) == []
    (name,) = conflicts({"deploykit": "0.1", DISTRIBUTION: "0.1"})
    assert (name.state, name.name) == ("broken", "deploykit")


def test_both_runtimes_in_a_folder_are_found_by_their_metadata(tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        about = tmp_path / f"{name}-1.31.1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.31.1\n")
    (tmp_path / "left-over.dist-info").mkdir()  # without metadata
    done = run_doctor(tmp_path, *BASE)
    assert done.returncode == MissingDependencyError.exit_code
    items = json.loads(done.stdout)["items"]
    assert any(i["state"] == "broken" and "onnxruntime and onnxruntime-gpu" in i["says"] for i in items)


@pytest.mark.parametrize(
    ("text", "version", "fits"),
    [
        ("numpy>=1.26", "2.3.1", True),
        ("numpy>=1.26", "1.25.9", False),
        ("numpy>=1.26", "1.26", True),
        ("opencv-python<6,>=4.10", "5.0.0.93", True),
        ("opencv-python<6,>=4.10", "6.0", False),
        ("onnxscript<0.8,>=0.5.6", "0.7.2", True),
        ("torch>=2.9", "2.13.0+cpu", True),
        ("torch==2.9", "2.9.0", True),
        ("torch!=2.9", "2.9.0", False),
        ("rawpy", "0.1", True),
    ],
)
def test_bounds_of_versions(text: str, version: str, fits: bool) -> None:
    assert Requirement(text).allows(version) is fits


def test_extras_say_what_to_type() -> None:
    wanted = [
        Requirement(text)
        for text in (
            "numpy>=1.26",
            "onnxruntime>=1.20; extra == 'cpu'",
            'torch>=2.9; extra == "export"',
            'onnx>=1.19; extra == "export"',
            'onnx-ir>=0.1.12; extra == "export"',
            'timm>=1.0; extra == "timm"',
            'pytest; extra == "dev"',
        )
    ]
    found = {item.name: item for item in extras(wanted, {"onnxruntime": "1.31", "torch": "2.1", "onnx": "1.19"})}
    assert set(found) == {"cpu", "export", "timm"}
    assert found["cpu"].state == "ok"
    assert found["export"].state == "warning"
    assert found["export"].says == "torch>=2.9 is wanted, 2.1 is installed"
    assert found["export"].do == "pip install 'onnx-ir>=0.1.12' 'torch>=2.9'"
    assert (found["timm"].state, found["timm"].do) == ("missing", "pip install 'deploykit-vision[timm]'")


def test_the_extras_are_those_of_the_package() -> None:
    wanted = requirements_of(DISTRIBUTION)
    if wanted is None:
        pytest.skip(f"{DISTRIBUTION} is not installed as a package")
    assert {"cpu", "gpu", "export", "tensorrt"} <= {requirement.extra for requirement in wanted}


def test_a_module_that_needs_a_gpu_is_no_fault_without_one() -> None:
    missing = "ImportError: libcuda.so.1: cannot open shared object file"
    items = package_items(told(pycuda={"error": missing}), {}, NO_GPU)
    assert named(items, "pycuda").state == "warning"
    assert named(package_items(told(pycuda={"error": missing}), {}, ""), "pycuda").state == "broken"


def test_torch_whose_cuda_does_not_start_is_told_where_there_is_a_gpu() -> None:
    about = {"version": "2.13", "cuda": "13.0", "cuda_works": False}
    assert named(package_items(told(torch=about), {}, ""), "torch").state == "warning"
    assert named(package_items(told(torch=about), {}, NO_GPU), "torch").state == "ok"


def test_an_opencv_that_does_not_decode_is_broken() -> None:
    item = named(package_items(told(cv2={"version": "5.0", "works": False}), {}, NO_GPU), "cv2")
    assert item.state == "broken"


def test_without_metadata_the_missing_modules_are_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.doctor.examine.requirements_of", lambda name: None)
    absent = {"error": "ModuleNotFoundError: No module named 'cuda'"}
    items = extra_items(told(cuda__bindings=absent), {})
    assert [(i.name, i.state) for i in items] == [("deploykit", "missing"), ("cuda.bindings", "missing")]
    assert items[1].do == "pip install cuda-bindings"


def test_native_libraries() -> None:
    items = plugin_items(
        {
            "cpu": {"file": "/x/lib.so", "problem": "", "says": "ABI 4, g++ 12"},
            "cuda": {"file": "/x/cuda.so", "problem": "it has ABI 3", "says": ""},
            "tensorrt": {"file": "", "problem": "not built", "says": ""},
            "onnxruntime": {"error": "it ended its process (SIGSEGV)"},
        }
    )
    assert [i.state for i in items] == ["ok", "broken", "missing", "broken"]


def test_jobs_go_on_after_one_that_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dies_here.py").write_text(CRASH)
    (tmp_path / "exits_here.py").write_text("raise SystemExit(7)")
    (tmp_path / "leaves_here.py").write_text("import os\nos._exit(7)")
    (tmp_path / "prints_here.py").write_text('print(\'{"ends": "import:json", "version": "lies"}\')')
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("dies_here", "prints_here", "exits_here", "leaves_here", "json")
    found = probe([f"import:{name}" for name in names])
    assert found["import:dies_here"] == {"error": "it ended its process (SIGSEGV)"}
    assert found["import:exits_here"] == {"error": "SystemExit: 7"}
    assert found["import:leaves_here"]["error"].startswith("it ended its process with code 7")
    assert found["import:json"] == {"version": "2.0.9"}
    assert found["import:prints_here"] == {"version": ""}


def test_each_job_has_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"takes_a_while_{i}" for i in range(3)]
    for name in names:
        (tmp_path / f"{name}.py").write_text("import time\ntime.sleep(1.8)")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not [about for about in probe([f"import:{name}" for name in names], seconds=5).values() if "error" in about]


def test_what_takes_too_long_is_slow_and_not_broken(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    slow = {"error": "it did not end within 60 s", "slow": 60.0}
    items = [
        named(package_items(told(torch=slow), {"torch": "2.13.0"}, NO_GPU), "torch"),
        named(provider_items({"CPUExecutionProvider": slow}, NO_GPU), "CPU"),
        named(plugin_items({"cpu": slow}), "cpu"),
        self_test_item(slow, installed=True),
    ]
    assert [item.state for item in items] == ["slow"] * 4
    monkeypatch.setattr("deploykit.doctor.examine.examine", lambda: DoctorReport(tuple(items)))
    assert main(["doctor"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "torch slow: 2.13.0: it did not end within 60 s, so whether it works is not known; run this again" in out
    assert out.endswith("nothing is broken of what ended in time")


def test_a_job_that_hangs_is_an_error_of_that_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs_here.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = probe(["import:hangs_here", "import:json"], seconds=2)
    assert found["import:hangs_here"] == {"error": "it did not end within 2 s", "slow": 2}
    assert found["import:json"] == {"version": "2.0.9"}


def test_the_command_prints_problems_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    items = (
        Item("packages", "numpy", "ok", "2.3, arrays"),
        Item("packages", "OpenCV", "warning", "two of them", "pip uninstall one"),
        Item("packages", "onnx", "broken", "bad ELF", "pip install --force-reinstall onnx"),
        Item("extras", "timm", "missing", "not installed", "pip install timm"),
    )
    monkeypatch.setattr("deploykit.doctor.examine.examine", lambda: DoctorReport(items))
    assert main(["doctor"]) == MissingDependencyError.exit_code
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "problems",
        "  onnx                broken: bad ELF; pip install --force-reinstall onnx",
        "  OpenCV              warning: two of them; pip uninstall one",
    ]
    assert "  timm                - not installed; pip install timm" in lines
    assert lines[-1] == "1 installed thing does not work: see the problems above"
    monkeypatch.setattr("deploykit.doctor.examine.examine", lambda: DoctorReport(items[:2]))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "everything that is installed works"
