"""The check of an installation, from the packages to a run of a network."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

from deploykit.doctor.packages import MODULES, conflicts, extras, installed_versions, requirements_of
from deploykit.doctor.probing import Told, probe
from deploykit.doctor.report import DoctorReport, Item, State
from deploykit.errors import DISTRIBUTION, installing
from deploykit.runtime.backends.kept_bytes import MOST
from deploykit.runtime.files import cache_folder
from deploykit.runtime.machine import Machine, cpu_features
from deploykit.version import __version__

__all__ = ["examine", "native_libraries"]

REQUIRED = ("numpy", "cv2", "rich", "yaml")
PACKAGE_OF = {
    "cv2": "opencv-python-headless", "yaml": "pyyaml", "PIL": "pillow", "tensorrt_rtx": "tensorrt-rtx",
    "cuda.bindings": "cuda-bindings", "onnx_ir": "onnx-ir",
}  # fmt: skip
"""Module -> the package that brings it, where the names differ."""

PROVIDERS = {"CPUExecutionProvider": "", "CUDAExecutionProvider": "cuda", "CoreMLExecutionProvider": ""}
"""Providers of ONNX Runtime that deploykit is run with."""

WEBGPU = "webgpu"  # a provider that is a package of its own

PLUGINS = ("cpu", "onnxruntime", "cuda", "tensorrt")


def examine(*, seconds: float = 60.0) -> DoctorReport:
    """Look at everything; nothing that is found makes this raise an error.

    Args:
        seconds: the time limit of each import and each trial.
    """
    versions = installed_versions()
    told = probe(
        ["gpu", *(f"import:{module}" for module in MODULES), *(f"plugin:{name}" for name in PLUGINS), "self-test"],
        seconds=seconds,
    )
    gpu = _reason(told["gpu"])
    runtime = told["import:onnxruntime"]
    offered = [name for name in runtime.get("providers", ()) if name in PROVIDERS]
    offered += [WEBGPU] * ("version" in told.get("import:onnxruntime_ep_webgpu", {}) and "error" not in runtime)
    tried = probe([f"provider:{name}" for name in offered], seconds=seconds)
    items = [
        Item("packages", "deploykit", "ok", f"{__version__}, in {Path(__file__).resolve().parents[1]}"),
        Item("packages", "Python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        *conflicts(versions),
        *package_items(told, versions, gpu),
        *extra_items(told, versions),
        *provider_items({name: tried[f"provider:{name}"] for name in offered}, gpu),
        *_gpu_items(gpu, told),
        *plugin_items({name: told[f"plugin:{name}"] for name in PLUGINS}),
        *_caches(),
        *_machine(),
        self_test_item(told["self-test"], installed="error" not in runtime or "slow" in runtime),
    ]
    return DoctorReport(tuple(items))


def package_items(told: Mapping[str, Told], versions: Mapping[str, str], gpu: str) -> list[Item]:
    """One item for each module that is installed, or that deploykit requires; ``gpu``: why there is none."""
    found = []
    for module, purpose in MODULES.items():
        about = told[f"import:{module}"]
        error, package = str(about.get("error", "")), PACKAGE_OF.get(module, module.replace("_", "-"))
        if _absent(module, error):
            if module in REQUIRED:
                says = "not installed, and deploykit requires it"
                found.append(Item("packages", module, "broken", says, f"pip install {package}"))
            continue
        version = about.get("version") or versions.get(package, "")
        if "slow" in about:
            found.append(_slow("packages", module, about, f"{version}: "))
        elif error:
            says = f"{version} cannot be used: {error}".strip()
            found.append(Item("packages", module, "broken", says, _remedy(module, package, error, gpu)))
        elif about.get("works") is False:
            says = f"{version} does not give back an image that it encoded"
            found.append(Item("packages", module, "broken", says, f"pip install --force-reinstall {package}"))
        elif module == "torch":
            found.append(_torch(about, version, gpu))
        else:
            found.append(Item("packages", module, "ok", f"{version}, {purpose}".removeprefix(", ")))
    return [_without_driver(item, gpu) for item in found]


def _slow(section: str, name: str, about: Told, before: str = "") -> Item:
    says = f"{before}it did not end within {about['slow']:g} s, so whether it works is not known".removeprefix(": ")
    return Item(section, name, "slow", says, "run this again when the machine has less to do")


def _without_driver(item: Item, gpu: str) -> Item:
    """A module that fails for want of the driver is no fault of the installation: there is no GPU here."""
    if item.state == "broken" and gpu and item.name in ("pycuda", "cuda.bindings", "tensorrt"):
        return Item(item.section, item.name, "warning", item.says, f"it needs an NVIDIA GPU: {gpu}")
    return item


def _torch(about: Told, version: str, gpu: str) -> Item:
    cuda, works = about.get("cuda", ""), about.get("cuda_works", False)
    says = f"{version}, {f'CUDA {cuda}' if cuda else 'for the CPU'}; {MODULES['torch']}"
    if cuda and not works and not gpu:
        do = "install a torch built for the driver's CUDA version (nvidia-smi shows it)"
        return Item("packages", "torch", "warning", f"{says}; its CUDA does not start, though there is a GPU", do)
    return Item("packages", "torch", "ok", says)


def _absent(module: str, error: str) -> bool:
    """Whether the module itself is what is not there, rather than something that it needs."""
    names = {module, module.partition(".")[0]}
    return any(error == f"ModuleNotFoundError: No module named {name!r}" for name in names)


def _remedy(module: str, package: str, error: str, gpu: str) -> str:
    if module == "cv2" and any(word in error for word in ("libGL", "libgthread", "libglib")):
        return (
            "pip uninstall opencv-python, then pip install opencv-python-headless, the same module without windows; or "
            "install libGL and glib (apt-get install libgl1 libglib2.0-0)"
        )
    if "libcuda" in error and gpu:
        return f"it needs an NVIDIA GPU and its driver: {gpu}"
    if "No module named" in error:
        return f"pip install {error.rpartition('No module named ')[2].strip(chr(39)).partition('.')[0]}"
    return f"pip install --force-reinstall {package}"


def extra_items(told: Mapping[str, Told], versions: Mapping[str, str]) -> list[Item]:
    """The extras, by the package's own metadata; without it, the modules that are missing."""
    wanted = requirements_of(DISTRIBUTION)
    if wanted is not None:
        return extras(wanted, versions)
    found = [
        Item(
            "extras",
            "deploykit",
            "missing",
            "not installed as a package, so its extras are not known",
            "pip install -e .",
        )
    ]
    for module, purpose in MODULES.items():
        if module not in REQUIRED and _absent(module, str(told[f"import:{module}"].get("error", ""))):
            package = PACKAGE_OF.get(module, module.replace("_", "-"))
            found.append(Item("extras", module, "missing", f"not installed: {purpose}", f"pip install {package}"))
    return found


