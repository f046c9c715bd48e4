"""A process in which ONNX Runtime's WebGPU provider has a device where there is no GPU: Vulkan on the CPU.

Chromium brings a Vulkan driver for the CPU (SwiftShader) and the loader of such drivers. ONNX Runtime takes a device
only where the system lists a GPU, so the process sees a PCI bus with one, in a mount namespace of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run_with_device", "why_not"]

FOLDERS = tuple(map(Path, ("/usr/lib/chromium", "/usr/lib64/chromium-browser", "/opt/google/chrome")))
DRIVER, LOADER = "vk_swiftshader_icd.json", "libvulkan.so.1"
PCI = Path("/sys/bus/pci/devices")
GPU = {"class": "0x030000", "vendor": "0x1ae0", "device": "0xc0de"}  # a display controller, SwiftShader's own numbers
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def _folder() -> Path | None:
    return next((place for place in FOLDERS if all((place / name).exists() for name in (DRIVER, LOADER))), None)


def why_not() -> str:
    """Return what is missing here; empty: nothing is."""
    if importlib.util.find_spec("onnxruntime_ep_webgpu") is None:
        return "onnxruntime-ep-webgpu is not installed"
    if _folder() is None:
        return f"no folder of Chromium has a Vulkan driver for the CPU ({DRIVER}) and {LOADER}"
    if not PCI.is_dir() or shutil.which("unshare") is None:
        return "this system has no PCI bus in /sys, or no unshare"
    tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, check=False)
    return f"no mount namespace can be made here: {tried.stderr.strip()}" if tried.returncode else ""


def run_with_device(arguments: Sequence[str], place: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in such a process, where nothing is missing; ``place`` is an empty folder."""
    folder, bus, loader = _folder(), place / "bus", place / "loader"
    assert folder is not None
    device = bus / "0000:00:1f.0"
    device.mkdir(parents=True)
    for name, value in GPU.items():
        (device / name).write_text(value + "\n")
    loader.mkdir()
    (loader / LOADER).symlink_to(folder / LOADER)  # and no other library of that folder
    driver = {name: str(folder / DRIVER) for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")}
    environment = {**os.environ, **driver, "LD_LIBRARY_PATH": str(loader)}
    inside = ["sh", "-c", f'mount --bind "$0" {PCI} && exec "$@"', str(bus)]
    command = [*NAMESPACE, *inside, sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
