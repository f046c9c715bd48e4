"""The RayService of ``deploykit cluster manifest``, against the fields of KubeRay's custom resource."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploykit.cli import main
from deploykit.errors import UsageError
from deploykit.runtime.cluster.on_ray import LOOPBACK
from deploykit.runtime.cluster.scaling import Scaling
from tests.cell_model import cell_spec, write_cell_model

CLUSTER = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "headGroupSpec",
    "rayVersion",
    "workerGroupSpecs",
}
GROUP = {"groupName", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas", "template"}
"""Fields of ``ray.io/v1`` that a manifest may have, by KubeRay's reference of its custom resources (1.7)."""

GROUP_NEEDS = {"groupName", "maxReplicas", "minReplicas", "template"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["cluster", "manifest", *words]) == 0
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


def test_it_has_the_fields_that_kuberay_knows(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(model), f"two={model}", "--image", "r/x:1", "--max-replicas", "4", "--cpus", "2", "--gpus", "0.5")
    document = printed(capsys, *words)
    assert (document["apiVersion"], document["kind"], document["metadata"]["name"]) == (
        "ray.io/v1",
        "RayService",
        "cells",
    )
    assert document["spec"].keys() == {"serveConfigV2", "rayClusterConfig"}
    cluster = document["spec"]["rayClusterConfig"]
    assert cluster.keys() <= CLUSTER
    assert isinstance(cluster["rayVersion"], str)
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head.keys() == {"rayStartParams", "template"}
    assert GROUP_NEEDS <= group.keys() <= GROUP
    assert (group["minReplicas"], group["maxReplicas"], group["replicas"]) == (1, 4, 1)
    for each in (head, group):
        assert all(isinstance(value, str) for value in each["rayStartParams"].values())
        pod = each["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "r/x:1"
        assert container["securityContext"]["runAsNonRoot"] is True
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert all(isinstance(value, str) for value in container["resources"]["limits"].values())
        assert {"name": "serve", "containerPort": 8000} in container["ports"]
        assert all(len(port["name"]) <= 15 for port in container["ports"])  # a limit of Kubernetes
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"] == {
        "cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's packages
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_configuration_of_serve_builds_the_application(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(
        printed(capsys, str(model), "--image", "r/x:1", "--max-batch", "4")["spec"]["serveConfigV2"]
    )
    (application,) = config["applications"]
    assert application["args"]["models"] == ["cells=/models/cells/cells.onnx"]
    assert application["args"]["max_batch"] == 4
    (deployment,) = application["deployments"]
    assert deployment["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 1, "target_ongoing_requests": 8.0}
    module, function = application["import_path"].split(":")
    build = getattr(importlib.import_module(module), function)
    (tmp_path / "token").write_text("0123456789abcdef\n")
    with pytest.raises(UsageError, match="there is no argument 'modles': there are"):
        build({"modles": []})
    if importlib.util.find_spec("ray") is None:
        return  # what follows is Ray's own schema
    os.environ[LOOPBACK] = "0"  # which the import of Ray reads, and the tests with a real one need
    from ray.serve.schema import ServeDeploySchema

    parsed = ServeDeploySchema.model_validate(config)
    assert parsed.applications[0].deployments[0].name == "deploykit"
    app = build({**application["args"], "token_file": str(tmp_path / "token")})
    assert app._bound_deployment.name == "deploykit"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "1"], "--port is for deploykit cluster serve: the manifest has its own"),
        (["--min-replicas", "3", "--max-replicas", "2"], "at most no fewer: got 3 to 2"),
        (["--name", "9"], "a service's name begins with a letter"),
    ],
)
def test_what_it_cannot_be_made_of_is_an_error(
    words: list[str], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["cluster", "manifest", str(model), "--image", "r/x:1", *words])
    err = capsys.readouterr().err
    assert said in err
    assert code == 2


def test_it_needs_an_image(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "manifest", str(model)]) == 2
    assert "name the image with deploykit, Ray and the models with --image" in capsys.readouterr().err


def test_scaling_is_checked() -> None:
    for wrong in ({"cpus": 0}, {"gpus": -1.0}, {"ongoing": 0.0}, {"min_replicas": 0}):
        with pytest.raises(UsageError):
            Scaling(**wrong)  # type: ignore[arg-type]  # one of its fields