def provider_items(tried: Mapping[str, Told], gpu: str) -> list[Item]:
    """Whether each provider of ONNX Runtime computes; a list of names says only what was compiled."""
    found = []
    for name, about in tried.items():
        short = name.removesuffix("ExecutionProvider")
        why = str(about.get("error", "")) or str(about.get("missing", ""))
        if "slow" in about:
            found.append(_slow("ONNX Runtime", short, about))
        elif about.get("loaded"):
            found.append(Item("ONNX Runtime", short, "ok", "loads and makes a session"))
        elif name == WEBGPU:
            says = f"it makes no session: {why.partition(': ')[2] or why}"
            found.append(Item("ONNX Runtime", short, "warning", says, "only --device webgpu needs it"))
        elif PROVIDERS.get(name) == "cuda" and gpu:
            do = f"there is no GPU here ({gpu}): pip install onnxruntime instead of onnxruntime-gpu"
            found.append(Item("ONNX Runtime", short, "warning", _fell_back(short, why), do))
        else:
            cuda = "install the CUDA libraries and cuDNN that this ONNX Runtime was built for: pip install "
            do = (
                f"{cuda}'onnxruntime-gpu[cuda,cudnn]'"
                if PROVIDERS.get(name) == "cuda"
                else ("pip install --force-reinstall onnxruntime")
            )
            found.append(Item("ONNX Runtime", short, "broken", _fell_back(short, why), do))
    return found


