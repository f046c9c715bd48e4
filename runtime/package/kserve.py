"""An InferenceService for KServe: deploykit's own image, or Triton with a repository that lies in a store.

The fields are those of ``serving.kserve.io/v1beta1``: https://kserve.github.io/website/docs/reference/crd-api.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploykit.errors import UsageError
from deploykit.runtime.package.models import PackagedModel
from deploykit.runtime.package.server import (
    LIVE,
    PORT,
    READY,
    check_onnx,
    container_arguments,
    model_places,
    unprivileged,
)

__all__ = ["kserve_text"]

TOKENS = "/run/secrets/deploykit"
RESOURCES = {"cpu": "2", "memory": "4Gi"}
GPU = {"nvidia.com/gpu": "1"}
HEADERS = {
    "server": """\
# kubectl create secret generic {name}-token --from-file=token=FILE; kubectl apply --filename THIS
# FILE holds the tokens of clients, one a line, of at least 16 characters.
""",
    "triton": """\
# kubectl apply --filename THIS; the store holds what deploykit package --triton wrote.
""",
}


def kserve_text(
    models: Sequence[PackagedModel],
    name: str,
    *,
    image: str | None = None,
    storage_uri: str | None = None,
    device: str | None = None,
    given: Sequence[str] = (),
) -> str:
    """Return the manifest (YAML) of one InferenceService.

    Args:
        models: the models.
        name: of the service, from :func:`deploykit.runtime.package.server.service_name`.
        image: the image that ``deploykit package --docker`` describes; with ``storage_uri`` that of a Triton which has
            deploykit in it.
        storage_uri: where the model repository of Triton lies; None: deploykit's own server runs in ``image``.
        device: ``cuda`` asks for a GPU.
        given: further arguments of ``deploykit serve``.

    Raises:
        UsageError: there is neither an image nor a store; or an engine would run in deploykit's own image.
    """
    import yaml

    limits = {**RESOURCES, **(GPU if device == "cuda" else {})}
    resources = {"requests": dict(RESOURCES), "limits": limits}
    if storage_uri is None:
        if image is None:
            raise UsageError(
                "name the image of deploykit's server (--image), or the store of a Triton repository (--storage-uri)"
            )
        check_onnx(models, "an image")
        predictor = _server(models, name, image, resources, given)
    elif given:
        raise UsageError(f"{given[0]}: Triton has its options in its repository; leave it out")
    else:
        predictor = _triton(storage_uri, image, resources)
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "deploykit"},
        },
        "spec": {"predictor": {"minReplicas": 1, **predictor}},
    }
    header = HEADERS["server" if storage_uri is None else "triton"].format(name=name)
    return header + str(yaml.safe_dump(document, sort_keys=False, width=120))


def _server(
    models: Sequence[PackagedModel], name: str, image: str, resources: dict[str, Any], given: Sequence[str]
) -> dict[str, Any]:
    container = {
        "name": "kserve-container",
        "image": image,
        "args": container_arguments(model_places(models, "/models"), given, f"{TOKENS}/token"),
        "env": [{"name": "PROTOCOL", "value": "v2"}],
        "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": _probe(READY, every=5, failures=3),
        "livenessProbe": {**_probe(LIVE, every=10, failures=6), "initialDelaySeconds": 10},
        "resources": resources,
        "securityContext": {**unprivileged(), "readOnlyRootFilesystem": True},
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "token", "mountPath": TOKENS, "readOnly": True},
        ],
    }
    volumes = [{"name": "tmp", "emptyDir": {}}, {"name": "token", "secret": {"secretName": f"{name}-token"}}]
    return {"containers": [container], "volumes": volumes}


def _triton(storage_uri: str, image: str | None, resources: dict[str, Any]) -> dict[str, Any]:
    model = {
        "modelFormat": {"name": "triton"},
        "runtime": "kserve-tritonserver",
        "protocolVersion": "v2",
        "storageUri": storage_uri,
        **({} if image is None else {"image": image}),
        "resources": resources,
    }
    return {"model": model}


def _probe(path: str, *, every: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": PORT},
        "periodSeconds": every,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }
