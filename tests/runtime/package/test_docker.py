"""The folder of an image: rules for Dockerfiles, pinned packages, and a compose file with few rights."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from deploykit.cli import COMMANDS, command_parser
from deploykit.errors import UsageError
from deploykit.runtime.package.docker import docker_files
from deploykit.runtime.package.models import PackagedModel, packaged_models
from deploykit.runtime.package.pins import BOTH, CPU, GPU, requirements
from deploykit.runtime.package.server import service_name
from deploykit.runtime.package.writing import write_tree
from tests.cell_model import cell_spec, write_cell_model

DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The folder of an image with two models, one of them with weights beside it."""
    first = write_cell_model(tmp_path / "best.onnx", spec=cell_spec())
    second = write_cell_model(tmp_path / "large.onnx", spec=cell_spec(), external=True)
    models = packaged_models([str(first), f"other={second}"])
    write_tree(tmp_path / "image", docker_files(models, "best", ["--max-batch", "4"]))
    return tmp_path / "image"


def instructions(file: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its arguments on one line."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def one(found: list[tuple[str, str]], name: str) -> str:
    (value,) = (rest for word, rest in found if word == name)
    return value


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_base_has_a_tag_and_takes_a_digest(name: str, image: Path) -> None:
    found = instructions(image / name)
    assert found[0] == ("ARG", 'DIGEST=""')
    assert re.fullmatch(r"[a-z/]+:[\w.-]*\d[\w.-]*\$\{DIGEST\}", one(found, "FROM"))
    assert "latest" not in one(found, "FROM")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_nothing_runs_as_root_and_nothing_is_a_shell_command(name: str, image: Path) -> None:
    found = instructions(image / name)
    names = [word for word, _ in found]
    user = one(found, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number, so that Kubernetes sees that it is not root"
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]
    assert not {"ADD", "SHELL", "MAINTAINER", "VOLUME"} & set(names)
    assert "sudo" not in (image / name).read_text()
    assert one(found, "WORKDIR").startswith("/")
    assert json.loads(one(found, "ENTRYPOINT")) == ["deploykit", "serve"]
    options, _, probe = one(found, "HEALTHCHECK").partition(" CMD ")
    assert "--start-period" in options
    command = json.loads(probe)
    assert command[:2] == ["python", "-c"]
    compile(command[2], "the health check", "exec")
    assert "http://127.0.0.1:8000/v2/health/ready" in command[2]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_packages_are_installed_at_their_versions_and_leave_no_cache(name: str, image: Path) -> None:
    run = one(instructions(image / name), "RUN")
    assert "--no-cache-dir" in run
    assert "--no-deps" in run
    (file,) = re.findall(r"source=(requirements[\w-]*\.txt)", run)
    assert file == ("requirements-gpu.txt" if name.endswith("gpu") else "requirements.txt")
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in (image / file).read_text().splitlines())


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_in_the_context_and_nothing_else_is(name: str, image: Path) -> None:
    found = instructions(image / name)
    kept = [line[1:] for line in (image / ".dockerignore").read_text().splitlines()[1:]]
    assert (image / ".dockerignore").read_text().startswith("*\n")
    sources = [one(found, "COPY").split()[0], *re.findall(r"source=([\w.-]+)", one(found, "RUN"))]
    assert set(sources) <= set(kept)
    assert all((image / source).exists() for source in sources)
    for argument in json.loads(one(found, "CMD"))[:2]:
        place = argument.partition("=")[2]
        assert (image / place.lstrip("/")).is_file(), place
    assert (image / "models" / "other" / "large.onnx.data").is_file()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_linter_for_dockerfiles_has_nothing_to_say(name: str, image: Path) -> None:
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, str(image / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif("serve" not in COMMANDS, reason="this deploykit has no server")
@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_server_takes_the_arguments(name: str, image: Path) -> None:
    words = ["serve", *json.loads(one(instructions(image / name), "CMD"))]
    args = command_parser(words).parse_args(words)
    assert (args.host, args.port, args.grpc_port, args.max_batch) == ("0.0.0.0", 8000, 8001, 4)
    assert getattr(args, "device", None) == ("cuda" if name.endswith("gpu") else None)


def test_the_compose_file_gives_the_server_no_rights_that_it_does_not_need(image: Path) -> None:
    document = yaml.safe_load((image / "compose.yaml").read_text())
    services: dict[str, Any] = document["services"]
    assert {service["build"]["dockerfile"] for service in services.values()} == set(DOCKERFILES)
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert set(service["secrets"]) == set(document["secrets"])
    assert "profiles" not in services["server"]
    assert services["server-gpu"]["profiles"] == ["gpu"]
    assert not (image / "token").exists(), "a secret is never written"


def test_pins_are_those_that_the_tests_run_with(root: Path) -> None:
    pinned = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line)
    ours = {**BOTH, **CPU, **GPU}
    different = {name: (ours[name], pinned[name]) for name in ours if name in pinned and ours[name] != pinned[name]}
    assert not different
    assert {"numpy", "onnxruntime", "opencv-python-headless", "starlette", "uvicorn"} <= set(pinned) & set(ours)
    assert GPU["onnxruntime-gpu"] == CPU["onnxruntime"]


def test_no_package_of_the_image_lacks_what_it_requires() -> None:
    """By the metadata of the packages that are installed here, at the pinned version."""
    names = {line.split("==")[0] for line in requirements(gpu=False).splitlines()}
    looked_at = 0
    for name, pin in {**BOTH, **CPU}.items():
        try:
            if version(name) != pin:
                continue
        except PackageNotFoundError:
            continue
        looked_at += 1
        for text in requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": "", "python_version": "3.13"}):
                assert re.sub(r"[-_.]+", "-", needed.name.lower()) in names, (name, text)
    assert looked_at > 10, "too few of the packages are installed here at their pinned version"


def test_an_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is an engine.*: an image takes \.onnx files"):
        docker_files([PackagedModel("best", tmp_path / "best.trt")], "best")


def test_the_name_of_a_service_is_one_that_dns_takes() -> None:
    assert service_name("Best_Model.v2") == "best-model-v2"
    assert len(service_name("a" * 80)) == 63
    for name in ("", "--", "7days"):
        with pytest.raises(UsageError, match="a service's name begins with a letter"):
            service_name(name)
