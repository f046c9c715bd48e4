"""What all packages of deploykit's own server share: its command, its ports and its health."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from deploykit.errors import UsageError
from deploykit.runtime.package.models import PackagedModel

__all__ = [
    "GRPC_PORT",
    "LIVE",
    "PORT",
    "READY",
    "USER",
    "check_onnx",
    "container_arguments",
    "model_places",
    "service_name",
    "unprivileged",
]

PORT, GRPC_PORT = 8000, 8001
LIVE, READY = "/v2/health/live", "/v2/health/ready"
USER = 65532
"""The user and the group of a container: of nobody on usual systems, and a number, by which Kubernetes sees that it is
not root."""


def unprivileged() -> dict[str, Any]:
    """Return the security context of a container in Kubernetes; a new one each time, for YAML names what it meets
    again."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def check_onnx(models: Sequence[PackagedModel], what: str) -> None:
    """Check that the models run on any machine.

    Raises:
        UsageError: one is an engine, which runs with one TensorRT on one kind of GPU.
    """
    for model in models:
        if model.is_engine:
            raise UsageError(
                f"{model.file} is an engine, which runs with one TensorRT on one kind of GPU: {what} takes .onnx files"
            )


def model_places(models: Sequence[PackagedModel], folder: str) -> dict[str, str]:
    """Return the path of each model's file on the server, by the model's name; each model has a folder of its own."""
    return {model.name: str(PurePosixPath(folder, model.name, model.file.name)) for model in models}


def container_arguments(places: Mapping[str, str], given: Sequence[str], token_file: str) -> list[str]:
    """Return the arguments of ``deploykit serve`` in a container, where every address is listened on."""
    models = [f"{name}={place}" for name, place in places.items()]
    return [*models, "--host", "0.0.0.0", "--port", str(PORT), "--token-file", token_file, *given]


def service_name(name: str) -> str:
    """Return a name that may be a label of DNS: small letters, digits and '-', at most 63.

    Raises:
        UsageError: nothing is left of it.
    """
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].rstrip("-")
    if not found or not found[0].isalpha():
        raise UsageError(
            f"a service's name begins with a letter and has letters, digits and '-', got {name!r}: give --name"
        )
    return found
