"""An InferenceService for KServe, of deploykit's server and of Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deploykit.cli import COMMANDS, command_parser
from deploykit.errors import UsageError
from deploykit.runtime.package.docker import docker_files
from deploykit.runtime.package.kserve import kserve_text
from deploykit.runtime.package.models import PackagedModel

MODELS = [PackagedModel("best", Path("best.onnx")), PackagedModel("other", Path("large.onnx"))]


def manifest(**options: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(kserve_text(options.pop("models", MODELS), "best", **options))
    assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert document["metadata"]["name"] == "best"
    assert set(document["spec"]) == {"predictor"}
    predictor: dict[str, Any] = document["spec"]["predictor"]
    return predictor


def test_the_server_runs_without_rights_and_says_when_it_is_ready() -> None:
    predictor = manifest(image="registry.example/best:1", device="cuda", given=["--device", "cuda"])
    (container,) = predictor["containers"]
    assert (container["name"], container["image"]) == ("kserve-container", "registry.example/best:1")
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8000}
    assert container["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": 8000}
    assert [port["containerPort"] for port in container["ports"]] == [8000]
    rights = container["securityContext"]
    assert rights["runAsNonRoot"] is rights["readOnlyRootFilesystem"] is True
    assert rights["runAsUser"] > 0
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert rights["allowPrivilegeEscalation"] is False
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["args"][-2:] == ["--device", "cuda"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in predictor["volumes"]}
    token = container["args"][container["args"].index("--token-file") + 1]
    assert Path(token).parent == Path(mounts["token"])
    (secret,) = (volume["secret"] for volume in predictor["volumes"] if "secret" in volume)
    assert secret == {"secretName": "best-token"}


def test_the_models_lie_where_the_image_has_them() -> None:
    (container,) = manifest(image="i")["containers"]
    places = dict(word.split("=") for word in container["args"][:2])
    assert places == {"best": "/models/best/best.onnx", "other": "/models/other/large.onnx"}
    files = docker_files(MODELS, "best")
    assert {f"/{name}" for name in files if name.startswith("models/")} == set(places.values())
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


@pytest.mark.skipif("serve" not in COMMANDS, reason="this deploykit has no server")
def test_the_server_takes_the_arguments() -> None:
    words = ["serve", *manifest(image="i", given=["--max-batch", "4"])["containers"][0]["args"]]
    args = command_parser(words).parse_args(words)
    assert (args.host, args.port, args.max_batch) == ("0.0.0.0", 8000, 4)


def test_triton_takes_the_repository_from_its_store() -> None:
    model = manifest(storage_uri="s3://bucket/repository", image="triton:1")["model"]
    assert model["modelFormat"] == {"name": "triton"}
    assert (model["storageUri"], model["protocolVersion"]) == ("s3://bucket/repository", "v2")
    assert (model["runtime"], model["image"]) == ("kserve-tritonserver", "triton:1")
    assert "image" not in manifest(storage_uri="s3://bucket/repository")["model"]


def test_a_manifest_needs_something_to_run() -> None:
    with pytest.raises(UsageError, match=r"--image.*--storage-uri"):
        kserve_text(MODELS, "best")
    with pytest.raises(UsageError, match="--max-batch: Triton has its options in its repository"):
        kserve_text(MODELS, "best", storage_uri="s3://b", given=["--max-batch", "4"])
    with pytest.raises(UsageError, match="is an engine"):
        kserve_text([PackagedModel("best", Path("best.trt"))], "best", image="i")
    assert "model" in manifest(models=[PackagedModel("best", Path("best.trt"))], storage_uri="s3://b")
