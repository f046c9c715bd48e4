"""The folder of a container: Dockerfiles for the CPU and for NVIDIA GPUs, a compose file, and what they need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from deploykit.runtime.package.models import PackagedModel
from deploykit.runtime.package.pins import requirements
from deploykit.runtime.package.server import (
    GRPC_PORT,
    PORT,
    READY,
    USER,
    check_onnx,
    container_arguments,
    model_places,
)
from deploykit.runtime.package.writing import Content
from deploykit.version import __version__

__all__ = ["BASE", "docker_files"]

BASE = "python:3.13-slim-bookworm"
MODELS = "/models"
SECRET = "token"
TOKEN_FILE = f"/run/secrets/{SECRET}"
PROBE = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}{READY}', timeout=3)"

DOCKERFILE = """\
# deploykit {version}{on_gpu}. Build with the base's digest to have the same base next year:
#   docker build --build-arg DIGEST=@sha256:... --file {file} --tag {name} .
ARG DIGEST=""
FROM {base}${{DIGEST}}

# The packages have one version each. A wheel in wheels/ is taken instead of a download.
RUN --mount=type=bind,source={requirements},target=/build/requirements.txt \\
    --mount=type=bind,source=wheels,target=/build/wheels \\
    pip install --no-cache-dir --no-deps --find-links /build/wheels --requirement /build/requirements.txt

ENV HOME=/tmp \\
    PYTHONDONTWRITEBYTECODE=1 \\
    PYTHONUNBUFFERED=1{environment}

COPY models {models}

USER {user}:{user}
WORKDIR /tmp
EXPOSE {port} {grpc_port}
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 CMD {probe}
ENTRYPOINT ["deploykit", "serve"]
CMD {arguments}
"""
GPU_ENVIRONMENT = """ \\
    NVIDIA_VISIBLE_DEVICES=all \\
    NVIDIA_DRIVER_CAPABILITIES=compute,utility"""
IGNORED = """\
*
!models
!wheels
!requirements.txt
!requirements-gpu.txt
"""
WHEELS = f"""\
A wheel here is installed instead of a download, such as that of deploykit {__version__} itself:
pip wheel --no-deps --wheel-dir wheels SOURCE
"""
COMPOSE = f"""\
# docker compose up --build, or with an NVIDIA GPU: docker compose --profile gpu up --build server-gpu
# The file {SECRET} beside this one holds the tokens of clients, one a line, of at least 16 characters:
#   (umask 022; openssl rand -hex 24 > {SECRET})
# The user {USER} of the container must be able to read it.
"""


def docker_files(models: Sequence[PackagedModel], name: str, given: Sequence[str] = ()) -> dict[str, Content]:
    """Return the files of the folder in which an image is built: path -> content.

    Args:
        models: the models, which are copied into the folder and from there into the image.
        name: the name of the image, from :func:`deploykit.runtime.package.server.service_name`.
        given: further arguments of ``deploykit serve``.

    Raises:
        UsageError: a model is an engine.
    """
    check_onnx(models, "an image")
    places = model_places(models, MODELS)
    arguments = [*container_arguments(places, (), TOKEN_FILE), "--grpc-port", str(GRPC_PORT), *given]
    files: dict[str, Content] = {
        "Dockerfile": _dockerfile(name, arguments, gpu=False),
        "Dockerfile.gpu": _dockerfile(name, arguments, gpu=True),
        "requirements.txt": requirements(gpu=False),
        "requirements-gpu.txt": requirements(gpu=True),
        "compose.yaml": COMPOSE + _yaml(_compose(name)),
        ".dockerignore": IGNORED,
        "wheels/README.txt": WHEELS,
    }
    for model in models:
        files |= {f"models/{model.name}/{file.name}": file for file in model.files}
    return files


def _dockerfile(name: str, arguments: Sequence[str], *, gpu: bool) -> str:
    file = "Dockerfile.gpu" if gpu else "Dockerfile"
    chosen = () if "--device" in arguments or not gpu else ("--device", "cuda")
    return DOCKERFILE.format(
        version=__version__,
        on_gpu=" on NVIDIA GPUs (a driver for CUDA 13)" if gpu else "",
        file=file,
        name=f"{name}-gpu" if gpu else name,
        base=BASE,
        requirements="requirements-gpu.txt" if gpu else "requirements.txt",
        environment=GPU_ENVIRONMENT if gpu else "",
        models=MODELS,
        user=USER,
        port=PORT,
        grpc_port=GRPC_PORT,
        probe=json.dumps(["python", "-c", PROBE]),
        arguments=json.dumps([*arguments, *chosen]),
    )


def _compose(name: str) -> dict[str, Any]:
    gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    return {
        "services": {
            "server": _service(name, "Dockerfile"),
            "server-gpu": {
                **_service(f"{name}-gpu", "Dockerfile.gpu"),
                "profiles": ["gpu"],
                "deploy": {"resources": {"reservations": {"devices": [gpu]}}},
            },
        },
        "secrets": {SECRET: {"file": f"./{SECRET}"}},
    }


def _service(image: str, file: str) -> dict[str, Any]:
    return {
        "image": image,
        "build": {"context": ".", "dockerfile": file},
        "ports": [f"127.0.0.1:{port}:{port}" for port in (PORT, GRPC_PORT)],
        "secrets": [SECRET],
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": 512,
        "init": True,
        "restart": "unless-stopped",
        "stop_grace_period": "45s",
    }


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False, width=120)
    return text
