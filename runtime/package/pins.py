"""The versions of packages in an image: everything that a server needs, so that an image is the same next year.

``tests/runtime/package/test_docker.py`` compares them with constraints.txt, and with what the packages require.
"""

from __future__ import annotations

from deploykit.errors import DISTRIBUTION
from deploykit.version import __version__

__all__ = ["requirements"]

BOTH = {
    "anyio": "4.16.0",
    "click": "8.5.1",
    "flatbuffers": "25.12.19",
    "grpcio": "1.85.3",
    "h11": "0.16.0",
    "httptools": "0.9.0",
    "idna": "3.20",
    "markdown-it-py": "4.3.0",
    "mdurl": "0.1.2",
    "numpy": "2.4.6",
    "opencv-python-headless": "5.0.0.93",  # the package that needs no libraries of a desktop
    "packaging": "26.4",
    "prometheus-client": "0.26.0",
    "protobuf": "6.33.6",
    "pygments": "2.21.0",
    "python-multipart": "0.0.34",
    "pyyaml": "6.0.4",
    "rich": "15.0.0",
    "starlette": "1.10.0",
    "typing-extensions": "4.16.0",
    "uvicorn": "0.54.0",
}
CPU = {"onnxruntime": "1.31.1"}
GPU = {
    "cuda-bindings": "13.5.0",
    "cuda-pathfinder": "1.9.1",
    "nvidia-cublas": "13.10.0.20",
    "nvidia-cuda-nvrtc": "13.5.37",
    "nvidia-cuda-runtime": "13.5.37",
    "nvidia-cudnn-cu13": "9.28.1.4",
    "nvidia-cufft": "12.5.0.14",
    "nvidia-curand": "10.4.5.25",
    "nvidia-nvjitlink": "13.5.37",
    "onnxruntime-gpu": "1.31.1",
}


def requirements(*, gpu: bool) -> str:
    """Return a requirements file; every package has one version, and none is missing."""
    pins = {DISTRIBUTION: __version__, **BOTH, **(GPU if gpu else CPU)}
    return "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