def _fell_back(name: str, why: str) -> str:
    return f"this ONNX Runtime offers {name}, and it does not load{f': {why}' if why else ''}"


def _gpu_items(reason: str, told: Mapping[str, Told]) -> list[Item]:
    gpus = Machine.here().gpus
    if reason:
        state: State = "broken" if gpus else "missing"  # nvidia-smi lists one, and CUDA does not start
        return [Item("GPU", "NVIDIA", state, reason, "install a driver that fits the GPU" if gpus else "")]
    found = [Item("GPU", gpu.name, "ok", f"driver {gpu.driver}") for gpu in gpus] or [
        Item("GPU", "NVIDIA", "ok", "the driver starts")
    ]
    if all(
        "error" in (about := told[f"import:{module}"]) and "slow" not in about for module in ("cuda.bindings", "pycuda")
    ):
        says = "neither cuda-bindings nor pycuda is installed, so engines cannot run"
        found.append(Item("GPU", "memory", "missing", says, "pip install cuda-bindings"))
    return found


def plugin_items(told: Mapping[str, Told]) -> list[Item]:
    """The native libraries: which are built, and whether they load and fit."""
    found = []
    for name, about in told.items():
        problem = str(about.get("error") or about.get("problem") or "")
        if "slow" in about:
            found.append(_slow("native libraries", name, about))
        elif not problem:
            found.append(Item("native libraries", name, "ok", f"{about['says']}, {about['file']}"))
        elif about.get("file") or "error" in about:
            found.append(Item("native libraries", name, "broken", problem, "deploykit plugins build"))
        else:
            found.append(Item("native libraries", name, "missing", problem))
    return found


def self_test_item(about: Told, *, installed: bool) -> Item:
    """The run of the tiny network; ``installed``: there is an ONNX Runtime to run it."""
    if about.get("right"):
        return Item("self-test", "predict", "ok", "letterbox, network and NMS give the known values")
    if "slow" in about and installed:
        return _slow("self-test", "predict", about)
    if "error" in about and not installed:
        return Item("self-test", "predict", "missing", "not run: there is no ONNX Runtime", installing("cpu"))
    why = about.get("error") or f"wrong result: {about.get('found', '')}"
    return Item("self-test", "predict", "broken", str(why), "see the problems above, or report this line")


def _reason(about: Told) -> str:
    return str(about.get("error") or about.get("reason") or "")


def _caches() -> list[Item]:
    """The folders of data that is kept between runs, with their sizes."""
    try:
        folder = cache_folder()
        parts = sorted(path for path in folder.iterdir()) if folder.is_dir() else []
        sizes = [(part.name, _size(part)) for part in parts]
    except (OSError, RuntimeError) as e:  # no home folder, or one that cannot be read
        return [Item("caches", "folder", "warning", f"cannot be read: {e}", "set XDG_CACHE_HOME to a folder of yours")]
    if not sizes:
        return [Item("caches", "folder", "ok", f"{folder}: empty")]
    most = f"at most {MOST / 1e6:.0f} MB"
    return [Item("caches", name, "ok", f"{size / 1e6:.1f} MB, {most}, in {folder / name}") for name, size in sizes]


def _size(path: Path) -> int:
    files: Iterable[Path] = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _machine() -> list[Item]:
    machine = Machine.here()
    cores = f"{machine.cores} of {machine.machine_cores} cores"
    quota = f", limited to {machine.core_limit:g} by the container" if machine.core_limit else ""
    memory = f"{machine.memory / 1e9:.1f} GB" if machine.memory else "not known"
    found = [
        Item("machine", "processor", "ok", f"{machine.processor}: {cores}{quota}"),
        Item("machine", "instructions", "ok", ", ".join(cpu_features()) or "not known"),
        Item("machine", "memory", "ok", memory),
    ]
    threads = os.environ.get("OMP_NUM_THREADS")
    return [*found, *([Item("machine", "OMP_NUM_THREADS", "ok", threads)] if threads else [])]


def native_libraries() -> list[Path]:
    """Return the files of the native libraries that are there."""
    from deploykit.runtime.native.library import find_library

    return [file for name in PLUGINS if (file := find_library(name)) is not None]
