"""A RayService for KubeRay: the server of models on Ray Serve, on Kubernetes.

The fields are those of ``ray.io/v1``: https://ray-project.github.io/kuberay/reference/api.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deploykit.runtime.cluster.scaling import APPLICATION, Scaling, autoscaling
from deploykit.runtime.package.server import PORT, unprivileged

__all__ = ["RAY", "rayservice_text"]

RAY = "2.60.0"
"""The version of Ray that this was tested with; that in the image must be the same."""

TOKENS = "/run/secrets/deploykit"
HEADER = """\
# kubectl create secret generic {name}-token --from-file=token=FILE; kubectl apply --filename THIS
# FILE holds the tokens of clients, one a line, of at least 16 characters. The image has deploykit with its extra
# cluster (Ray {ray}); KubeRay is 1.5.1 or newer.
"""


def rayservice_text(
    name: str, image: str, import_path: str, arguments: Mapping[str, Any], scaling: Scaling, *, memory: str = "4Gi"
) -> str:
    """Return the manifest (YAML) of one RayService.

    Args:
        name: of the service.
        image: of the head and the workers.
        import_path: ``MODULE:FUNCTION`` of the function that returns the application for arguments.
        arguments: its arguments, without the scaling and the token's file.
        scaling: the replicas; each has a pod for itself.
        memory: of each pod, as Kubernetes writes it.
    """
    import yaml

    gpus = {"nvidia.com/gpu": str(math.ceil(scaling.gpus))} if scaling.gpus else {}
    worker = {"cpu": str(scaling.cpus), "memory": memory, **gpus}
    document = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "deploykit"},
        },
        "spec": {
            "serveConfigV2": yaml.safe_dump(_serve_config(import_path, arguments, scaling), sort_keys=False, width=120),
            "rayClusterConfig": {
                "rayVersion": RAY,
                "enableInTreeAutoscaling": True,
                "authOptions": {"mode": "token"},  # among Ray's own processes; KubeRay makes the secret
                "headGroupSpec": {
                    # No replica runs on the head; KubeRay reaches the settings of Ray Serve by the dashboard.
                    "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
                    "template": _pod(name, "ray-head", image, {"cpu": "1", "memory": memory}, HEAD_PORTS),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "models",
                        "replicas": scaling.min_replicas,
                        "minReplicas": scaling.min_replicas,
                        "maxReplicas": scaling.max_replicas,
                        "rayStartParams": {"num-cpus": str(scaling.cpus)},
                        "template": _pod(name, "ray-worker", image, worker, {"serve": PORT}),
                    }
                ],
            },
        },
    }

    class Dumper(yaml.SafeDumper):
        """Has a way of its own to write text."""

    Dumper.add_representer(str, _literal)
    return HEADER.format(name=name, ray=RAY) + str(yaml.dump(document, Dumper=Dumper, sort_keys=False, width=120))


def _serve_config(import_path: str, arguments: Mapping[str, Any], scaling: Scaling) -> dict[str, Any]:
    """Return the configuration of Ray Serve."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": PORT},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": import_path,
                "args": {
                    **arguments, "host": "0.0.0.0", "port": PORT, "token_file": f"{TOKENS}/token", **vars(scaling),
                },
                "deployments": [
                    {
                        "name": APPLICATION,
                        "autoscaling_config": autoscaling(scaling),
                        "ray_actor_options": {"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
                    }
                ],
            }
        ],
    }  # fmt: skip


HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": PORT}


def _pod(name: str, container: str, image: str, resources: dict[str, str], ports: Mapping[str, int]) -> dict[str, Any]:
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": image,
                    "ports": [{"name": title, "containerPort": port} for title, port in ports.items()],
                    "resources": {"requests": dict(resources), "limits": dict(resources)},
                    "securityContext": unprivileged(),
                    "volumeMounts": [
                        {"name": "token", "mountPath": TOKENS, "readOnly": True},
                        {"name": "shared-memory", "mountPath": "/dev/shm"},
                    ],
                }
            ],
            "volumes": [
                {"name": "token", "secret": {"secretName": f"{name}-token"}},
                {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            ],
        }
    }


def _literal(dumper: Any, text: str) -> Any:
    """Write text of several lines as such."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
