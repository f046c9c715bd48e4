"""Packages: what is installed by its metadata, what does not go together, and which extras are complete."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from itertools import zip_longest

from deploykit.doctor.report import Item
from deploykit.errors import DISTRIBUTION, installing

__all__ = ["MODULES", "Requirement", "conflicts", "extras", "installed_versions", "requirements_of"]

MODULES = {
    "numpy": "arrays",
    "cv2": "images",
    "rich": "tables and progress of the command line",
    "yaml": "reads settings",
    "onnxruntime": "runs ONNX files",
    "onnxruntime_ep_webgpu": "ONNX files on GPUs of any maker",
    "onnx": "reads and writes ONNX files",
    "onnx_ir": "graphs of exports",
    "onnxscript": "exports",
    "onnxsim": "--simplify",
    "torch": "loads checkpoints, exports",
    "timm": "any classifier of timm",
    "tensorrt": "TensorRT engines",
    "tensorrt_rtx": "engines of TensorRT for RTX",
    "cuda.bindings": "GPU memory",
    "pycuda": "GPU memory",
    "nvidia.nvimgcodec": "JPEG files decoded on a GPU",
    "PyNvVideoCodec": "videos decoded on a GPU",
    "rawpy": "RAW files",
    "hotcoco": "average precision",
    "pycocotools": "average precision, --metrics pycocotools",
    "matplotlib": "eval --plots",
    "starlette": "serves models",
    "uvicorn": "serves over HTTP",
    "httptools": "reads requests",
    "python_multipart": "forms of requests",
    "grpc": "serves over gRPC",
    "opentelemetry": "traces of a server",
    "prometheus_client": "metrics of a server",
    "model_signing": "signatures of files",
    "ray": "many machines",
    "pyarrow": "Parquet files",
    "PIL": "label maps with a palette",
}
"""Module -> what it is for."""

OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm")
DEVELOPMENT = ("dev", "docs")  # extras of people who change deploykit


class Requirement:
    """One line of a package's requirements: its name, the versions that it allows, and the extra that it is of."""

    def __init__(self, text: str) -> None:
        wanted, _, marker = text.partition(";")
        name = re.match(r"\s*([\w.-]+)", wanted)
        self.text = wanted.strip()
        self.name = normal(name[1]) if name else ""
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", marker)
        self.extra = extra[1] if extra else ""
        self.platform = "platform_machine" in marker
        self.bounds = re.findall(r"(>=|<=|==|!=|<|>)\s*([\w.]+)", wanted)

    def allows(self, version: str) -> bool:
        """Whether a version is within the bounds; only its leading numbers count."""
        return all(_holds(version, sign, bound) for sign, bound in self.bounds)


def normal(name: str) -> str:
    """Return a package's name as its index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _holds(version: str, sign: str, bound: str) -> bool:
    pairs = list(zip_longest(_numbers(version), _numbers(bound), fillvalue=0))
    order = next((1 if a > b else -1 for a, b in pairs if a != b), 0)
    return {">=": order >= 0, "<=": order <= 0, "==": order == 0, "!=": order != 0, "<": order < 0, ">": order > 0}[
        sign
    ]


def _numbers(version: str) -> list[int]:
    found = re.match(r"[\d.]*", version)
    return [int(part) for part in (found[0] if found else "").split(".") if part]


def installed_versions() -> dict[str, str]:
    """Return the version of every installed package, by its name; what has no readable metadata is left out."""
    found: dict[str, str] = {}
    for package in metadata.distributions():
        try:
            name, version = package.metadata["Name"], package.version
        except Exception:  # a folder that an installation left behind
            continue
        if name:
            found.setdefault(normal(name), str(version))
    return found


def requirements_of(package: str) -> list[Requirement] | None:
    """Return the requirements of an installed package; None: it is not installed as one."""
    try:
        return [Requirement(text) for text in metadata.requires(package) or []]
    except metadata.PackageNotFoundError:
        return None


def conflicts(versions: Mapping[str, str]) -> list[Item]:
    """Packages that write the same module: which of them is imported is chance."""
    found = []
    runtimes = [name for name in RUNTIMES if name in versions]
    if len(runtimes) > 1:
        says = (
            f"{' and '.join(runtimes)} are both installed, and both are the module onnxruntime: one overwrote the other"
        )
        keep = "onnxruntime-gpu" if "onnxruntime-gpu" in runtimes else runtimes[0]
        do = f"pip uninstall {' '.join(runtimes)}, then pip install {keep}"
        found.append(Item("packages", "ONNX Runtime", "broken", says, do))
    flavours = [name for name in OPENCV if name in versions]
    if len(flavours) > 1:
        says = (
            f"{' and '.join(flavours)} are all installed, and all are the module cv2: the last one overwrote the others"
        )
        do = f"pip uninstall {' '.join(flavours)}, then pip install {flavours[0]}"
        found.append(Item("packages", "OpenCV", "warning", says, do))
    if "deploykit" in versions and DISTRIBUTION in versions:
        says = f"deploykit and {DISTRIBUTION} are both installed: the first is another project of that name"
        found.append(
            Item(
                "packages",
                "deploykit",
                "broken",
                says,
                f"pip uninstall deploykit {DISTRIBUTION}, then {installing('cpu')}",
            )
        )
    return found


def extras(requirements: Iterable[Requirement], versions: Mapping[str, str]) -> list[Item]:
    """Whether each extra of deploykit is complete, and what to type where it is not."""
    by_extra: dict[str, list[Requirement]] = {}
    for requirement in requirements:
        if requirement.extra and requirement.extra not in DEVELOPMENT:
            by_extra.setdefault(requirement.extra, []).append(requirement)
    found = []
    for extra, needed in by_extra.items():
        lacks = [r for r in needed if r.name not in versions and not _stands_in(r.name, versions)]
        old = [r for r in needed if r.name in versions and not r.allows(versions[r.name])]
        if old:
            listed = ", ".join(f"{r.text} is wanted, {versions[r.name]} is installed" for r in old)
            command = f"pip install {' '.join(repr(r.text) for r in (*lacks, *old))}"
            found.append(Item("extras", extra, "warning", listed, command))
        elif lacks:
            listed = ", ".join(r.name for r in lacks)
            have = "not installed" if len(lacks) == len(needed) else f"not complete: {listed} is missing"
            found.append(Item("extras", extra, "missing", have, installing(extra)))
        else:
            found.append(Item("extras", extra, "ok", "complete"))
    return found


def _stands_in(name: str, versions: Mapping[str, str]) -> bool:
    """Whether another package gives the same module: any OpenCV, or the other ONNX Runtime."""
    return name == "opencv-python" and any(flavour in versions for flavour in OPENCV)
